"""What a network looks with: told apart where the weights differ, or an adapter of the vision tower is in use."""

from __future__ import annotations

import pytest
from PIL import Image

from visglm import VisGLM
from visglm.errors import PromptError
from visglm.identity import vision_fingerprint

FAST = {"max_steps": 1, "batch_size": 2, "num_workers": 0, "held_out": 0.0, "num_samples": 0, "report_to": "none"}


@pytest.fixture(scope="module")
def rows():
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A square."}]
    return [{"images": [Image.new("RGB", (60, 40), "red")], "messages": turns}] * 2


@pytest.mark.parametrize("towers, changes", [("text", False), ("qformer", True)])
def test_an_adapter_counts_where_it_looks_and_while_it_is_used(rows, towers, changes, tmp_path):
    vlm = VisGLM.from_pretrained(device="cpu")
    base = vision_fingerprint(vlm.model)
    history = vlm.chat(rows[0]["images"][0], "What?", max_new_tokens=1).history
    assert history.source == base == vision_fingerprint(VisGLM.from_pretrained(device="cpu").model)
    vlm.finetune(rows, "lora", tmp_path / "out", towers=towers, learning_rate=0.1, **FAST)
    assert (vision_fingerprint(vlm.model) != base) == changes
    with vlm.adapter_disabled():
        assert vision_fingerprint(vlm.model) == base
        vlm.chat(None, "And?", history, max_new_tokens=1)
    if changes:
        with pytest.raises(PromptError, match="before this one learnt or changed its adapter"):
            vlm.chat(None, "And?", history, max_new_tokens=1)
    again = VisGLM.from_pretrained(tmp_path / "out", device="cpu")
    assert vision_fingerprint(again.model) == vision_fingerprint(vlm.model)
