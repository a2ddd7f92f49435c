"""What loading takes from the machine, in a process of its own, against what `estimate` says beforehand."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from visglm import checkpoint
from visglm.checkpoint import choose_quantization, estimate
from visglm.checkpoint.writer import ShardWriter
from visglm.cli import main
from visglm.config import PRESETS
from visglm.quant.layers import BLOCK_SIZE

SHARD_BYTES = 64 * 2**20
WORKING_BYTES = 8 * BLOCK_SIZE * 4  # of the rows that are being packed: float32, a few times
# Of the size of a small real model: 165 million numbers, 330 MB in 16 bits.
TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 10, "num_attention_heads": 16}
LOAD = """
import gc, json, os, sys
from pathlib import Path
import torch
from visglm import checkpoint

def memory(name):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) * 1024

folder, options = sys.argv[1], json.loads(sys.argv[2])
checkpoint.load(None, device="cpu", dtype="float32", quantize=options["quantize"])  # whatever that has to import
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # forget the peak
before = memory("VmRSS")
network, processor = checkpoint.load(folder, device="cpu", **options)
gc.collect()
print(json.dumps({"resident": memory("VmRSS") - before, "peak": memory("VmHWM") - before}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "model"
    tiny = PRESETS["visglm-tiny"]
    text = {**tiny["text_config"], **TEXT, "vocab_size": 20_000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "medium", {**tiny, "text_config": text})
        small_files = functools.partial(ShardWriter, shard_bytes=SHARD_BYTES)
        patch.setattr(sys.modules["visglm.checkpoint.convert"], "ShardWriter", small_files)
        assert main(["new", str(folder), "--preset", "medium", "--random"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the memory of a process there")
@pytest.mark.parametrize(("scheme", "dtype"), [(None, "float16"), ("int8", "float32"), ("int4", "float32")])
def test_loading_takes_what_is_estimated(folder, scheme, dtype):
    source = checkpoint.open_source(folder)
    assert len(list(folder.glob("*.safetensors"))) > 4
    quantization = choose_quantization(source.config, scheme, False)
    expected = estimate(source, quantization, torch.device("cpu"), getattr(torch, dtype))
    options = json.dumps({"dtype": dtype, "quantize": scheme})
    done = subprocess.run([sys.executable, "-c", LOAD, folder, options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    resident = sum(expected.resident.values())
    assert found["resident"] == pytest.approx(resident, rel=0.1)
    assert found["peak"] <= 1.1 * expected.load_peak
    assert found["peak"] <= found["resident"] + SHARD_BYTES + WORKING_BYTES
