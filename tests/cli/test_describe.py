"""`visglm describe`: many files, bad ones among them."""

from __future__ import annotations

import io
import json

import pytest

from visglm import VisGLM
from visglm.cli import describe, main
from visglm.cli.describe import FAILED, PROMPTS

SHORT = ["--max-new-tokens", "4"]


def test_every_picture_gets_its_line(loaded, pictures, capsys):
    assert main(["describe", *map(str, pictures), *SHORT]) == 0
    captured = capsys.readouterr()
    expected = [f"{path}: {loaded.chat(path, PROMPTS['en'], max_new_tokens=4)}" for path in pictures]
    assert captured.out.splitlines() == expected
    assert "3/3" in captured.err


def test_a_single_picture_needs_no_name(loaded, pictures, capsys):
    assert main(["describe", str(pictures[0]), "--language", "zh", *SHORT]) == 0
    assert capsys.readouterr().out == f"{loaded.chat(pictures[0], PROMPTS['zh'], max_new_tokens=4)}\n"


def test_the_prompt_can_be_another(loaded, pictures, capsys):
    assert main(["describe", str(pictures[0]), "--prompt", "图中有猫吗？", *SHORT]) == 0
    assert capsys.readouterr().out == f"{loaded.chat(pictures[0], '图中有猫吗？', max_new_tokens=4)}\n"


@pytest.mark.parametrize("prompt", ["", "  "])
def test_an_empty_prompt_is_refused_before_the_model_is_loaded(monkeypatch, pictures, capsys, prompt):
    monkeypatch.setattr(describe, "load_model", lambda arguments: pytest.fail("the model was loaded"))
    assert main(["describe", str(pictures[0]), "--prompt", prompt]) == 1
    assert "--question must not be empty" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_told_as_one(loaded, monkeypatch):
    """On Linux a file's name may be any bytes; Python holds those that are no text as surrogates."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr("sys.stdout", out)
    assert main(["describe", "caf\udce9.png", "--json"]) == FAILED
    out.seek(0)
    assert json.loads(out.read())["image"] == "caf\udce9.png"


@pytest.mark.parametrize("batch_size", ["1", "2", "8"])
def test_bad_files_lose_nothing_and_show_in_the_status(loaded, pictures, tmp_path, capsys, batch_size):
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:50])
    paths = [pictures[0], broken, tmp_path / "nowhere.png", pictures[1]]
    assert main(["describe", *map(str, paths), "--batch-size", batch_size, "--json", *SHORT]) == FAILED
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    assert [set(row) - {"image"} for row in rows] == [{"text"}, {"error"}, {"error"}, {"text"}]
    assert rows[3]["text"] == loaded.chat(pictures[1], PROMPTS["en"], max_new_tokens=4).text
    assert "2 of 4" in captured.err


def test_without_json_what_failed_is_on_stderr(loaded, pictures, capsys):
    assert main(["describe", "nowhere.png", str(pictures[0]), *SHORT]) == FAILED
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "visglm: Cannot use the path 'nowhere.png'" in captured.err
    assert "visglm: 1 of 2 pictures could not be described." in captured.err
    assert main(["describe", "nowhere.png", *SHORT]) == FAILED
    assert "visglm: 1 of 1 picture could not be described." in capsys.readouterr().err


def test_what_is_done_is_shown_before_the_rest(loaded, pictures, capsys, monkeypatch):
    """Stopped in the middle, or crashed, it has printed the batches before."""
    answer = VisGLM.batch

    def fail_at_the_last(self, requests, **settings):
        if requests[0][0] == str(pictures[2]):
            raise KeyboardInterrupt
        return answer(self, requests, **settings)

    monkeypatch.setattr(VisGLM, "batch", fail_at_the_last)
    assert main(["describe", *map(str, pictures), "--batch-size", "1", *SHORT]) == 130
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_wrong_batch_size_is_told_before_the_model_is_loaded(monkeypatch, pictures, capsys):
    monkeypatch.setattr(describe, "load_model", lambda arguments: pytest.fail("the model was loaded"))
    assert main(["describe", str(pictures[0]), "--batch-size", "0"]) == 1
    assert "--batch-size" in capsys.readouterr().err
