"""Threads that share a network take turns, and a process that is forked finds no turn taken for ever."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

from .errors import BusyError


class Cancelled(Exception):
    """Whoever waited for a turn does not want it any more."""


class Turn:
    """One holder. doing: what keeps the network busy for long, or None. changes: the network is not as it was."""

    def __init__(self, doing: str | None, changes: bool):
        self.doing = doing
        self.changes = changes


# The turns in which this code runs: those of the thread, and of the thread that started it where that passed them on.
HELD: ContextVar[frozenset[Turn]] = ContextVar("visglm_turns", default=frozenset())
POLL_SECONDS = 0.05  # between two looks whether a turn is still wanted


class Turns:
    """Who may use a network now. One holder at a time, first come first served.

    What is short (an answer, a switch of adapters, a merge, saving) waits for its turn. What is long (fine-tuning)
    waits for it, too; from then on all who ask for a turn, and all who wait for one, are told at once with `BusyError`.

    What is called inside a turn belongs to it and waits for nothing but its own likes: fine-tuning answers questions
    for its report. So do threads that run in a copy of the holder's context (`contextvars.copy_context`).
    """

    def __init__(self) -> None:
        self.was_forked = False  # since it was made
        self._torn = False
        self._renew()
        EVERY.add(self)

    def _renew(self) -> None:
        self._condition = threading.Condition()
        self._holder: Turn | None = None
        self._waiting: deque[Turn] = deque()
        self._computing = threading.RLock()

    @property
    def is_free(self) -> bool:
        """Whether nobody has a turn."""
        return self._holder is None

    def refuse_if_busy(self) -> None:
        """Raise what `scope` would raise now, without waiting.

        Raises:
            BusyError: another thread keeps the network busy for long, or a fork caught it half-way.
        """
        holder = self._holder
        if self._torn:
            raise BusyError(
                "this process was forked while its parent changed the model, and has half of the change. Load the "
                "model in this process."
            )
        if holder is not None and holder.doing is not None and holder not in HELD.get():
            raise BusyError(
                f"this model is {holder.doing} in another thread. Ask again when that has ended, or load the model a "
                "second time to have answers meanwhile."
            )

    @contextmanager
    def scope(
        self, doing: str | None = None, *, changes: bool = False, unless: threading.Event | None = None
    ) -> Iterator[None]:
        """Nobody else's turn inside the `with`.

        Args:
            doing: of what is long, how others are told, such as "being fine-tuned".
            changes: the network is changed, so that a process forked now must not use it.
            unless: stop waiting once it is set.

        Raises:
            BusyError: as `refuse_if_busy`. Cancelled: `unless` was set while others had their turn.
        """
        self.refuse_if_busy()
        if self._holder in HELD.get():
            yield
            return
        turn = Turn(doing, changes)
        try:
            self._wait(turn, unless)
            HELD.set(HELD.get() | {turn})
            yield
        finally:
            HELD.set(HELD.get() - {turn})  # not reset(): a `with` may be left in another context than it was entered
            with self._condition:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                if self._holder is turn:  # in a forked process it is not: the turn was its parent's
                    self._holder = None
                self._condition.notify_all()

    def _wait(self, turn: Turn, unless: threading.Event | None) -> None:
        with self._condition:
            self._waiting.append(turn)
            while self._holder is not None or self._waiting[0] is not turn:
                self.refuse_if_busy()
                if unless is not None and unless.is_set():
                    raise Cancelled
                self._condition.wait(POLL_SECONDS if unless is not None else None)
            self._holder = self._waiting.popleft()
            self._condition.notify_all()  # those behind a long turn are to be told

    @contextmanager
    def take(self, *, changes: bool = False, unless: threading.Event | None = None) -> Iterator[None]:
        """As `scope`, for what uses the network itself: inside a longer scope one such thing at a time."""
        with self.scope(changes=changes, unless=unless), self._computing:
            yield


EVERY: weakref.WeakSet[Turns] = weakref.WeakSet()
OF_NETWORK: weakref.WeakKeyDictionary[nn.Module, Turns] = weakref.WeakKeyDictionary()


def turns_of(network: nn.Module) -> Turns:
    """The turns of a network, the same for all who use it. Copies have their own."""
    found = OF_NETWORK.get(network)
    return OF_NETWORK.setdefault(network, Turns()) if found is None else found


def after_fork() -> None:
    """In a forked process, whose only thread is the one that forked: turns of the others' would never end, and the
    threads that torch computed on are gone, which it does not notice."""
    for turns in EVERY:
        holder = turns._holder
        turns._torn = turns._torn or (holder is not None and holder.changes)
        turns._renew()
        turns.was_forked = True
    if EVERY:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # Windows never forks
    os.register_at_fork(after_in_child=after_fork)
