"""What the engine is asked, and what comes of it: a request, the task that the loop works on, its reader's ticket."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..reply import PictureShape
from .choosing import Chooser
from .lookup import Lookup
from .turns import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..adapters import Adapters
    from .core import Engine

END = None  # behind the last token
POLL_SECONDS = 0.5  # on Windows Ctrl-C is noticed only between two waits


class Token(NamedTuple):
    """One token of an answer.

    Args:
        id: of the vocabulary.
        logprob: natural logarithm of the probability that the model gave it, before any setting had a say.
        alternatives: the likeliest tokens there with theirs, likeliest first, as many as were asked for.
    """

    id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Request:
    """What the engine is to answer. It knows ids and tensors, never words.

    Args:
        input_ids: the prompt, `image_token_id` at every image slot; empty where only the pictures are to be looked at.
        room: most new tokens.
        chooser: chooses each of them.
        image_embeds: `[tokens, hidden_size]` of each picture of earlier turns.
        pixel_values: each of the new ones, which come after those, as the network takes it.
        source: fingerprint of what `image_embeds` must come from; "" for whatever.
        has_ended: told every token, whether the answer ends with it whatever the model would say next.
        adapter: by name, one of `adapters`; "" for their base alone, None for the network as it is.
        adapters: those of the network.
        owner: whose it is: what one owner's requests leave in memory (pictures, conversations) serves no other's.
        on_news: called by whatever thread has just brought a token or the end; it must not wait, nor fail.
        shapes: of all pictures, where positions depend on them.
    """

    input_ids: list[int]
    room: int
    chooser: Chooser
    image_embeds: Sequence[Tensor] | None = None
    pixel_values: Sequence[Tensor] | Tensor | None = None
    source: str = ""
    has_ended: Callable[[int], bool] | None = None
    adapter: str | None = None
    adapters: Adapters | None = None
    owner: str = ""
    on_news: Callable[[], None] | None = None
    shapes: tuple[PictureShape, ...] = ()

    @property
    def num_new_pictures(self) -> int:
        return 0 if self.pixel_values is None else len(self.pixel_values)

    @property
    def positions(self) -> int:
        """Of the cache, at most."""
        return len(self.input_ids) + self.room


@dataclass
class Outcome:
    """What came of a request.

    Args:
        tokens: the answer. finish_reason: "stop", "length" or "cancelled".
        image_embeds: of all pictures, if there are any. source: the fingerprint of what looked at them.
        encode_seconds, first_token_seconds, total_seconds: for the pictures; from then on to the first token, and to
            the last.
    """

    tokens: list[Token] = field(default_factory=list)
    finish_reason: str = "cancelled"
    image_embeds: Sequence[Tensor] | None = None
    source: str = ""
    encode_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0


class Task(Turn):
    """A request on its way. The engine knows tasks only: readers may be dropped while it goes on."""

    def __init__(self, request: Request, network: PreTrainedModel):
        super().__init__(shared=True)
        self.request = request
        self.network: PreTrainedModel | None = (
            network  # stays while there is something to answer, though its owner may go
        )
        self.outcome = Outcome()
        self.news: queue.SimpleQueue[Token | None] = queue.SimpleQueue()  # at most an answer's tokens
        self.done = threading.Event()
        self.cancelled = self.has_begun = False
        self.is_over = False  # for the loop; whoever waits may be told later
        self.lookup: Lookup | None = None
        self.fault: Exception | None = None  # of its own settings
        self.error: BaseException | None = None
        self.started = 0.0

    @property
    def room_left(self) -> int:
        """Tokens that may be guessed: one less than may come, for one comes in any case."""
        return self.request.room - len(self.outcome.tokens) - 1

    def start_clock(self) -> None:
        self.started = time.perf_counter()

    def choose(self, likeliest: int, logits: Tensor) -> int:
        """The next token by the request's own settings. What goes wrong in them is noted, and ends this answer alone.

        Args:
            logits: `[vocabulary]`, whose largest is at `likeliest`.
        """
        chooser = self.request.chooser
        try:
            token = likeliest if chooser.takes_likeliest else chooser.choose(logits)
            chooser.take(token)
            return token
        except Exception as error:
            self.fault = error
            return likeliest

    def take(self, token: Token) -> bool:
        """The next token; whether the answer is over."""
        if self.fault is not None:
            return True
        outcome, request = self.outcome, self.request
        if not outcome.tokens:
            outcome.first_token_seconds = time.perf_counter() - self.started
        outcome.tokens.append(token)
        self.news.put(token)
        if request.on_news is not None:
            request.on_news()
        try:
            if request.chooser.is_end(token.id) or (request.has_ended is not None and request.has_ended(token.id)):
                outcome.finish_reason = "stop"
            elif len(outcome.tokens) >= request.room:
                outcome.finish_reason = "length"
            else:
                return False
        except Exception as error:
            self.fault = error
        return True

    def finish(self, error: BaseException | None = None) -> None:
        """No more comes. Whoever waits is told."""
        if self.started:
            self.outcome.total_seconds = time.perf_counter() - self.started
        self.error, self.network = error, None
        self.lookup = None
        on_news = self.request.on_news
        del self.request  # and the pictures in it
        self.done.set()
        self.news.put(END)
        if on_news is not None:
            on_news()


class Ticket(Iterator[Token]):
    """The reader's end of a task: iterate over its tokens as they are chosen, or wait for the `result()`.

    A reader that is slow holds up nobody; one that is dropped has cancelled.
    """

    def __init__(self, engine: Engine, task: Task):
        self.engine, self._task = engine, task
        self._has_ended = False

    def __next__(self) -> Token:
        while not self._has_ended:
            try:
                token = self._task.news.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if token is not END:
                return token
            self._has_ended = True
            if self._task.error is not None:
                raise self._task.error
        raise StopIteration

    def read(self) -> list[Token]:
        """What has come since the last time, without waiting; `has_ended` says whether more may come.

        Raises:
            Exception: what went wrong with this request, once everything before was read.
        """
        found: list[Token] = []
        while not self._has_ended:
            try:
                token = self._task.news.get_nowait()
            except queue.Empty:
                break
            if token is not END:
                found.append(token)
                continue
            self._has_ended = True
            if self._task.error is not None:
                raise self._task.error
        return found

    @property
    def has_ended(self) -> bool:
        """Whether everything was read."""
        return self._has_ended

    @property
    def has_begun(self) -> bool:
        """Whether the engine had got to it."""
        return self._task.has_begun

    @property
    def is_done(self) -> bool:
        return self._task.done.is_set()

    def result(self) -> Outcome:
        """Wait for the end.

        Raises:
            Exception: what went wrong with this request.
        """
        try:
            while not self._task.done.wait(POLL_SECONDS):
                pass
        except BaseException:  # Ctrl-C
            self.cancel()
            raise
        if self._task.error is not None:
            raise self._task.error
        return self._task.outcome

    def cancel(self, wait: bool = True) -> None:
        """The model stops after the token in flight, which is waited for unless `wait` is false."""
        self.engine.cancel(self._task)
        if wait and not self.engine.is_this_thread:
            self._task.done.wait()

    def __del__(self) -> None:
        task: Any = getattr(self, "_task", None)
        if task is None or task.done.is_set() or task.cancelled or sys.is_finalizing():
            return
        if self.engine.turns.is_mine:  # the garbage is being collected in the middle of something
            task.cancelled = True
        else:
            self.cancel()
