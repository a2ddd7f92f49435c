"""Who may use a network: answers share it, what changes it has it alone, and what is asked inside a turn belongs to it.
A process that is forked finds no turn taken for ever."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from ..errors import BusyError


class Cancelled(Exception):
    """Whoever waited for a turn does not want it any more."""


class Turn:
    """Somebody who waits for the network, or has it.

    Args:
        doing: what keeps the network busy for long, such as "being fine-tuned", or None.
        changes: the network is not as it was, so that a process forked meanwhile must not use it.
        shared: others that share may have it at the same time.
    """

    def __init__(self, doing: str | None = None, changes: bool = False, shared: bool = False):
        self.doing, self.changes, self.shared = doing, changes, shared
        self.inside = HELD.get()  # of the thread that asks, and of the one that started it where that passed them on


class Reading(Turn):
    """Somebody who looks at the weights, beside the answers."""


# The turns in which this code runs.
HELD: ContextVar[frozenset[Turn]] = ContextVar("visglm_turns", default=frozenset())
POLL_SECONDS = 0.05  # between two looks whether a turn is still wanted


class Turns:
    """Who may use a network now, first come first served.

    Answers share the network; the engine begins and ends them. What uses the network itself (a switch of adapters, a
    merge, saving) waits until those before it have ended and has it alone; whoever comes later waits behind it. What is
    long (fine-tuning) waits likewise; from then on all who ask, and all who wait, are told at once with `BusyError`.

    What is asked inside a turn belongs to it and waits for nothing but its own likes: fine-tuning answers questions
    for its report. So do threads that run in a copy of the holder's context (`contextvars.copy_context`).
    """

    def __init__(self) -> None:
        self.was_forked = False  # since it was made
        self.num_changes = 0  # of the network, that have ended
        self._torn = False
        self._after_fork: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._renew()
        EVERY.add(self)

    def _renew(self) -> None:
        self.condition = threading.Condition()
        self.switching = threading.Lock()  # held while the engine has the network compute with another adapter
        self._holders: list[Turn] = []  # the last was taken inside those before it
        self._sharing: set[Turn] = set()
        self._waiting: deque[Turn] = deque()

    @property
    def is_free(self) -> bool:
        """Whether nobody has a turn."""
        return not self._holders and not self._sharing

    def refuse_if_busy(self, turn: Turn | None = None) -> None:
        """Raise what `take` would raise now, without waiting.

        Raises:
            BusyError: another thread keeps the network busy for long, or a fork caught it half-way.
        """
        inside = HELD.get() if turn is None else turn.inside
        if self._torn:
            raise BusyError(
                "this process was forked while its parent changed the model, and has half of the change. Load the "
                "model in this process."
            )
        for holder in self._holders:
            if holder.doing is not None and holder not in inside:
                raise BusyError(
                    f"this model is {holder.doing} in another thread. Ask again when that has ended, or load the model "
                    "a second time to have answers meanwhile."
                )

    # --- whoever has it alone ---

    @contextmanager
    def take(
        self, doing: str | None = None, *, changes: bool = False, unless: threading.Event | None = None
    ) -> Iterator[Turn]:
        """The network alone inside the `with`, after all who came before.

        Args:
            doing, changes: see `Turn`.
            unless: stop waiting once it is set.

        Raises:
            BusyError: as `refuse_if_busy`. Cancelled: `unless` was set while others had their turn.
        """
        with self._have(Turn(doing, changes), unless) as turn:
            yield turn

    @contextmanager
    def read(self) -> Iterator[Turn]:
        """Nobody changes the network inside the `with`; it must not be used to compute, nor to ask anything.

        Raises:
            BusyError: as `refuse_if_busy`.
        """
        with self._have(Reading(shared=True), None) as turn, self.switching:
            yield turn

    @contextmanager
    def _have(self, turn: Turn, unless: threading.Event | None) -> Iterator[Turn]:
        self.enter([turn])
        try:
            with self.condition:
                while not self._is_next(turn):
                    self.refuse_if_busy(turn)
                    if unless is not None and unless.is_set():
                        raise Cancelled
                    self.condition.wait(POLL_SECONDS if unless is not None else None)
                self.begin(turn)
            HELD.set(HELD.get() | {turn})
            yield turn
        finally:
            HELD.set(HELD.get() - {turn})  # not reset(): a `with` may be left in another context than it was entered
            self.end(turn)

    def wait_for_answers(self) -> None:
        """Until every answer that was begun inside the turn of this thread has ended."""
        with self.condition:
            while self._sharing:
                self.condition.wait()

    # --- those who share it, whom the engine begins ---

    def enter(self, turns: Sequence[Turn]) -> None:
        """Wait for it, all in one go.

        Raises:
            BusyError: as `refuse_if_busy`.
        """
        with self.condition:
            for turn in turns:
                self.refuse_if_busy(turn)
            self._waiting.extend(turns)
            self.condition.notify_all()

    def next_to_share(self) -> Iterator[Turn]:
        """Who may begin now, in order. Hold the condition."""
        around = self._holders[-1] if self._holders else None
        for turn in list(self._waiting):
            if self._around(turn) is around:
                if not turn.shared:
                    return
                if not isinstance(turn, Reading):
                    yield turn

    def refused(self) -> list[tuple[Turn, BusyError]]:
        """Answers that wait in vain, for something long has begun. Hold the condition."""
        found = []
        if any(holder.doing is not None for holder in self._holders):
            for turn in self._waiting:
                try:
                    self.refuse_if_busy(turn)
                except BusyError as error:
                    found.append((turn, error))
        return [(turn, error) for turn, error in found if turn.shared and not isinstance(turn, Reading)]

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_answers_waiting(self) -> bool:
        return any(turn.shared and not isinstance(turn, Reading) for turn in self._waiting)

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds the condition: a finalizer that runs now must not wait for anything."""
        return self.condition._is_owned()  # type: ignore[attr-defined]

    def begin(self, turn: Turn) -> None:
        """It waited, and has the network now. Hold the condition."""
        self._waiting.remove(turn)
        if turn.shared:
            self._sharing.add(turn)
        else:
            self._holders.append(turn)
        self.condition.notify_all()  # those behind a long one are to be told

    def end(self, turn: Turn) -> None:
        """It has ended, or does not want to wait any more. In a forked process it may have been its parent's."""
        with self.condition:
            if turn in self._waiting:
                self._waiting.remove(turn)
            if turn in self._holders:
                self._holders.remove(turn)
                self.num_changes += turn.changes
            self._sharing.discard(turn)
            self.condition.notify_all()

    def is_waiting(self, turn: Turn) -> bool:
        return turn in self._waiting

    def _is_next(self, turn: Turn) -> bool:
        around = self._around(turn)
        if around is not (self._holders[-1] if self._holders else None):
            return False
        for other in self._waiting:
            if other is turn:
                break
            if not (turn.shared and other.shared) and self._around(other) is around:
                return False
        return turn.shared or not self._sharing

    def _around(self, turn: Turn) -> Turn | None:
        """The innermost of the holders inside which it was asked for."""
        return next((holder for holder in reversed(self._holders) if holder in turn.inside), None)

    def on_fork(self, method: Callable[[], None]) -> None:
        """Have a bound method called in every process that is forked from this one, as long as its object lives."""
        self._after_fork.append(weakref.WeakMethod(method))


EVERY: weakref.WeakSet[Turns] = weakref.WeakSet()


def after_fork() -> None:
    """In a forked process, whose only thread is the one that forked: turns of the others' would never end, and the
    threads that torch computed on are gone, which it does not notice."""
    for turns in EVERY:
        turns._torn = turns._torn or any(holder.changes for holder in turns._holders)
        turns._renew()
        turns.was_forked = True
        for found in turns._after_fork:
            if (method := found()) is not None:
                method()
    if EVERY:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # Windows never forks
    os.register_at_fork(after_in_child=after_fork)
