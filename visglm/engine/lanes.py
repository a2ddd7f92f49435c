"""Answers by the adapter that each is given with: those of one are a lane, and a turn is a step of every lane."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ..adapters import Adapters
from ..errors import ConfigError
from ..text.cache_size import cache_bytes
from .loop import Loop
from .pictures import AT_ONCE
from .task import Task
from .turns import Turns

PROMPT_TOKENS = 512  # of newcomers that are read together, unless one alone has more; nobody gets a token meanwhile

Lane = tuple[Adapters, str] | None  # None: as the network is; else with this adapter of these, "" for their base alone


class Lanes:
    """All answers in flight, and who may join them.

    Rows of different adapters never meet in one product, so that every kind of adapter goes, and each row's numbers are
    what they are without the others. Between two lanes the network changes its adapter and changes back; whoever looks
    at its weights meanwhile waits.

    Args:
        make: a loop for a lane. turns: who may use the network.
        limits: most answers at a time, and the bytes that their keys and values may take, if there is more than one;
            asked for when one gets company.
    """

    def __init__(self, make: Callable[[Lane], Loop], turns: Turns, limits: Callable[[], tuple[int, int]]):
        self._make, self.turns = make, turns
        self._ask_limits = limits
        self._limits: tuple[int, int] | None = None
        self._loops: dict[Lane, Loop] = {}

    @property
    def tasks(self) -> list[Task]:
        return [task for loop in self._loops.values() for task in loop.tasks]

    def choose_newcomers(self, waiting: Iterable[Any]) -> list[Task]:
        """Those of the waiting who may come in now, in order: as many as there are slots, memory and patience for."""
        chosen: list[Task] = []
        num_pictures = num_tokens = 0
        for task in waiting:
            if not any(other.request.input_ids is task.request.input_ids for other in chosen):  # read once
                num_pictures += task.request.num_new_pictures
                num_tokens += len(task.request.input_ids)
            if chosen and (num_pictures > AT_ONCE or num_tokens > PROMPT_TOKENS):
                break
            if not self._has_room(chosen, task):
                break
            chosen.append(task)
        return chosen

    def _has_room(self, chosen: Sequence[Task], task: Task) -> bool:
        company = [*self.tasks, *chosen]
        if not company:
            self._limits = None
            return True  # nobody is refused for good
        if self._limits is None:
            self._limits = self._ask_limits()
        slots, num_bytes = self._limits
        if len(company) >= slots or task.network is None:
            return False
        config, size = task.network.config.text_config, task.network.dtype.itemsize
        positions: dict[Lane, list[int]] = {}
        for other in (*company, task):
            positions.setdefault(lane_of(other), []).append(other.request.positions)
        return sum(cache_bytes(config, size, len(own), max(own)) for own in positions.values()) <= num_bytes

    def turn(self, newcomers: Sequence[Task]) -> None:
        """One step for everybody, those who have just come included."""
        coming: dict[Lane, list[Task]] = {lane: [] for lane in self._loops}
        for task in newcomers:
            coming.setdefault(lane_of(task), []).append(task)
        for lane, some in coming.items():
            if lane not in self._loops:
                self._loops[lane] = self._make(lane)
            self._turn(lane, self._loops[lane], some)
            if not self._loops[lane].tasks:
                del self._loops[lane]

    def _turn(self, lane: Lane, loop: Loop, newcomers: Sequence[Task]) -> None:
        if lane is None:
            loop.turn(newcomers)
            return
        adapters, name = lane
        try:
            with self.turns.switching, worn(adapters, name or None):
                loop.turn(newcomers)
        except ConfigError as error:  # it was merged, or taken out, since it was asked for
            loop.refuse(newcomers, error)
        finally:
            loop.tell()  # the network is as it was: whoever waited for these answers may use it


def lane_of(task: Task) -> Lane:
    """Where a task belongs while the network is as it is."""
    adapters, name = task.request.adapters, task.request.adapter
    if name is None or adapters is None or (name or None) == adapters.active:
        return None
    return adapters, name


@contextlib.contextmanager
def worn(adapters: Adapters, name: str | None):
    """The network with another adapter inside a `with`. What is put in its place is no tensor of inference mode."""
    before = adapters.active
    with torch.inference_mode(False):
        adapters.activate(name)
    try:
        yield
    finally:
        with torch.inference_mode(False):
            adapters.activate(before)
