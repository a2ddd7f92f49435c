"""Conversations of causal models: what was read is not read again, and no answer differs for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.engine.networks import BACKBONES, CHANGES, alone, check_same, ids_of, request, run
from visglm.engine import engine_of

CAUSAL = ("chatglm2", "glm4")
ROUNDED = ("int8", "int4")  # by fast products: one token otherwise than many, so that nothing is reused


class Counter:
    """How many tokens of prompts a network reads."""

    def __init__(self, network):
        self.lengths: list[int] = []
        network.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, arguments, settings) -> None:
        if settings.get("input_ids") is not None:
            self.lengths.append(settings["input_ids"].numel())


def pixels(network, seed: int, count: int = 1):
    size = network.config.vision_config.image_size
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def words(start: int, count: int) -> list[int]:
    return [10 + (start * 37 + place * 11) % 380 for place in range(count)]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", CAUSAL)
def test_a_conversation_is_read_once(name, change):
    network = CHANGES[change](BACKBONES[name]())
    engine, ids = engine_of(network), words(1, 30)
    for turn in range(4):
        one = request(network, ids, 8)
        wanted = alone(network, one)
        counter = Counter(network)
        [outcome] = run(engine, [one])
        check_same(network, one, wanted, ids_of(outcome), is_part=False)
        if turn and change not in ROUNDED:
            assert sum(counter.lengths) < 40 < len(ids)
        if change in ROUNDED:
            assert sum(counter.lengths) == len(ids)
        ids = [*ids, *ids_of(outcome)[:-1], *words(turn, 14)]


def test_nobody_goes_on_from_what_is_anothers():
    """How soon an answer begins would tell what others have asked."""
    network = BACKBONES["glm4"]()
    engine, counter, ids = engine_of(network), Counter(network), words(3, 40)
    for owner, is_read in (("a", True), ("b", True), ("", True), ("a", False), ("b", False)):
        counter.lengths.clear()
        run(engine, [replace(request(network, ids, 2), owner=owner)])
        assert (sum(counter.lengths) == len(ids)) == is_read, owner


def test_pictures_count():
    """The same words about other pictures are read anew from the first that differs."""
    network = BACKBONES["glm4"]()
    engine, slots = engine_of(network), [network.config.image_token_id] * network.config.num_query_tokens
    ids = [*words(0, 20), *slots, *words(1, 5), *slots, *words(2, 9)]
    both = pixels(network, 0, 2)
    run(engine, [request(network, ids, 4, both)])
    counter = Counter(network)
    for pictures, most in ((both, 2), (torch.cat([both[:1], pixels(network, 5)]), 13), (pixels(network, 7, 2), 22)):
        one = request(network, ids, 6, pictures)
        wanted = alone(network, one)
        counter.lengths.clear()
        [outcome] = run(engine, [one])
        check_same(network, one, wanted, ids_of(outcome), is_part=False)
        assert sum(counter.lengths) <= most + 1


def test_a_network_that_changed_reads_anew():
    network = BACKBONES["chatglm2"]()
    engine, counter, ids = engine_of(network), Counter(network), words(3, 40)
    run(engine, [request(network, ids, 3)])
    with torch.no_grad():
        network.model.text.layers[0].mlp.down_proj.weight.mul_(1.5)
    one = request(network, ids, 6)
    wanted = alone(network, one)
    counter.lengths.clear()
    check_same(network, one, wanted, ids_of(run(engine, [one])[0]), is_part=False)
    assert sum(counter.lengths) == 40
    with engine.turns.take(changes=True):
        pass
    counter.lengths.clear()
    run(engine, [request(network, ids, 3)])
    assert sum(counter.lengths) == 40


def test_what_is_kept_is_bounded():
    network = BACKBONES["chatglm2"]()
    engine, counter = engine_of(network), Counter(network)
    per_token = 2 * 3 * 2 * 16 * 4
    engine.shelf.num_bytes = 100 * per_token
    for start in (0, 1, 2):
        run(engine, [request(network, words(start, 40), 1)])
    counter.lengths.clear()
    run(engine, [request(network, words(2, 40), 1)])
    run(engine, [request(network, words(0, 40), 1)])
    assert counter.lengths == [2, 40]
    engine.shelf.num_bytes = 0
    counter.lengths.clear()
    run(engine, [request(network, words(5, 40), 1)])
    run(engine, [request(network, words(5, 40), 1)])
    assert counter.lengths == [40, 40]


def test_a_prefix_lm_reads_the_whole_conversation():
    network = BACKBONES["chatglm"]()
    config = network.config.text_config
    end = [config.gmask_token_id, config.bos_token_id]
    counter, ids = Counter(network), words(1, 40)
    run(engine_of(network), [request(network, [*ids, *end], 3)])
    run(engine_of(network), [request(network, [*ids, *words(2, 5), *end], 3)])
    assert counter.lengths == [42, 47]
