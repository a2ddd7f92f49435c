"""How much one request, and all that are there at a time, may cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ..settings import Rule, check
from .errors import Refusal

RULES: Mapping[str, Rule] = {
    "max_body": Rule(int, 1024, 2**31),
    "max_pictures": Rule(int, 0, 1024),
    "max_answers": Rule(int, 1, 128),
    "max_new_tokens": Rule(int, 1, 1_000_000),
    "max_schema": Rule(int, 2, 65_536),
    "max_waiting": Rule(int, 0, 900),
    "drain_seconds": Rule(int, 0, 3600),
}
BODY_SECONDS = 60  # that a body may take to come; whoever dribbles holds a place that others wait for
MOST_VALUES = 200_000  # of a body's JSON: each becomes an object of some hundred bytes, pictures are one each
RETRY_SECONDS = 1  # until it is worth asking again


@dataclass(frozen=True)
class Limits:
    """How much requests may cost. What is beyond is refused before anything is decoded.

    Args:
        max_body: largest request, in bytes; pictures in it are a third larger than their files.
        max_pictures: pictures of one conversation.
        max_answers: answers to one request: `n`, or `choices` to be scored.
        max_new_tokens: longest answer that may be asked for, in tokens.
        max_schema: longest JSON schema, in characters.
        max_waiting: requests that wait beside those that are being answered; whoever comes then is told to come again.
        drain_seconds: when it is told to end, how long it goes on with what it has begun, in seconds.
    """

    max_body: int = 32 * 2**20
    max_pictures: int = 16
    max_answers: int = 16
    max_new_tokens: int = 4096
    max_schema: int = 16_384
    max_waiting: int = 64
    drain_seconds: int = 30

    def __post_init__(self) -> None:
        check(self, RULES)


class Admission:
    """Who may come in.

    Args:
        most: requests that are there at a time, each answer of one that wants several counted.
    """

    def __init__(self, most: int):
        self.most, self.inside, self.is_closing = most, 0, False

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be there, inside the `with`.

        Raises:
            Refusal: there is no room, or the server is about to end.
        """
        if self.is_closing:
            raise Refusal(503, "The server is about to end. Ask another one.", "shutting_down")
        with self.take(1):
            yield

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """So many places more, for who is there already, inside the `with`.

        Raises:
            Refusal: there is no room.
        """
        if self.inside + count > self.most:
            raise Refusal(
                429, "Too many requests are waiting. Ask again in a moment.", "queue_full",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )  # fmt: skip
        self.inside += count
        try:
            yield
        finally:
            self.inside -= count


def count_values(body: bytes) -> int:
    """How many values the JSON of a body can hold at most, told without reading it."""
    return body.count(b",") + body.count(b"[") + body.count(b"{") + 1
