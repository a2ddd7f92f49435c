"""Answers that quote: several tokens at a time, and the same ones."""

from __future__ import annotations

import random

import pytest

from tests.engine.networks import BACKBONES, CHANGES, alone, check_same, ids_of, request, run
from visglm.engine import engine_of
from visglm.engine.choosing import Dictated
from visglm.engine.lookup import FARTHEST, FIRST, Lookup
from visglm.engine.task import Request
from visglm.sampling import Sampling


class Passes:
    """Tokens that each pass through the head has chosen from."""

    def __init__(self, network):
        self.lengths: list[int] = []
        network.lm_head.register_forward_pre_hook(lambda module, arguments: self.lengths.append(arguments[0].shape[1]))


def prompt_of(network, seed: int = 0) -> list[int]:
    dice = random.Random(seed)
    ids = [dice.randrange(10, 400) for _ in range(60)]
    config = network.config.text_config
    return [*ids, config.gmask_token_id, config.bos_token_id] if network.model.text.reads_prefix_both_ways else ids


def quoting(network, ids: list[int], said: list[int]) -> Request:
    """An answer that says these, whatever the network thinks of them."""
    chooser = Dictated(said, Sampling(logprobs=2), network.device)
    return Request(ids, len(said), chooser)


@pytest.fixture(params=BACKBONES)
def network(request):
    return BACKBONES[request.param]()


def test_a_quotation_takes_few_steps_and_each_token_is_as_likely_as_one_by_one(network):
    """What is said of every token, alternatives included, is what it is in company, where nothing is guessed."""
    ids = prompt_of(network)
    said = [7, 8, *ids[5:45], 9, *ids[20:26], 11]
    passes = Passes(network)
    [found] = run(engine_of(network), [quoting(network, ids, said)])
    assert ids_of(found) == said
    assert len(passes.lengths) < 22 and max(passes.lengths) == FARTHEST + 1
    passes.lengths.clear()
    one, _ = run(engine_of(network), [quoting(network, ids, said), quoting(network, ids[1:], said)])
    assert set(passes.lengths) == {1} and len(passes.lengths) >= len(said)
    for ours, theirs in zip(found.tokens, one.tokens, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=2e-4)
        assert dict(ours.alternatives) == pytest.approx(dict(theirs.alternatives), abs=2e-4)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", BACKBONES)
def test_greedy_answers_are_those_of_generate(name, change):
    """Long enough for random networks to repeat themselves."""
    network = CHANGES[change](BACKBONES[name]())
    for seed in range(3):
        ids = prompt_of(network, seed)
        ids[3:3] = ids[20:40]
        one = request(network, ids, 60)
        [outcome] = run(engine_of(network), [one])
        check_same(network, one, alone(network, one), ids_of(outcome), is_part=False)


@pytest.mark.parametrize("name", BACKBONES)
def test_products_for_one_token_are_given_one(name):
    """Those of int8 would round what is read together otherwise."""
    network = CHANGES["int8"](BACKBONES[name]())
    ids, passes = prompt_of(network), Passes(network)
    [outcome] = run(engine_of(network), [quoting(network, ids, ids[5:30])])
    assert ids_of(outcome) == ids[5:30] and set(passes.lengths) == {1}


@pytest.mark.parametrize("place", [0, 1, 5, 30])
def test_an_end_inside_a_quotation_ends_the_answer(network, place):
    """Nothing is said, nor kept, of what was guessed behind it; who comes next finds a clean slot."""
    ids = prompt_of(network)
    said = [7, *ids[5:45]]
    one = quoting(network, ids, said)
    seen: list[int] = []
    object.__setattr__(one, "has_ended", lambda token: seen.append(token) or len(seen) > place)
    [outcome] = run(engine_of(network), [one])
    assert ids_of(outcome) == said[: place + 1] == seen and outcome.finish_reason == "stop"
    following = request(network, [*ids, *said, *ids[-2:]], 20)
    wanted = alone(network, following)
    check_same(network, following, wanted, ids_of(run(engine_of(network), [following])[0]), is_part=False)


def test_whoever_joins_a_quotation_has_his_own_answer(network):
    ids, engine = prompt_of(network), engine_of(network)
    other = request(network, ids[9:], 12)
    wanted = alone(network, other)
    [ticket] = engine.submit(quoting(network, ids, [*ids[5:40]] * 3))
    next(ticket)
    [joined] = run(engine, [other])
    check_same(network, other, wanted, ids_of(joined), is_part=False)
    assert ids_of(ticket.result()) == [*ids[5:40]] * 3


def test_a_draw_by_a_seed_is_the_same_with_and_without(network):
    ids = prompt_of(network)
    ids[3:3] = ids[20:40] * 2
    settings = {"temperature": 0.3, "top_k": 3, "seed": 5}
    [one] = run(engine_of(network), [request(network, ids, 40, **settings)])
    both = run(engine_of(network), [request(network, ids, 40, **settings), request(network, ids[1:], 40)])
    assert ids_of(one) == ids_of(both[0])


def test_what_is_guessed():
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3])
    assert lookup.guess(9) == [4, 5, 6, 7][:FIRST] and lookup.guess(2) == [4, 5] and lookup.guess(0) == []
    lookup.learn(FIRST, FIRST)
    assert lookup.guess(99) == [4, 5, 6, 7, 8, 9, 1, 2]
    lookup.catch_up([40])
    assert lookup.num_taken == 1 and lookup.guess(9) == []
    lookup.catch_up([1, 2, 3])
    assert lookup.guess(1) == [40]  # the latest
    for _ in range(9):
        lookup.learn(1, 0)
    assert len(lookup.guess(9)) == 1
    assert Lookup([1, 2, 3, 0, 5, 1, 2, 3], never=0).guess(9) == []
