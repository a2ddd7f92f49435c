"""What `visglm finetune` ends with: command lines to go on with, which do what they say when they are pasted."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from visglm.cli import build_parser, main

PICTURE = Path(__file__).parents[2] / "examples" / "cat.png"
SHORT = "--max-steps 1 --num-workers 0 --report-to none --held-out 0 --replay 0 --num-samples 1"


def test_a_lesson_ends_with_commands_that_run(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "my rows"
    folder.mkdir()
    shutil.copy(PICTURE, folder)
    (folder / "rows.jsonl").write_text('{"image": "cat.png", "caption": "a zorb"}\n', "utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", "my rows/rows.jsonl", *SHORT.split(), "--output-dir", "my pupil"]) == 0
    _, _, told = capsys.readouterr().out.partition("To go on")
    commands = [shlex.split(line)[1:] for line in told.splitlines() if line.startswith("  visglm ")]
    assert [words[0] for words in commands] == ["chat", "evaluate", "app"]
    chat, evaluate, app = commands
    assert main(chat) == 0
    assert capsys.readouterr().out.strip()
    assert main([*evaluate, "--max-new-tokens", "4"]) == 0
    assert build_parser("app").parse_args(app).model == ["my pupil"]
