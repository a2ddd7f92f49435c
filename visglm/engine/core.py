"""`Engine`: the one thread that owns a network, which answers come from and changes ask for."""

from __future__ import annotations

import atexit
import sys
import threading
import weakref
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import BusyError, EngineError
from ..families import family_of
from ..identity import Fingerprint, Unchanged
from ..quant.memory import available_memory
from ..quant.products import uses_products
from ..text.cache_size import cache_bytes
from .lanes import Lane, Lanes
from .loop import Loop
from .pictures import Looker
from .rows import RecordedRows, rows_of
from .shelf import Shelf
from .task import Request, Task, Ticket
from .turns import Turns

SLOTS = 16  # answers at a time, where memory allows it
SHARE_OF_MEMORY = 0.5  # of what is free when work begins, for keys and values
QUEUE = 1024  # requests that wait; whoever has another one waits himself
LINGER_SECONDS = 1.0  # that the thread waits for more work


class Engine:
    """Answers requests of any thread, as many at a time as there are slots.

    A request joins between two tokens of the others and leaves at its own end; greedy tokens are those it would get
    alone. The thread starts with the first request and ends a second after the last. It keeps no network alive, but for
    that second on a GPU, where recorded steps wait for more answers.

    Args:
        network: that answers.

    Attributes:
        slots: answers at a time, at most.
        num_bytes: what keys and values of several answers may take together; None for half of what is free.
        looker: remembers pictures; its `num_bytes` says how much.
        shelf: remembers what a causal model has read; its `num_bytes` says how much, of every adapter asked by name.
        fingerprint: of what looks at pictures.
        turns: who may use the network now.
    """

    def __init__(self, network: PreTrainedModel):
        self._network = weakref.ref(network)
        self.slots = SLOTS
        self.num_bytes: int | None = None
        self.looker = Looker()
        self.shelf = Shelf()
        self._shelves: dict[str, Shelf] = {}  # of adapters that were asked by name
        self.fingerprint = Fingerprint()
        self._text_state, self._num_text_states = Unchanged(), 0
        self.turns = Turns()
        self.turns.on_fork(self._forget_thread)
        self._forget_thread()
        EVERY.add(self)

    def _forget_thread(self) -> None:
        """In a forked process: it is not in this one, and those who read what it gave would wait for ever."""
        lost: list[Task] = list(getattr(self, "_tasks", ()))
        self._thread: threading.Thread | None = None
        self._tasks: weakref.WeakSet[Task] = weakref.WeakSet()
        self._dead: BaseException | None = None
        self._rows: RecordedRows | None = None  # of the network as it is, while the thread lives
        for task in lost:
            if not task.done.is_set():
                task.done = threading.Event()
                task.finish(BusyError("this answer is given in the process that this one was forked from. Ask again."))

    # --- what clients call ---

    def submit(self, *requests: Request) -> list[Ticket]:
        """Have requests answered, those of one call together. Returns at once, unless very many are waiting.

        Raises:
            BusyError: something long, such as fine-tuning, has the network.
            EngineError: the engine has stopped for good.
        """
        network = self._network()
        if network is None:
            raise EngineError("there is no network any more that could answer. Load it again.")
        tasks = [Task(request, network) for request in requests]
        turns = self.turns
        with turns.condition:
            turns.refuse_if_busy()
            while turns.num_waiting > QUEUE and self._thread is not None:
                turns.condition.wait()
                turns.refuse_if_busy()
            if self._dead is not None:
                raise EngineError(
                    f"the engine of this model stopped: {type(self._dead).__name__}: {self._dead}. Load the model "
                    "again."
                ) from self._dead
            turns.enter(tasks)
            self._tasks.update(tasks)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="visglm-engine", daemon=True)
                self._thread.start()
        return [Ticket(self, task) for task in tasks]

    def cancel(self, task: Task) -> None:
        """End it after the token in flight; at once, where it still waits."""
        with self.turns.condition:
            task.cancelled = True
            if self.turns.is_waiting(task):
                self.turns.end(task)
                task.finish()

    @property
    def has_failed(self) -> bool:
        """Whether it has stopped for good, by a fault of its own."""
        return self._dead is not None

    @property
    def is_this_thread(self) -> bool:
        return threading.current_thread() is self._thread

    # --- the thread ---

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    self._serve()
        except BaseException as error:  # a fault in here: no request may wait for an answer that never comes
            with self.turns.condition:
                self._dead, self._thread, self._rows = error, None, None
                for task in list(self._tasks):
                    if not task.done.is_set():
                        self.turns.end(task)
                        task.finish(error)

    def _wait_for_work(self) -> bool:
        """Whether there is any; else the thread is over."""
        with self.turns.condition:
            while True:
                self._tell_refused()
                if next(self.turns.next_to_share(), None) is not None:
                    return True
                waits = self.turns.has_answers_waiting
                if not self.turns.condition.wait(None if waits else LINGER_SECONDS) and not waits:
                    if self.turns.has_answers_waiting:
                        continue
                    self._thread = self._rows = None
                    return False

    def _tell_refused(self) -> None:
        for turn, error in self.turns.refused():
            self.turns.end(turn)
            if isinstance(turn, Task):
                turn.finish(error)

    def _serve(self) -> None:
        """Answer until nobody is left."""
        network = self._network()
        if network is None:
            return
        family, device = family_of(network.config), network.device
        text = family.text(network)
        make = partial(self._make_loop, network)
        lanes = Lanes(make, self.turns, lambda: (self.slots, self._memory(device)))
        while True:
            with self.turns.condition:
                newcomers = lanes.choose_newcomers(self.turns.next_to_share())
                for task in newcomers:
                    self.turns.begin(task)
                    task.has_begun = True
            if not newcomers and not lanes.tasks:
                return
            if newcomers and not family.reads_prefix_both_ways(network):
                if not self._text_state.check(text):
                    self._num_text_states += 1
                for shelf in (self.shelf, *self._shelves.values()):
                    shelf.begin((self.turns.num_changes, self._num_text_states))
            lanes.turn(newcomers)

    def _make_loop(self, network: PreTrainedModel, lane: Lane) -> Loop:
        """What is known of the network as it is, is not of what it is with another adapter."""
        if lane is None:
            shelf, fingerprint = self.shelf, self.fingerprint
            known, num_changes = self._rows, self.turns.num_changes
            rows = known if known is not None and known.is_up_to_date(num_changes) else rows_of(network)
            self._rows = None
            if isinstance(rows, RecordedRows):
                self._rows, rows.num_changes = rows, num_changes
        else:
            adapters, name = lane
            rows = rows_of(network)
            shelf = self._shelves.setdefault(name, Shelf())
            shelf.num_bytes, fingerprint = self.shelf.num_bytes, Fingerprint()
            shelf.begin((adapters, self.turns.num_changes, self._num_text_states))
        family = family_of(network.config)
        # Fast products round what they are given to 8 bits, and one token otherwise than many: what an answer left is
        # not what reading it would leave.
        goes_on = not family.reads_prefix_both_ways(network) and not uses_products(family.text(network))
        return Loop(rows, self.turns, self.looker, fingerprint, shelf if goes_on else None, lane is not None)

    def _memory(self, device: torch.device) -> int:
        return cache_memory(device) if self.num_bytes is None else self.num_bytes

    def stop(self) -> None:
        """Cancel everything and wait for the thread: the interpreter ends."""
        with self.turns.condition:
            thread = self._thread
            for task in list(self._tasks):
                if not task.done.is_set():
                    self.cancel(task)
        if thread is not None and thread is not threading.current_thread():
            thread.join(LINGER_SECONDS)


def cache_memory(device: torch.device, taken: int = 0) -> int:
    """Bytes for keys and values of several answers, of what is free now less what something else will take."""
    free = available_memory(device)
    return sys.maxsize if free is None else int(max(free - taken, 0) * SHARE_OF_MEMORY)


def slots_for(text_config: Any, itemsize: int, device: torch.device, taken: int) -> int:
    """Answers of the full context that an engine would give at a time, once a network has taken its bytes."""
    room, length = cache_memory(device, taken), text_config.max_position_embeddings
    return max([1, *(rows for rows in range(2, SLOTS + 1) if cache_bytes(text_config, itemsize, rows, length) <= room)])


EVERY: weakref.WeakSet[Engine] = weakref.WeakSet()
OF_NETWORK: weakref.WeakKeyDictionary[Any, Engine] = weakref.WeakKeyDictionary()


def engine_of(network: PreTrainedModel) -> Engine:
    """The engine of a network, the same for all who use it. Copies have their own."""
    found = OF_NETWORK.get(network)
    return OF_NETWORK.setdefault(network, Engine(network)) if found is None else found


def stop_all() -> None:
    for engine in list(EVERY):
        engine.stop()


atexit.register(stop_all)
