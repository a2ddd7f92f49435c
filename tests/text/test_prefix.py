"""P-Tuning v2 inside the text model: caches and gradients. Parity is in tests/checkpoint/test_golden.py."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.tiny import GOLDEN, GOLDEN_CHATGLM2, expected, golden_model
from visglm.checkpoint import assemble, open_source
from visglm.errors import ConfigError
from visglm.text.prefix import attentions, prefix_shape, put_prefixes, take_prefixes


def glm_model():
    return assemble(open_source(GOLDEN_CHATGLM2), device=torch.device("cpu"), dtype=torch.float32)


# Backbone → its golden network, and rows of text whose first 11 tokens are a whole prompt.
BACKBONES = {
    "chatglm": (golden_model, lambda: expected("visualglm")["text_ids"][:2]),
    "glm": (glm_model, lambda: expected("chatglm2")["input_ids"][:, :17]),
}


def with_prefix(backbone: str):
    make, _ = BACKBONES[backbone]
    model = make()
    torch.manual_seed(0)
    tables = {
        name: torch.nn.Parameter(torch.randn(2, heads, 5, size))
        for name, module in attentions(model.model.text)
        for heads, size in [prefix_shape(model.model.text.config, module)]
    }
    put_prefixes(model.model.text, tables)
    return model


def generated_logits(model, ids, **arguments):
    """`[batch, 4, vocab_size]` of the tokens that follow."""
    found = model.generate(
        ids, max_new_tokens=4, eos_token_id=None, output_logits=True, return_dict_in_generate=True, **arguments
    )
    return torch.stack(found.logits, dim=1)


@pytest.fixture
def model():
    model = golden_model()
    delta = torch.load(GOLDEN / "visualglm-sat-ptuning/delta.pt", weights_only=True)
    tables = {
        name: torch.nn.Parameter(delta[f"mixins.ptuning.prefix.{index}"].clone())
        for index, (name, _) in enumerate(attentions(model.model.text))
    }
    put_prefixes(model.model.text, tables)
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
    take_prefixes(text)
    with torch.no_grad():
        logits = model(golden["text_ids"]).logits
    torch.testing.assert_close(logits, golden["text_logits"], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_attention_sees_the_prefix(backbone, attention):
    """In a left-padded batch as one by one, with every kind of cache as without: the logits of SDPA on one row."""
    rows, num_padded = BACKBONES[backbone][1](), 3
    short = rows[1:, num_padded:]
    reference = with_prefix(backbone)
    wanted = [reference(row).logits[0] for row in (rows[:1], short)]
    next_wanted = [generated_logits(reference, row[:, :length], use_cache=False)[0]
                   for row, length in ((rows[:1], 11), (short, 11 - num_padded))]  # fmt: skip
    take_prefixes(reference.model.text)
    assert (reference(rows[:1]).logits[0] - wanted[0]).abs().max() > 0.1

    model = with_prefix(backbone)
    model.set_attn_implementation(attention)
    assert model.model.text.config._attn_implementation == attention
    mask = torch.ones_like(rows)
    mask[1, :num_padded] = 0
    logits = model(rows, attention_mask=mask).logits
    torch.testing.assert_close(logits[0], wanted[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(logits[1, num_padded:], wanted[1], rtol=0, atol=1e-3)
    for cache in ({"use_cache": True}, {"use_cache": False}, {"cache_implementation": "static"}):
        found = generated_logits(model, rows[:, :11], attention_mask=mask[:, :11], **cache)
        torch.testing.assert_close(found, torch.stack(next_wanted), rtol=0, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_attention_that_might_not_see_the_prefix_is_refused(backbone):
    AttentionInterface.register("somebody_elses", ALL_ATTENTION_FUNCTIONS["sdpa"])
    AttentionMaskInterface.register("somebody_elses", sdpa_mask)
    model, rows = with_prefix(backbone), BACKBONES[backbone][1]()
    model.set_attn_implementation("somebody_elses")
    with pytest.raises(ConfigError, match="eager or sdpa attention; this text model computes with 'somebody_elses'"):
        model(rows)
    take_prefixes(model.model.text)
    torch.testing.assert_close(model(rows).logits, BACKBONES[backbone][0]()(rows).logits)
