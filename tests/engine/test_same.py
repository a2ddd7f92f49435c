"""In whatever company, from whatever slot: the tokens of `generate` alone."""

from __future__ import annotations

import math
import random
import time

import pytest
import torch

from tests.engine.networks import (
    BACKBONES,
    CHANGES,
    NOISE,
    alone,
    check_same,
    ids_of,
    make_requests,
    request,
    run,
)
from visglm.engine import engine_of
from visglm.text.cache_size import cache_bytes


@pytest.fixture(scope="module", params=[(name, change) for name in BACKBONES for change in CHANGES], ids="-".join)
def network(request):
    name, change = request.param
    return CHANGES[change](BACKBONES[name]())


@pytest.fixture(scope="module")
def asked(network):
    requests = make_requests(network, 14, seed=3)
    return [(one, alone(network, one)) for one in requests]


@pytest.mark.parametrize("slots", [1, 4, 16])
def test_random_company_changes_no_answer(network, asked, slots):
    """Arrivals, lengths and cancellations by chance: whole answers are those of `generate`, cancelled ones begin so."""
    engine, dice = engine_of(network), random.Random(slots)
    engine.slots = slots
    order = dice.sample(asked, len(asked))
    flying = []
    while order or flying:
        if order and dice.random() < 0.7:
            some = [order.pop() for _ in range(min(len(order), dice.randrange(1, 5)))]
            tickets = engine.submit(*(one for one, _ in some))
            flying += [(*pair, ticket) for pair, ticket in zip(some, tickets, strict=True)]
        elif flying:
            one, wanted, ticket = flying.pop(dice.randrange(len(flying)))
            stopped = dice.random() < 0.3
            if stopped:
                for _ in zip(range(dice.randrange(4)), ticket, strict=False):
                    pass
                ticket.cancel()
            outcome = ticket.result()
            is_part = outcome.finish_reason == "cancelled"
            assert stopped or not is_part
            check_same(network, one, wanted, ids_of(outcome), is_part)
        time.sleep(dice.choice((0, 0, 0.002)))
    assert engine.turns.is_free and not engine.turns.num_waiting


def test_all_at_once_is_as_one_by_one(network, asked):
    engine = engine_of(network)
    engine.slots = 16
    for (one, wanted), outcome in zip(asked, run(engine, [one for one, _ in asked]), strict=True):
        check_same(network, one, wanted, ids_of(outcome), is_part=False)
        assert all(token.logprob <= 0 for token in outcome.tokens)


def test_log_probabilities_are_the_models(network, asked):
    one = asked[0][0]
    [outcome] = run(engine_of(network), [one])
    with torch.no_grad():
        output = network.generate(
            torch.tensor([one.input_ids]), pixel_values=one.pixel_values, max_new_tokens=one.room, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    logits = torch.cat(output.logits)
    if network.config.image_token_id is not None:
        logits[:, network.config.image_token_id] = -math.inf
    wanted = logits.log_softmax(-1)[range(len(outcome.tokens)), ids_of(outcome)]
    found = torch.tensor([token.logprob for token in outcome.tokens])
    torch.testing.assert_close(found, wanted, atol=NOISE, rtol=0)


# --- what a slot held before, and who stood beside ------------------------------------------------------------------


@pytest.fixture(params=BACKBONES)
def plain(request):
    network = BACKBONES[request.param]()
    engine_of(network).slots = 4
    return network


def test_numbers_that_are_none_stay_with_their_request(plain):
    """A row of NaN, during and after: whoever stands beside it or comes into its slot has his own answer."""
    healthy = make_requests(plain, 6, seed=9)
    longest = request(plain, [*range(10, 70), *healthy[0].input_ids], 40, healthy[0].pixel_values)
    healthy = [longest, *sorted(healthy, key=lambda one: len(one.input_ids))]
    wanted = [alone(plain, one) for one in healthy]
    [word, *_] = set(range(400, 500)).difference(*wanted)
    sick = request(plain, [word, *longest.input_ids], 2, longest.pixel_values)
    with torch.no_grad():
        plain.get_input_embeddings().weight[word] = math.nan
    engine_of(plain).slots = 2
    first, ill, *others = run(engine_of(plain), [longest, sick, *healthy[1:]])
    assert all(math.isnan(token.logprob) for token in ill.tokens)
    for one, ids, outcome in zip(healthy, wanted, [first, *others], strict=True):
        check_same(plain, one, ids, ids_of(outcome), is_part=False)


def test_the_same_prompt_is_read_once(plain):
    """Three of one prompt and another: two rows are read, four answered."""
    lengths = []
    plain.register_forward_pre_hook(
        lambda module, arguments, settings: lengths.append(len(settings.get("input_ids", ()))), with_kwargs=True
    )
    one, other = make_requests(plain, 2, seed=5)
    same = [request(plain, one.input_ids, 6, one.pixel_values) for _ in range(3)]
    wanted = alone(plain, same[0])
    lengths.clear()
    first, second, last, _ = run(engine_of(plain), [*same, other])
    assert lengths[0] == 2 and sum(lengths) == 2
    assert ids_of(first) == ids_of(second) == ids_of(last)
    check_same(plain, same[0], wanted, ids_of(first), is_part=False)


@pytest.mark.parametrize("room", [0, 1, 2, None])
def test_memory_decides_how_many_come_in(plain, room):
    """With room for the keys and values of one row, they come one by one; of two, in pairs; none is refused."""
    engine, rows = engine_of(plain), []
    plain.lm_head.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    requests = make_requests(plain, 4, seed=6)
    longest = max(one.positions for one in requests)
    each = cache_bytes(plain.config.text_config, plain.dtype.itemsize, 1, longest)
    engine.num_bytes = None if room is None else room * each
    outcomes = run(engine, requests)
    assert all(outcome.tokens for outcome in outcomes)
    assert max(rows) == {0: 1, None: 4}.get(room, room)
