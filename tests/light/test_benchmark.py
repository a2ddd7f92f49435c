"""What measures the player at full size runs to its end, at a small one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/light_full_size.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_few_layers_are_exported_played_and_measured(tmp_path):
    command = [sys.executable, str(SCRIPT), "--preset", "visglm-tiny", "--layers", "2", "--rounds", "1"]
    command += ["--tokens", "6", "--place", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in done.stdout.splitlines() if line[:1] == "|"}
    for name in ("load", "one picture", "decode", "memory at most"):
        light, torch = (float(cell.split()[0]) for cell in rows[name][:2])
        assert light > 0 and torch > 0
    assert "on disk" in done.stdout and "InferLLM" not in done.stdout
    assert not list(tmp_path.iterdir())  # six gigabytes at full size
