"""Nonsense of every kind goes through the doors: a table or one sentence comes out, never a traceback."""

from __future__ import annotations

import io
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from visglm import VisGLM
from visglm.cli import main
from visglm.errors import DataError

from .fuzz import make_row, write_nonsense
from .samples import picture, write_pictures

ROWS_PER_FILE = 50
KINDS = "row|missing file|refused image|unreadable image|empty answer|too long"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path, 2)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


def encoded() -> bytes:
    file = io.BytesIO()
    picture(0).resize((16, 16)).save(file, "PNG")
    return file.getvalue()


def check_nonsense(folder: Path, capsys: pytest.CaptureFixture[str], num_rows: int) -> Counter:
    """`visglm data check` on about so many rows; how many were used and counted as bad, files by exit status."""
    found: Counter = Counter()
    png = encoded()
    for seed in range(-(-num_rows // ROWS_PER_FILE)):
        path = write_nonsense(folder, random.Random(seed), ROWS_PER_FILE, png)
        status = main(["data", "check", str(path), "--max-length", "200", "--all"])
        captured = capsys.readouterr()
        out = captured.out
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]", out + captured.err)
        assert "Traceback" not in out + captured.err
        found[f"status {status}"] += 1
        if status == 1:  # of the file as a whole
            assert path.name in captured.err and "cannot be used" not in out
        else:
            assert "can be used" in out and "would be cut" in out
            used = int(re.findall(r"^(\d+) rows? can be used", out, re.MULTILINE)[0])
            found["used"] += used
            bad = sum(int(count) for _, count in re.findall(rf"^({KINDS}): (\d+)$", out, re.MULTILINE))
            told = re.findall(rf"^  {re.escape(str(path))}:.*: (?!the same as)", out, re.MULTILINE)
            assert len(told) >= bad
            if path.suffix == ".jsonl":
                assert used + bad == sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
            assert status == (3 if bad else 0)
            found["bad"] += bad
        path.unlink()
    return found


def test_nonsense_ends_with_a_table(folder, capsys):
    found = check_nonsense(folder, capsys, 600)
    assert found["used"] > 50 and found["bad"] > 100


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ten_thousand_rows_of_nonsense_end_with_a_table(folder, capsys):
    found = check_nonsense(folder, capsys, 10_000)
    assert found["used"] > 1000 and found["bad"] > 2000
    print(dict(found))


def test_nonsense_in_memory_and_on_disk_ends_no_training_and_no_evaluation(folder, monkeypatch):
    monkeypatch.chdir(folder)
    chance = random.Random(0)
    rows = [make_row(chance) for _ in range(300)]
    vlm = VisGLM.from_pretrained()
    evaluation = vlm.evaluate(rows, max_new_tokens=1, progress=False)
    assert evaluation.metrics["num_answers"] > 30 and evaluation.metrics["num_errors"] > 30
    evaluation.save(folder / "evaluation")
    settings = {"max_steps": 3, "batch_size": 2, "num_workers": 0, "report_to": "none", "max_bad_rows": 0.99, "rank": 2}
    report = vlm.finetune(rows, output_dir=folder / "out", max_length=200, held_out=0.2, **settings)
    assert report.data["rows_left_out"] > 30 and report.data["answers"] > 30


def test_nonsense_is_converted_or_left_out(folder):
    from visglm.training import check_data, convert_data

    processor = VisGLM.from_pretrained().processor
    png = encoded()
    for seed in range(12):
        path = write_nonsense(folder, random.Random(1000 + seed), ROWS_PER_FILE, png)
        try:
            num_written, problems = convert_data(path, folder / "common.jsonl")
        except DataError:
            continue
        assert all(str(path) in problem for problem in problems)
        if num_written:
            again = check_data(folder / "common.jsonl", processor, max_length=10_000)
            kinds = {kind for kind, _, _ in again.problems}
            assert kinds <= {"missing file", "unreadable image", "refused image"}
        path.unlink()
