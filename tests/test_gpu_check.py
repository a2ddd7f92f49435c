"""The look at a GPU, by way of a CPU: the script runs to its end, and its numbers are right where they can be here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NO_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu_check.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_goes_from_bfloat16_to_qlora():
    command = [sys.executable, str(SCRIPT), "--preset", "visglm-tiny", "--device", "cpu", "--tokens", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=SCRIPT.parents[1])
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in done.stdout.splitlines() if line[:1] == "|"}
    for name in ("bfloat16", "int8", "int4", "nf4"):
        assert len(rows[name]) == 9 and float(rows[name][2]) > 0
    assert "QLoRA, 2 rows a step:" in done.stdout


def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, str(SCRIPT), "--device", "cuda"], capture_output=True, text=True, env=NO_GPU)
    assert done.returncode == 1 and "there is no CUDA device here" in done.stderr
