"""`visglm describe` by models that think, and that look at pictures of nearly any shape."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.families.made import scripted
from visglm import VisGLM
from visglm.cli import main
from visglm.cli.describe import FAILED
from visglm.errors import ImageError

THOUGHT = "<think>" + "a b " * 40
SHORT = ["--max-new-tokens", "6"]


@pytest.fixture
def thinker(models, monkeypatch) -> VisGLM:
    monkeypatch.setattr("visglm.cli.describe.load_model", lambda arguments: models["glm46v"])
    return models["glm46v"]


@pytest.fixture
def folder(tmp_path) -> Path:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    return tmp_path


def test_a_thought_that_was_cut_short_is_told_where_answers_are_printed(thinker, folder, capsys):
    with scripted(thinker, THOUGHT):
        assert main(["describe", str(folder / "red.png"), *SHORT]) == FAILED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{folder / 'red.png'}: the model was still thinking" in captured.err
    assert "--max-new-tokens" in captured.err and "--max-thinking-tokens" in captured.err
    with scripted(thinker, THOUGHT):
        assert main(["describe", str(folder / "red.png"), "--json", *SHORT]) == FAILED
    row = json.loads(capsys.readouterr().out)
    assert set(row) == {"image", "error"} and "still thinking" in row["error"]


def test_a_thought_that_was_cut_short_is_told_in_its_row(thinker, folder, tmp_path, capsys):
    pytest.importorskip("filelock")
    with scripted(thinker, THOUGHT):
        assert main(["describe", str(folder), str(tmp_path / "answers"), *SHORT]) == FAILED
    (row,) = (json.loads(line) for path in (tmp_path / "answers").glob("part-*") for line in path.open("rb"))
    assert (row["text"], row["finish_reason"]) == (None, "length") and "still thinking" in row["error"]
    assert row["sha256"]  # it was read, and would not be answered otherwise the next time
    assert "--max-thinking-tokens" in capsys.readouterr().err


def test_an_answer_that_was_cut_short_is_one(thinker, folder, tmp_path):
    pytest.importorskip("filelock")
    with scripted(thinker, "<think>a</think>" + "a b " * 40):
        assert main(["describe", str(folder), str(tmp_path / "answers"), "--max-new-tokens", "12"]) == 0
    (row,) = (json.loads(line) for path in (tmp_path / "answers").glob("part-*") for line in path.open("rb"))
    assert row["text"] and row["finish_reason"] == "length" and row["error"] is None


def test_a_strip_that_is_too_narrow_is_told_with_its_file(thinker, folder, capsys):
    Image.new("RGB", (2000, 4)).save(folder / "strip.png")
    with pytest.raises(ImageError, match=r"strip\.png.*2000×4 pixels cannot be looked at.*Cut it"):
        thinker.chat([folder / "red.png", folder / "strip.png"], "What is this?")
    assert main(["describe", str(folder / "strip.png"), str(folder / "red.png"), *SHORT]) == FAILED
    assert re.search(r"visglm: Cannot use the path '.*strip\.png' as an image", capsys.readouterr().err)
