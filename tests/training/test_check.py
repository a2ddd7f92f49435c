"""`visglm data check` and `convert` on a deliberately bad file, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visglm.cli import main
from visglm.errors import ConfigError, DataError
from visglm.training import check_data, convert_data
from visglm.training.containers import open_rows
from visglm.training.formats import read_row

from .samples import captions, picture, write_pictures


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    write_pictures(tmp_path, 4)
    (tmp_path / "pictures/2.png").write_bytes(b"garbage")
    good = json.dumps({"image": "pictures/0.png", "caption": "A disc."})
    lines = [
        good,
        good,
        '{"image": "pictures/1.png", "caption": ',
        json.dumps({"image": "pictures/2.png", "caption": "Broken."}),
        json.dumps({"image": "pictures/9.png", "caption": "Gone."}),
        json.dumps({"image": "pictures/1.png", "caption": " "}),
        json.dumps({"picture": "pictures/1.png"}),
        json.dumps({"img": "pictures/3.png", "prompt": "What?", "label": "cat " * 300}),
        json.dumps({"img": "pictures/3.png", "prompt": "cat " * 300, "label": "Long."}),
    ]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    return tmp_path / "bad.jsonl"


def test_every_kind_of_problem_is_found_with_its_line(bad_file, capsys):
    assert main(["data", "check", str(bad_file), "--max-length", "200"]) == 3
    out = capsys.readouterr().out
    assert "3 rows can be used (2 caption, 1 visualglm): 3 answers, 3 pictures." in out
    for kind, line, text in [
        ("row: 2", 3, "no JSON"),
        ("row: 2", 7, "keys picture"),
        ("unreadable image: 1", 4, "Cannot use"),
        ("missing file: 1", 5, "9.png"),
        ("empty answer: 1", 6, "empty"),
        ("too long: 1", 9, "no room"),
        ("duplicate: 1", 2, "bad.jsonl:1"),
    ]:
        assert kind in out
        assert any(f"bad.jsonl:{line}:" in row and text in row for row in out.splitlines()), (kind, out)
    assert "1 answer is longer than 200 tokens" in out
    assert "█" in out


def test_good_data_is_clean(tmp_path, capsys):
    assert main(["data", "check", str(captions(tmp_path, 3))]) == 0
    assert "3 rows can be used" in capsys.readouterr().out


def test_convert_writes_common_rows_that_say_the_same(bad_file, capsys):
    target = bad_file.parent / "out" / "rows.jsonl"
    assert main(["data", "convert", str(bad_file), str(target), "--prompt", "Name it."]) == 3
    out = capsys.readouterr().out
    assert "6 rows written" in out and "bad.jsonl:3" in out
    rows = open_rows(target)
    first = read_row(rows[0])
    assert (first.turns[0].question, first.turns[0].answer) == ("Name it.", "A disc.")
    assert (rows.folder / first.images[0]).resolve() == (bad_file.parent / "pictures/0.png").resolve()


def test_convert_does_not_overwrite_its_source(tmp_path):
    path = captions(tmp_path, 2)
    before = path.read_bytes()
    with pytest.raises(DataError, match="overwrite"):
        convert_data(path, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("target", ["file/rows.jsonl", "folder"])
def test_a_target_that_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path, capsys, target):
    path = captions(tmp_path, 2)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    assert main(["data", "convert", str(path), str(tmp_path / target)]) == 1
    told = capsys.readouterr().err
    assert "cannot be written" in told and "choose another" in told and "Traceback" not in told
    assert sorted(tmp_path.iterdir()) == before


def test_a_picture_that_finds_no_room_ends_the_conversion_and_is_no_bad_row(tmp_path):
    rows = [{"image": picture(number), "caption": "A disc."} for number in range(3)]
    (tmp_path / "rows-images").write_text("in the way")
    with pytest.raises(ConfigError, match="rows-images.* cannot be written"):
        convert_data(rows, tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()


def test_streams_are_refused(tmp_path):
    with pytest.raises(DataError, match="take"):
        check_data(iter([]), None, max_length=10)  # type: ignore[arg-type]
