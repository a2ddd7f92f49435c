"""The family's own int8 and int4 checkpoints: packed as its documentation says, loaded as what they stand for."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.tiny import GOLDEN_HF, golden_model
from visglm import VisGLM

LINEARS = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


def pack(weight, bits):
    largest = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=-1) / largest
    values = (weight / scale[:, None]).round().clamp(-largest, largest).to(torch.int8)
    stored = values if bits == 8 else (values[:, 0::2] << 4) | (values[:, 1::2] & 15)
    return stored, scale.half(), values * scale.half().float()[:, None]


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_weights_are_read(tmp_path, bits):
    shutil.copytree(GOLDEN_HF, tmp_path / "model")
    config = tmp_path / "model/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_bit": bits}))
    shard = tmp_path / "model/pytorch_model-00001-of-00002.bin"
    content = torch.load(shard, weights_only=True)
    meant = {}
    for name in [name for name in content if name.endswith(".weight") and any(part in name for part in LINEARS)]:
        content[name], content[name + "_scale"], meant[name] = pack(content[name], bits)
    torch.save(content, shard)
    vlm = VisGLM.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    loaded, plain = vlm.model.state_dict(), golden_model().state_dict()
    name = "layers.1.mlp.dense_h_to_4h.weight"
    difference = (loaded["model.text." + name] - meant["transformer." + name]).abs()
    assert bool((difference <= 1e-3 * meant["transformer." + name].abs()).all())
    for name, tensor in plain.items():
        if name in loaded:
            limit = tensor.abs().max() / (2 ** (bits - 1) - 1) * 0.6
            assert (loaded[name] - tensor).abs().max() <= limit or not any(part in name for part in LINEARS), name
    assert vlm.chat(None, "你好", max_new_tokens=2).usage.completion_tokens
