"""The emoji example and the notebook, on a slice of their data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from visglm.training.containers import open_rows
from visglm.training.index import build_index

ROOT = Path(__file__).parents[2]
EMOJI = ROOT / "finetune/emoji"


def test_the_committed_captions_can_all_be_used():
    counts = {}
    for part in ("train", "test", "old"):
        rows = open_rows(EMOJI / f"{part}.jsonl")
        index = build_index(rows)
        assert not index.problems
        counts[part] = len(rows)
    assert counts == {"train": 300, "test": 100, "old": 200}
    assert len(list(EMOJI.glob("pictures/*/*.png"))) == 400
    assert sum(path.stat().st_size for path in EMOJI.glob("pictures/*/*.png")) < 900_000


def test_no_picture_is_in_both_parts():
    pictures = [
        {row["images"][0].split("/")[-1] for row in map(json.loads, (EMOJI / f"{part}.jsonl").open(encoding="utf-8"))}
        for part in ("train", "test")
    ]
    assert not pictures[0] & pictures[1]


@pytest.mark.slow
def test_the_notebook_runs_on_a_slice(tmp_path):
    import nbclient
    import nbformat

    shutil.copytree(EMOJI / "pictures", tmp_path / "pictures")
    for part, count in (("train", 12), ("test", 1)):
        lines = (EMOJI / f"{part}.jsonl").read_text("utf-8").splitlines()[:count]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    settings = {"VISGLM_EMOJI": str(tmp_path), "VISGLM_STEPS": "2", "VISGLM_OUTPUT": str(tmp_path / "out")}
    notebook = nbformat.read(ROOT / "examples/finetune.ipynb", as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(ROOT)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output
    )
    assert "12 rows, 0 problems" in printed and "again:" in printed


@pytest.mark.slow
def test_the_emoji_example_prints_its_table(tmp_path):
    command = [sys.executable, EMOJI / "run.py", "--output", tmp_path / "out", "--max-steps", "2", "--rows", "4"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ), timeout=1500)
    assert "| old: right name in Chinese |" in done.stdout and "seconds with both tests" in done.stdout
