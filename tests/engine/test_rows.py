"""Steps that are recorded and repeated: the same answers, whoever comes and goes between two of them.

A GPU repeats its kernels on the memory that they were recorded with, and nothing that Python decided counts any more.
The recorder here does so with torch's operations, on any device.
"""

from __future__ import annotations

import random
import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import visglm.engine.core as core
from tests.engine.networks import BACKBONES, CHANGES, alone, check_same, ids_of, make_requests, request, run
from visglm.engine import engine_of
from visglm.engine.rows import RecordedRows, Recording, record_on_gpu


class Operations(TorchDispatchMode):
    """Everything that is computed inside, in order."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.steps.append((operation, args, kwargs or {}, result))
        return result


def record(work):
    with Operations() as operations:
        logits, positions = work()

    def replay():
        new = {}

        def now(part):
            return new.get(id(part), part)

        for operation, args, kwargs, result in operations.steps:
            again = operation(*tree_map(now, args), **tree_map(now, kwargs))
            new.update(zip(map(id, tree_leaves(result)), tree_leaves(again), strict=True))
        for mine in (logits, positions):
            mine.copy_(new[id(mine)])

    replay()  # recording on a GPU computes nothing, so whoever forgets to replay is found out there
    return Recording(replay, logits, positions)


@pytest.fixture
def recorded(monkeypatch):
    """Every engine records; how many recordings were made and replayed."""
    counts = {"made": 0, "replayed": 0}

    def counting(work):
        counts["made"] += 1
        found = record(work)

        def replay():
            counts["replayed"] += 1
            found.replay()

        return found._replace(replay=replay)

    monkeypatch.setattr(core, "rows_of", lambda network: RecordedRows(network, counting))
    return counts


@pytest.fixture(params=[(name, change) for name in BACKBONES for change in ("plain", "ptuning", "lora")], ids="-".join)
def network(request):
    name, change = request.param
    return CHANGES[change](BACKBONES[name]())


@pytest.mark.parametrize("slots", [1, 4, 16])
def test_random_company_changes_no_answer(network, recorded, slots):
    engine, dice = engine_of(network), random.Random(slots)
    engine.slots = slots
    asked = [(one, alone(network, one)) for one in make_requests(network, 8, seed=4)]
    flying = []
    for one, wanted in asked:
        flying.append((one, wanted, *engine.submit(one)))
        time.sleep(dice.choice((0, 0.005)))
        if dice.random() < 0.3:
            flying[dice.randrange(len(flying))][2].cancel()
    for one, wanted, ticket in flying:
        outcome = ticket.result()
        check_same(network, one, wanted, ids_of(outcome), outcome.finish_reason == "cancelled")
    assert 0 < recorded["made"] < recorded["replayed"]


@pytest.fixture
def plain():
    return BACKBONES["chatglm"]()


def test_recordings_serve_the_next_answers(plain, recorded):
    """As long as room is enough; a much longer one moves the cache, and they are made anew."""
    engine = engine_of(plain)
    one, other = make_requests(plain, 2, seed=5)
    for _ in range(3):
        run(engine, [one])
        run(engine, [other])
    assert recorded["made"] == 1
    longer = request(plain, [*range(10, 150), *one.input_ids], 8, one.pixel_values)
    wanted = alone(plain, longer)
    [outcome] = run(engine, [longer])
    check_same(plain, longer, wanted, ids_of(outcome), is_part=False)
    assert recorded["made"] == 2


def test_a_long_answer_leaves_no_long_cache(plain, recorded):
    """A recorded step looks at every position there is: short answers would be as slow as the longest of all."""
    engine, sizes = engine_of(plain), []
    one = make_requests(plain, 1, seed=5)[0]
    longer = request(plain, [*range(10, 400)] * 2 + one.input_ids, 4)
    for asked in (one, longer, one):
        wanted = alone(plain, asked)
        [outcome] = run(engine, [asked])
        check_same(plain, asked, wanted, ids_of(outcome), is_part=False)
        sizes.append(engine._rows.cache.positions)
    assert sizes[0] == sizes[2] < sizes[1]


def test_a_network_that_was_changed_is_recorded_anew(plain, recorded):
    engine = engine_of(plain)
    one = make_requests(plain, 1, seed=6)[0]
    before = ids_of(run(engine, [one])[0])
    with torch.no_grad():
        head = plain.lm_head.weight
        plain.lm_head.weight = torch.nn.Parameter(head.roll(1, 0))
    wanted = alone(plain, one)
    after = ids_of(run(engine, [one])[0])
    check_same(plain, one, wanted, after, is_part=False)
    assert before != after and recorded["made"] == 2


def test_a_prefix_that_was_put_on_is_recorded(plain, recorded):
    """It is a tensor more, where those that were there are what they were."""
    engine = engine_of(plain)
    one = make_requests(plain, 1, seed=6)[0]
    before = ids_of(run(engine, [one])[0])
    with engine.turns.take(changes=True):
        CHANGES["ptuning"](plain)
    wanted = alone(plain, one)
    after = ids_of(run(engine, [one])[0])
    check_same(plain, one, wanted, after, is_part=False)
    assert before != after and recorded["made"] == 2


def test_what_cannot_be_recorded_is_told_and_answered(plain, monkeypatch):
    def refuse(work):
        raise RuntimeError("operation not permitted when stream is capturing\nfor this device")

    monkeypatch.setattr(core, "rows_of", lambda network: RecordedRows(network, refuse))
    one = make_requests(plain, 1, seed=6)[0]
    wanted = alone(plain, one)
    with pytest.warns(UserWarning, match=r"cannot be recorded .*operation not permitted when stream is capturing\)"):
        [outcome] = run(engine_of(plain), [one])
    check_same(plain, one, wanted, ids_of(outcome), is_part=False)


def test_nothing_stays_when_the_thread_ends(plain, recorded, monkeypatch):
    monkeypatch.setattr(core, "LINGER_SECONDS", 0.05)
    engine = engine_of(plain)
    run(engine, make_requests(plain, 1, seed=7))
    deadline = time.monotonic() + 20
    while engine._thread is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine._thread is None and engine._rows is None


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(BACKBONES))
def test_a_gpu_answers_as_alone(name):
    network = BACKBONES[name]().cuda()
    engine = engine_of(network)
    requests = make_requests(network, 8, seed=8)
    wanted = [alone(network, one) for one in requests]
    for one, ids, outcome in zip(requests, wanted, run(engine, requests), strict=True):
        check_same(network, one, ids, ids_of(outcome), is_part=False)
    assert isinstance(engine._rows, RecordedRows) and any(engine._rows._recordings.values())
    assert engine._rows._record is record_on_gpu
