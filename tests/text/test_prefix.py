"""P-Tuning v2 inside the text model: parity with SwissArmyTransformer, caches, gradients."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import GOLDEN, expected, golden_model
from visglm.errors import ConfigError
from visglm.text import attach_prefix, detach_prefix, prefixes, prompt_embeddings, set_prompt_embeddings


@pytest.fixture
def model():
    model = golden_model()
    delta = torch.load(GOLDEN / "visualglm-sat-ptuning/delta.pt", weights_only=True)
    with torch.no_grad():
        for index, prefix in enumerate(attach_prefix(model.model.text, 5)):
            prefix.table.copy_(delta[f"mixins.ptuning.prefix.{index}"])
    return model


@pytest.fixture
def input_ids(model):
    ids = expected("visualglm")["input_ids"]
    return ids.masked_fill(ids == 3, model.config.image_token_id)


@torch.no_grad()
def test_logits_are_those_of_swissarmytransformer(model, input_ids):
    golden = expected("ptuning")
    logits = model(input_ids, image_embeds=expected("vision")["image_embeds"]).logits
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=1e-4)
    text_logits = model(expected("visualglm")["text_ids"]).logits
    torch.testing.assert_close(text_logits, golden["text_logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("cache", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_caches_and_attention_kinds_agree(model, input_ids, cache):
    arguments = {"image_embeds": expected("vision")["image_embeds"], "max_new_tokens": 6, "eos_token_id": None}
    plain = model.generate(input_ids[:, :44], **arguments)
    assert torch.equal(model.generate(input_ids[:, :44], **arguments, **cache), plain)
    model.set_attn_implementation("eager")
    assert torch.equal(model.generate(input_ids[:, :44], **arguments, **cache), plain)


def test_only_the_prefix_learns_and_it_goes_away_again(model):
    text = model.model.text
    model.requires_grad_(False)
    for prefix in prefixes(text):
        prefix.requires_grad_(True)
    golden = expected("visualglm")
    model.train().gradient_checkpointing_enable()
    model(golden["text_ids"], labels=golden["text_ids"]).loss.backward()
    assert all(prefix.table.grad.abs().sum() > 0 for prefix in prefixes(text))
    detach_prefix(text)
    assert not prefixes(text)
    with torch.no_grad():
        logits = model.eval()(golden["text_ids"]).logits
    torch.testing.assert_close(logits, golden["text_logits"], rtol=0, atol=1e-4)


def test_the_table_survives_the_layout_of_peft(model):
    text = model.model.text
    table = prompt_embeddings(text)
    assert table.shape == (5, 3 * 2 * 64)
    before = [prefix.table.clone() for prefix in prefixes(text)]
    set_prompt_embeddings(text, torch.zeros_like(table))
    assert not any(prefix.table.any() for prefix in prefixes(text))
    set_prompt_embeddings(text, table)
    assert all(torch.equal(prefix.table, old) for prefix, old in zip(prefixes(text), before, strict=True))


def test_what_does_not_fit_is_refused(model):
    text = model.model.text
    with pytest.raises(ConfigError, match=r"\[5, 383\]; this model takes \[5, 384\]"):
        set_prompt_embeddings(text, torch.zeros(5, 383))
    with pytest.raises(ConfigError, match="already"):
        attach_prefix(text, 2)
    detach_prefix(text)
    with pytest.raises(ConfigError, match="at least 1"):
        attach_prefix(text, 0)
