"""Two processes (gloo, on the CPU) learn what one does, and leave a result that one process loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from visglm import VisGLM

from .samples import captions, picture

SETTINGS: dict[str, Any] = {
    "max_steps": 3, "every": 3, "num_workers": 0, "held_out": 0.2, "report_to": "none", "rank": 4, "dropout": 0.0,
    "learning_rate": 5e-3, "num_samples": 0, "accumulation": 1,
    "replay": 0.0,  # of which one process alone learns by all that could be said
}  # fmt: skip
# How accelerate launch hands its configuration on, see finetune/fsdp2.accelerate.yaml.
KINDS = {
    "ddp": {},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    },
}


ROOT = Path(__file__).parents[2]


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "report.json").read_text("utf-8"))["history"]
    return [row.get("loss", row.get("eval_loss")) for row in history]


def run_both(tmp_path: Path, launcher: list[str], environment: dict[str, str], *more: str) -> None:
    """The same fine-tuning into the folder "one" by this process, and into "two" by those of the launcher."""
    path = captions(tmp_path, 12)
    VisGLM.from_pretrained().finetune(path, output_dir=tmp_path / "one", batch_size=2, **SETTINGS)
    words = [word for name, value in SETTINGS.items() for word in ("--" + name.replace("_", "-"), str(value))]
    output = ["--output-dir", str(tmp_path / "two"), "--batch-size", "1", "--device", "cpu"]
    command = [sys.executable, *launcher, "-m", "visglm", "finetune", str(path), *words, *output, *more]
    subprocess.run(command, env=os.environ | environment, check=True, timeout=1500)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(kind, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run_both(tmp_path, launcher, KINDS[kind] | {"ACCELERATE_USE_CPU": "true"})
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    answers = [
        VisGLM.from_pretrained(tmp_path / folder).chat(picture(1), "What is this?", max_new_tokens=6).text
        for folder in ("one", "two")
    ]
    assert answers[0] == answers[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_deepspeed_learns_about_what_one_process_does(kind, tmp_path):
    """By the shipped configurations, in bfloat16, in which DeepSpeed keeps the weights: hence about."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not among the extras")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / f"finetune/{kind}.accelerate.yaml")]
    run_both(tmp_path, launcher, {"DS_ACCELERATOR": "cpu"}, "--precision", "bf16")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0.03)
    assert VisGLM.from_pretrained(tmp_path / "two").chat(picture(1), "What is this?", max_new_tokens=6).text
