"""SwissArmyTransformer itself loads what visglm wrote, and computes the same."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import GOLDEN_HF, expected
from visglm import VisGLM
from visglm.checkpoint import convert, open_source

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sat") is None and not os.environ.get("VISGLM_NEEDS_SAT"),
    reason="SwissArmyTransformer is not installed: run `make test-sat`",
)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.timeout(600)
def test_it_loads_what_was_written_and_computes_the_same(tmp_path):
    convert(open_source(GOLDEN_HF), tmp_path / "native", "native")
    convert(open_source(tmp_path / "native"), tmp_path / "sat", "sat")
    golden = expected("visualglm")
    inputs = {name: golden[name] for name in ("input_ids", "text_ids")} | {
        "pixel_values": expected("vision")["pixel_values"]
    }
    save_file(inputs, tmp_path / "inputs.safetensors")
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0",
        "WANDB_MODE": "disabled", "SAT_HOME": str(tmp_path),
    }  # fmt: skip
    script = Path(__file__).with_name("sat_logits.py")
    paths = (tmp_path / "sat", tmp_path / "inputs.safetensors", tmp_path / "outputs.safetensors")
    result = subprocess.run(
        [sys.executable, str(script), *map(str, paths)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    theirs = load_file(tmp_path / "outputs.safetensors")

    model = VisGLM.from_pretrained(tmp_path / "sat", device="cpu").model
    ids = golden["input_ids"].masked_fill(golden["input_ids"] == 3, model.config.image_token_id)
    with torch.no_grad():
        ours = model(ids, pixel_values=inputs["pixel_values"]).logits
        text = model(golden["text_ids"]).logits
    torch.testing.assert_close(theirs["logits"], ours, rtol=0, atol=1e-3)
    torch.testing.assert_close(theirs["text_logits"], text, rtol=0, atol=1e-4)
    torch.testing.assert_close(theirs["text_logits"], golden["text_logits"], rtol=0, atol=1e-4)
