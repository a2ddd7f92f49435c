"""The held-out loss is the mean over all tokens to learn, however they are put into batches and onto processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visglm import VisGLM
from visglm.prompt import IGNORE_INDEX
from visglm.training.containers import open_rows
from visglm.training.data import TrainingData
from visglm.training.index import build_index
from visglm.training.renderer import Renderer

from .samples import captions, picture, write_lines

# Nothing is learnt: the loss measured is that of the model as it came.
STILL: dict[str, Any] = {
    "max_steps": 1, "num_workers": 0, "report_to": "none", "rank": 2, "num_samples": 0, "learning_rate": 1e-12,
    "warmup": 0.9,
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Rows to train on, and seven to measure on whose answers are of very different lengths."""
    path = captions(tmp_path, 12)
    for number in range(7):
        picture(number + 30).save(tmp_path / "pictures" / f"held-{number}.png")
    rows = [
        {"image": f"pictures/held-{number}.png", "caption": "A disc." + " It is round and has a colour." * number**2}
        for number in range(7)
    ]
    return path, write_lines(tmp_path / "held.jsonl", rows)


def held_out_losses(report: Any) -> list[float]:
    return [row["eval_loss"] for row in report["history"] if "eval_loss" in row]


@torch.no_grad()
def plain_loss(path: Path, max_length: int) -> float:
    """Every token of every answer, one row at a time."""
    vlm = VisGLM.from_pretrained()
    rows = open_rows(path)
    index = build_index(rows)
    data = TrainingData(rows, index, np.arange(len(index.rows)), Renderer(vlm.processor, max_length))
    total, count = 0.0, 0
    for item in map(data.__getitem__, range(len(data))):
        labels = item["labels"][None]
        logits = vlm.model(input_ids=item["input_ids"][None], pixel_values=item["pixel_values"], labels=labels).logits
        total += float(
            torch.nn.functional.cross_entropy(
                logits[0, :-1].float(), labels[0, 1:], ignore_index=IGNORE_INDEX, reduction="sum"
            )
        )
        count += int((labels[0, 1:] != IGNORE_INDEX).sum())
    return total / count


def test_the_held_out_loss_is_the_same_for_every_batch_size(files, tmp_path):
    path, held_out = files
    found = {}
    for batch_size in (1, 2, 6):
        report = VisGLM.from_pretrained().finetune(
            path, output_dir=tmp_path / f"{batch_size}", eval_data=str(held_out), batch_size=batch_size,
            max_length=250, **STILL,
        )  # fmt: skip
        found[batch_size] = held_out_losses({"history": report.history})[-1]
    expected = plain_loss(held_out, 250)
    assert found == pytest.approx(dict.fromkeys(found, expected), abs=1e-4)


@pytest.mark.slow
def test_the_held_out_loss_of_two_processes_counts_no_row_twice(files, tmp_path):
    path, held_out = files
    words = [
        word for name, value in STILL.items() for word in ("--" + name.replace("_", "-"), str(value))
    ]  # seven rows over two processes and batches of two: the last batch is filled up by rows seen before
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "visglm",
        "finetune", str(path), "--eval-data", str(held_out), "--output-dir", str(tmp_path / "two"),
        "--batch-size", "2", "--max-length", "250", "--device", "cpu", *words,
    ]  # fmt: skip
    subprocess.run(command, env=os.environ | {"ACCELERATE_USE_CPU": "true"}, check=True, timeout=1500)
    report = json.loads((tmp_path / "two" / "report.json").read_text("utf-8"))
    assert held_out_losses(report)[-1] == pytest.approx(plain_loss(held_out, 250), abs=1e-4)
