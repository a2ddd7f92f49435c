"""P-Tuning v2 inside the text model: caches and gradients. Parity is in tests/checkpoint/test_golden.py."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import GOLDEN, expected, golden_model
from visglm.text.prefix import add_prefix, attentions, enable_prefix


@pytest.fixture
def model():
    model = golden_model()
    delta = torch.load(GOLDEN / "visualglm-sat-ptuning/delta.pt", weights_only=True)
    add_prefix(model.model.text, 5)
    with torch.no_grad():
        for index, (_, module) in enumerate(attentions(model.model.text)):
            module.prefix.copy_(delta[f"mixins.ptuning.prefix.{index}"])
    return model


@pytest.mark.parametrize("cache", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_caches_agree(model, cache):
    ids = expected("visualglm")["input_ids"]
    ids = ids.masked_fill(ids == 3, model.config.image_token_id)[:, :44]
    arguments = {"image_embeds": expected("vision")["image_embeds"], "max_new_tokens": 6, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **arguments, **cache), model.generate(ids, **arguments))


def test_only_the_prefix_learns_and_it_can_be_switched_off(model):
    text = model.model.text
    model.requires_grad_(False)
    for _, module in attentions(text):
        module.prefix.requires_grad_(True)
    golden = expected("visualglm")
    model(golden["text_ids"], labels=golden["text_ids"]).loss.backward()
    assert all(module.prefix.grad.abs().sum() > 0 for _, module in attentions(text))
    enable_prefix(text, False)
    with torch.no_grad():
        logits = model(golden["text_ids"]).logits
    torch.testing.assert_close(logits, golden["text_logits"], rtol=0, atol=1e-4)
