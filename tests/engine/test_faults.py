"""Readers that leave, requests that are wrong, steps that fail, models that are dropped: nobody else notices."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import tracemalloc
import weakref

import pytest
import torch

from tests.engine.networks import alone, check_same, ids_of, make_requests, request, run
from tests.tiny import golden_model
from visglm import VisGLM
from visglm.engine import engine_of
from visglm.errors import EngineError


@pytest.fixture
def network():
    return golden_model()


def endless(network, room: int = 150):
    """A request that no end token ends."""
    one = make_requests(network, 1, seed=2)[0]
    return request(network, one.input_ids, room, one.pixel_values, min_new_tokens=room)


class Steps:
    """Counts passes through the head, and rows."""

    def __init__(self, network):
        self.rows: list[int] = []
        network.lm_head.register_forward_pre_hook(lambda module, arguments: self.rows.append(len(arguments[0])))


def test_after_a_reader_leaves_at_most_one_step_comes(network):
    steps, engine = Steps(network), engine_of(network)
    [ticket] = engine.submit(endless(network))
    for _ in zip(range(5), ticket, strict=False):
        pass
    before = len(steps.rows)
    ticket.cancel()
    assert len(steps.rows) <= before + 1
    outcome = ticket.result()
    assert outcome.finish_reason == "cancelled" and 5 <= len(outcome.tokens) <= before + 1
    assert engine.turns.is_free


@pytest.mark.parametrize("leave", [lambda ticket: ticket.cancel(), lambda ticket: None], ids=["cancelled", "dropped"])
def test_a_row_whose_reader_left_is_free_while_others_go_on(network, leave):
    steps, engine = Steps(network), engine_of(network)
    one, other = engine.submit(endless(network), endless(network, 120))
    next(one), next(other)
    leave(one)
    del one
    before = len(steps.rows)
    assert len(other.result().tokens) == 120
    assert 2 not in steps.rows[before + 1 :]


def test_a_slow_reader_holds_up_nobody(network):
    engine = engine_of(network)
    slow, quick = engine.submit(endless(network, 100), endless(network, 20))
    next(slow)
    assert len(quick.result().tokens) == 20
    assert len(list(slow)) == 99


def test_what_is_wrong_with_one_request_stays_with_it(network):
    """A picture that the network cannot take, a prompt it cannot read, a setting that fails at the third token."""
    good = make_requests(network, 3, seed=4)
    wanted = [alone(network, one) for one in good]
    slot, count = network.config.image_token_id, network.config.num_query_tokens
    odd = request(network, [slot] * count + good[0].input_ids, 5, torch.zeros(1, 3, 5, 5))
    lost = request(network, [10, 11, 12], 5)  # no <sop>: nothing says where the prompt ends
    bad = endless(network, 9)
    object.__setattr__(bad, "has_ended", lambda token: 1 / (token != token))
    tickets = engine_of(network).submit(good[0], odd, good[1], lost, bad, good[2])
    for place in (1, 3, 4):
        with pytest.raises((Exception,)) as error:
            tickets[place].result()
        assert not isinstance(error.value, EngineError)
    for one, ids, ticket in zip(good, wanted, (tickets[0], tickets[2], tickets[5]), strict=True):
        check_same(network, one, ids, ids_of(ticket.result()), is_part=False)
    assert engine_of(network).turns.is_free


def test_a_step_that_fails_ends_those_in_it_and_the_engine_goes_on(network):
    engine, good = engine_of(network), make_requests(network, 1, seed=4)[0]
    wanted = alone(network, good)
    calls = []

    def fail(module, arguments):
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError("none left")

    hook = network.lm_head.register_forward_pre_hook(fail)
    tickets = engine.submit(endless(network), endless(network, 90))
    errors = []
    for ticket in tickets:
        with pytest.raises(EngineError, match="MemoryError: none left") as error:
            ticket.result()
        errors.append(error.value)
    assert errors[0] is not errors[1] and isinstance(errors[0].__cause__, MemoryError)
    hook.remove()
    check_same(network, good, wanted, ids_of(run(engine, [good])[0]), is_part=False)


def test_an_engine_that_stopped_says_so(network, monkeypatch):
    engine = engine_of(network)
    monkeypatch.setattr("visglm.engine.core.Loop", lambda *arguments: 1 / 0)
    [ticket] = engine.submit(endless(network))
    with pytest.raises(ZeroDivisionError):
        ticket.result()
    with pytest.raises(EngineError, match="ZeroDivisionError.*Load the model again"):
        engine.submit(endless(network))
    assert engine.turns.is_free


def churn(network, count: int, seed: int) -> None:
    """So many requests, a third of them cancelled, from four threads."""
    engine = engine_of(network)
    requests = make_requests(network, count, seed, longest=8)
    problems = []

    def ask(mine) -> None:
        try:
            while mine:
                tickets = engine.submit(*(mine.pop() for _ in range(min(len(mine), 5))))
                for number, ticket in enumerate(tickets):
                    if number % 3 == 1:
                        next(ticket, None)
                        ticket.cancel()
                    else:
                        assert ticket.result().finish_reason in ("stop", "length")
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=ask, args=(requests[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and engine.turns.is_free and not engine.turns.num_waiting


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("count", [120, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_memory_stays_flat_and_no_slot_is_lost(network, count):
    engine = engine_of(network)
    engine.looker.num_bytes = 0
    churn(network, count // 4, seed=0)
    gc.collect()
    before = resident()
    tracemalloc.start()
    try:
        churn(network, count // 4, seed=1)
        gc.collect()
        settled = tracemalloc.get_traced_memory()[0]
        churn(network, count // 2, seed=2)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - settled < 2**18
    finally:
        tracemalloc.stop()
    assert resident() - before < 64 * 2**20
    steps = Steps(network)
    run(engine, [endless(network, 4) for _ in range(16)])
    assert max(steps.rows) == 16


# --- what ends ------------------------------------------------------------------------------------------------------


def test_the_engine_keeps_no_network_alive():
    network = golden_model()
    run(engine_of(network), make_requests(network, 2, seed=1))
    found = weakref.ref(network)
    del network
    gc.collect()
    assert found() is None


def test_a_dropped_model_answers_what_was_asked_of_it():
    stream = VisGLM.from_pretrained(device="cpu").stream_chat(None, "你好", max_new_tokens=6)
    gc.collect()
    assert "".join(stream) == stream.reply.text != ""


SCRIPT = """
from visglm import VisGLM
vlm = VisGLM.from_pretrained(device="cpu")
vlm.chat(None, "Hello", max_new_tokens=1)
stream = vlm.stream_chat(None, "Hello", temperature=5.0, seed=0, max_new_tokens=400)
print(len(next(stream)) > 0)
"""


def test_a_process_ends_though_an_answer_is_on_its_way():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, "True", "")
