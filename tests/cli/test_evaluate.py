"""`visglm evaluate`: the table, the folder, and the status when something could not be answered."""

from __future__ import annotations

import json

import pytest

from visglm.cli import main
from visglm.cli.evaluate import FAILED

pytest.importorskip("sacrebleu")


def test_table_folder_and_status(loaded, pictures, tmp_path, capsys):
    answer = loaded.chat(pictures[0], "Say what it is.", max_new_tokens=4).text
    rows = [{"image": str(pictures[0]), "caption": answer}]
    (tmp_path / "good.jsonl").write_text(json.dumps(rows[0]) + "\n")
    rows.append({"image": "nowhere.png", "caption": "nothing"})
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["--prompt", "Say what it is.", "--max-new-tokens", "4", "--batch-size", "2"]

    assert main(["evaluate", str(tmp_path / "good.jsonl"), *settings]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["all", "1", "100.0", "±0.0"]

    assert main(["evaluate", str(tmp_path / "bad.jsonl"), *settings, "--output", str(tmp_path / "out")]) == FAILED
    assert "bad.jsonl:2: " in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"metrics.json", "predictions.jsonl", "worst.html"}


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_asked(loaded, pictures, tmp_path, capsys):
    (tmp_path / "good.jsonl").write_text(json.dumps({"image": str(pictures[0]), "caption": "a"}) + "\n")
    (tmp_path / "file").write_text("mine")
    for folder in ("file", "file/out"):
        assert main(["evaluate", str(tmp_path / "good.jsonl"), "--output", str(tmp_path / folder)]) == 1
        captured = capsys.readouterr()
        assert "cannot be written" in captured.err and "all" not in captured.out
