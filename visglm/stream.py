"""An answer as it is decoded: text piece by piece, never half a character, then the reply."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from .errors import VisGLMError
from .reply import Reply
from .writing import Writer

THINKING, TEXT = "thinking", "text"  # what a piece is


class ReplyStream(Iterator[str]):
    """Iterate over the pieces of an answer as they are decoded; `.reply` is the whole when it has ended.

    What a model thinks before it answers is no piece: `.thinking` has it, and `parts()` gives both as they come.

    Closing it, from whatever thread, or leaving the loop and dropping it, stops the model after the token in flight.
    The model is asked when the first piece is.

    Args:
        ask: asks it, and gives the answer on its way: a `ticket`, which has the tokens, and `reply()`.
        writer: makes text of tokens.
    """

    def __init__(self, ask: Callable[[], Any], writer: Writer):
        self._ask: Callable[[], Any] | None = ask
        self._answer: Any = None
        self._reply: Reply | None = None
        self._error: BaseException | None = None
        self._writer = writer
        self._num_shown = self._num_thought = 0
        self._has_ended = self._is_closed = False
        self._waiting: list[tuple[str, str]] = []  # pieces that came with one that was read
        self._starting, self._reading = threading.Lock(), threading.Lock()

    def __next__(self) -> str:
        while True:
            kind, piece = self._advance()
            if kind == TEXT:
                return piece

    def parts(self) -> Iterator[tuple[str, str]]:
        """Pieces with what they are: "thinking", or "text" of the answer."""
        while True:
            try:
                part = self._advance()
            except StopIteration:
                return
            yield part

    @property
    def thinking(self) -> str:
        """What was thought so far."""
        return self._writer.thinking

    def _advance(self) -> tuple[str, str]:
        with self._reading:
            self._start()
            if self._waiting and not self._is_closed:
                return self._waiting.pop(0)
            while self._answer is not None and not self._has_ended and not self._is_closed:
                try:
                    token = next(self._answer.ticket)
                except StopIteration:
                    piece = self._end()
                except BaseException as error:
                    self._has_ended, self._error = True, error
                    raise
                else:
                    piece = "" if self._is_closed else self._push(token.id)
                if self._is_closed:
                    break
                thought, self._num_thought = self._writer.thinking[self._num_thought :], len(self._writer.thinking)
                self._waiting = [part for part in ((THINKING, thought), (TEXT, piece)) if part[1]]
                if self._waiting:
                    return self._waiting.pop(0)
            raise StopIteration

    def _start(self) -> None:
        with self._starting:
            if self._ask is not None and not self._is_closed:
                ask, self._ask = self._ask, None
                try:
                    self._answer = ask()
                except BaseException as error:
                    self._has_ended, self._error = True, error
                    raise

    def _push(self, token: int) -> str:
        self._writer.push(token)
        return self._show(self._writer.ready)

    def _end(self) -> str:
        if self._is_closed:
            return ""
        self._has_ended = True
        return self._show(self._writer.finish())

    def _show(self, ready: str) -> str:
        start, self._num_shown = self._num_shown, max(self._num_shown, len(ready))
        return ready[start:]

    def close(self) -> None:
        """End the answer here. `.reply` is what there is of it, if the model had begun; no more pieces come."""
        with self._starting:
            if self._has_ended:
                return
            self._is_closed = True
            self._ask = None
        if self._answer is not None:
            self._answer.ticket.cancel()

    @property
    def reply(self) -> Reply:
        """The whole answer; of a stream that was closed the part there is, its `finish_reason` "cancelled".

        Raises:
            VisGLMError: the stream has not ended yet, was closed before the model began, or ended with an error.
        """
        if not self._has_ended and not self._is_closed:
            raise VisGLMError("there is no reply before the stream has ended; read it to its end, then ask for .reply.")
        if self._answer is None or not self._answer.ticket.has_begun or self._error is not None:
            how = "failed" if self._error is not None else "was closed before the model began"
            raise VisGLMError(f"there is no reply: the stream {how}. Ask again.")
        if self._reply is None:
            self._reply = self._answer.reply()
        return self._reply

    def __repr__(self) -> str:
        state = "ended" if self._has_ended else "closed" if self._is_closed else "open"
        return f"<ReplyStream: {state}, {self._num_shown} characters read>"
