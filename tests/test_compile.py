"""torch.compile: shapes are dynamic after the second length, and no later one compiles anything again."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from tests.tiny import expected, golden_model

PROMPT_LENGTH = 44


@pytest.fixture
def model():
    torch._dynamo.reset()
    counters.clear()
    yield golden_model()
    torch._dynamo.reset()


def num_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def prompt(model, num_more: int = 0) -> dict[str, torch.Tensor]:
    ids = expected("visualglm")["input_ids"]
    ids = ids.masked_fill(ids == 3, model.config.image_token_id)[:, :PROMPT_LENGTH]
    words = ids[:, 34:35].expand(-1, num_more)
    return {
        "input_ids": torch.cat([ids[:, :34], words, ids[:, 34:]], dim=1),
        "image_embeds": expected("vision")["image_embeds"],
    }


@pytest.mark.slow
@torch.no_grad()
def test_prompts_of_other_lengths_compile_nothing(model):
    compiled = torch.compile(model, backend="eager")
    graphs = []
    for num_more in (0, 1, 2, 3, 7, 20):
        inputs = prompt(model, num_more)
        torch.testing.assert_close(compiled(**inputs, use_cache=False).logits, model(**inputs, use_cache=False).logits)
        graphs.append(num_graphs())
    assert graphs[0] > 0 and len(set(graphs[1:])) == 1, graphs


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_tokens_of_an_answer_compile_nothing(model, cache):
    graphs = []
    model.forward = torch.compile(model.forward, backend="eager")
    model.register_forward_hook(lambda *_: graphs.append(num_graphs()))
    ids = model.generate(
        **prompt(model), max_new_tokens=12, do_sample=False, eos_token_id=None, cache_implementation=cache
    )
    assert torch.equal(ids[:, PROMPT_LENGTH:], expected("visualglm")["greedy_ids"])
    assert graphs[0] > 0 and len(set(graphs[4:])) == 1, graphs
