"""An answer as it comes from a server."""

from __future__ import annotations

import socket
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..errors import ServerError, require
from ..reply import Reply, Timings, Usage
from ..stream import TEXT, THINKING
from .connection import Connection, events_of, read_json, understood, want
from .errors import error_of, unreachable
from .messages import reply_of, usage_of


class RemoteStream(Iterator[str]):
    """Pieces of an answer as they come; `.reply` is the whole when it has ended. The server is asked when the first
    piece is. Closing it, from whatever thread, or leaving the loop and dropping it, stops the model."""

    def __init__(self, connection: Connection, messages: Sequence[Mapping[str, Any]], body: Mapping[str, Any]):
        self._connection, self._messages, self._body = connection, messages, body
        self._response: Any = None
        self._has_ended = self._is_closed = False
        self._text = self.thinking = ""  # the answer, and what was thought before it, so far
        self._reason, self._usage = "cancelled", Usage(0, 0)
        self._timings = Timings(0.0, 0.0, 0.0)
        self._pieces = self._read()

    def __next__(self) -> str:
        return next(piece for kind, piece in self._pieces if kind == TEXT)

    def parts(self) -> Iterator[tuple[str, str]]:
        """Pieces with what they are: "thinking", or "text" of the answer."""
        return self._pieces

    def close(self) -> None:
        """Stop."""
        self._is_closed = True
        try:
            self._pieces.close()
        except ValueError:  # it is being read by another thread, which only the end of its connection wakes
            with suppress(Exception):
                sock = self._response.extensions["network_stream"].get_extra_info("socket")
                sock.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        self.close()

    @property
    def reply(self) -> Reply:
        """The whole answer; of a stream that was closed, the part there is, its `finish_reason` "cancelled".

        Raises:
            ServerError: it has not ended, or failed.
        """
        if not self._has_ended and not self._is_closed:
            raise ServerError("there is no reply: read the stream to its end first, and without an error.", "failed")
        return reply_of(self._messages, self._text, self._reason, self._usage, self._timings, self.thinking)

    def _read(self) -> Generator[tuple[str, str], None, None]:
        httpx, url = require("remote", "httpx"), self._connection.url
        started = time.perf_counter()
        try:
            with self._connection.open("POST", "/v1/chat/completions", self._body) as self._response:
                reason = "cancelled"
                for event in events_of(url, self._response):
                    if event == "[DONE]":
                        break
                    told = read_json(url, event.encode())
                    if "error" in told:
                        raise error_of(url, 500, event.encode())
                    with understood(url):
                        self._usage = usage_of(told["usage"]) if told.get("usage") else self._usage
                        choices = [told_by(choice) for choice in told["choices"]]
                    for ended, thought, piece in choices:
                        reason = ended or reason
                        self.thinking, self._text = self.thinking + thought, self._text + piece
                        if thought or piece:
                            now = time.perf_counter() - started
                            self._timings = Timings(0.0, self._timings.first_token or now, now)
                        yield from ((kind, part) for kind, part in ((THINKING, thought), (TEXT, piece)) if part)
                else:
                    raise unreachable(url, "it broke off")
        except (ServerError, httpx.HTTPError, httpx.StreamError, OSError) as error:
            if self._is_closed:
                return
            raise (error if isinstance(error, ServerError) else unreachable(url, error)) from None
        self._has_ended, self._reason = True, reason


def told_by(choice: Any) -> tuple[str, str, str]:
    """Why the answer ended, what was thought, and what was said; each may be nothing.

    Raises:
        TypeError, LookupError, AttributeError: it is no piece of an answer.
    """
    delta = choice["delta"]
    said = (choice.get("finish_reason"), delta.get("reasoning_content"), delta.get("content"))
    ended, thought, piece = (want(str, each or "") for each in said)
    return ended, thought, piece
