"""What loading takes from the machine, in a process of its own, against what `estimate` says beforehand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from visglm import checkpoint
from visglm.checkpoint import choose_quantization, estimate
from visglm.cli import main
from visglm.config import PRESETS
from visglm.quant.layers import BLOCK_SIZE

MAPPED_BYTES = 32 * 2**20  # of a pickle at a time
WORKING_BYTES = 8 * BLOCK_SIZE * 4  # of the rows that are being packed: float32, a few times
# Of the size of a small real model: 165 million numbers, 330 MB in 16 bits.
TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 10, "num_attention_heads": 16}
LOAD = """
import gc, json, os, sys
from pathlib import Path
import torch
from visglm import checkpoint
from visglm.checkpoint import files
from visglm.quant.memory import give_back_memory

files.MAPPED_BYTES = int(sys.argv[3])

def memory(name):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) * 1024

folder, options = sys.argv[1], json.loads(sys.argv[2])
checkpoint.load(None, device="cpu", dtype="float32", quantize=options["quantize"])  # whatever that has to import
gc.collect()
give_back_memory()
Path("/proc/self/clear_refs").write_text("5")  # forget the peak
before = memory("VmRSS")
network, processor, _ = checkpoint.load(folder, device="cpu", **options)
gc.collect()
give_back_memory()
print(json.dumps({"resident": memory("VmRSS") - before, "peak": memory("VmHWM") - before}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "model"
    tiny = PRESETS["visglm-tiny"]
    text = {**tiny["text_config"], **TEXT, "vocab_size": 20_000}
    with pytest.MonkeyPatch.context() as patch:
        vision = {**tiny["vision_config"], "stem": None}  # which the old formats cannot hold
        patch.setitem(PRESETS, "medium", {**tiny, "text_config": text, "vision_config": vision})
        assert main(["new", str(folder), "--preset", "medium", "--random"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the memory of a process there")
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize(("scheme", "dtype"), [(None, "float16"), ("int8", "float32"), ("int4", "float32")])
def test_loading_takes_what_is_estimated(folder, tmp_path, suffix, scheme, dtype):
    if suffix == ".bin":
        assert main(["convert", str(folder), str(tmp_path / "legacy"), "--to", "hf-legacy"]) == 0
        folder = tmp_path / "legacy"
    (weights,) = folder.glob(f"*{suffix}")  # one file, larger than what is read of it at a time
    source = checkpoint.open_source(folder)
    largest = max(info.num_bytes for info in source.keys().values())
    assert weights.stat().st_size > 4 * max(largest, MAPPED_BYTES)
    quantization = choose_quantization(source, scheme, False)
    expected = estimate(source, quantization, torch.device("cpu"), getattr(torch, dtype))
    options = json.dumps({"dtype": dtype, "quantize": scheme})
    command = [sys.executable, "-c", LOAD, folder, options, str(MAPPED_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["resident"] == pytest.approx(sum(expected.resident.values()), rel=0.1)
    mapped = MAPPED_BYTES if suffix == ".bin" else 0
    assert found["peak"] <= 1.1 * expected.load_peak + mapped + WORKING_BYTES
    assert found["peak"] <= found["resident"] + 2 * largest + mapped + WORKING_BYTES
