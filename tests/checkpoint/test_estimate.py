"""Estimates against what loading really takes."""

from __future__ import annotations

import pytest
import torch

from visglm import checkpoint
from visglm.checkpoint import EMBEDDED_MODEL, RandomSource, choose_quantization, estimate
from visglm.checkpoint.estimate import part_of
from visglm.cli import main
from visglm.quant import QuantizedEmbedding

CPU = torch.device("cpu")


def loaded_bytes(network) -> dict[str, int]:
    found: dict[str, int] = {}
    in_files = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, QuantizedEmbedding)}
    for name, tensor in network.state_dict().items():
        if name in in_files:
            continue
        found[part_of(name)] = found.get(part_of(name), 0) + tensor.nbytes
    return found


@pytest.mark.parametrize("scheme", [None, "int8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resident_is_what_the_loaded_weights_take(tmp_path, scheme, dtype):
    source = RandomSource("visglm-tiny", EMBEDDED_MODEL)
    checkpoint.convert(source, tmp_path / "model", "native")
    opened = checkpoint.open_source(tmp_path / "model")
    found = estimate(opened, choose_quantization(opened, scheme, False), CPU, dtype)
    assert opened.config.quantization is None  # it was only asked
    network, *_ = checkpoint.load(tmp_path / "model", device=CPU, dtype=dtype, quantize=scheme)
    measured = loaded_bytes(network)
    assert found.resident.keys() == measured.keys()
    for part, size in measured.items():
        assert found.resident[part] == pytest.approx(size, rel=0.1)
    files = (tmp_path / "model").glob("*.safetensors")
    assert sum(found.disk.values()) == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)
    assert found.load_peak >= sum(found.resident.values())


def test_the_published_size_in_int4(capsys):
    assert main(["estimate", "visualglm-6b", "--quantize", "int4", "--device", "cpu"]) == 0
    lines = {line[:12].strip(): line[12:].split() for line in capsys.readouterr().out.splitlines()}
    assert 15.5 < float(lines["together"][0]) < 15.7
    assert 5.5 < float(lines["together"][1]) < 6.0
    assert float(lines["load peak"][0]) < 8
