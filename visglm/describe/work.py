"""From pictures to rows: what is missing, read ahead, asked many at a time."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..errors import ImageError
from ..reply import why_unanswered
from .items import Item, Unreadable, read
from .results import Done, Row

if TYPE_CHECKING:
    from ..chat import VisGLM

READERS = 8  # pictures that are read side by side: they may come from far away
WINDOW = 8  # times the batch: pictures that are held at a time, and after which progress is shown
MOST_HELD = 256 * 2**20  # bytes of them


@dataclass(frozen=True)
class Task:
    """What is asked of every picture.

    Args:
        question: in words.
        settings: as the keyword arguments of `VisGLM.batch`.
    """

    question: str
    settings: dict[str, Any]


def identity(name: str, sha256: str) -> str:
    """Of a picture: where it lies and what it holds."""
    return f"{name}#{sha256[:16]}"


def sha256_of(content: bytes, most: int) -> str:
    """Nothing of one that is too large: it was not read to its end."""
    return hashlib.sha256(content).hexdigest() if len(content) <= most else ""


def missing(items: Iterable[Item], done: Done, most: int) -> Iterator[Item]:
    """Those that no shard holds. One that was touched is read: with the same content it is done.

    Args:
        most: bytes of a picture.
    """
    for item in items:
        if done.has_version(item.name, item.stamp):
            continue
        if done.has_name(item.name):
            try:
                if done.has_id(identity(item.name, sha256_of(read(item, most), most))):
                    continue
            except Unreadable:
                pass
        yield item


def to_shards(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    items = iter(items)
    while shard := list(islice(items, size)):
        yield shard


def describe(vlm: VisGLM, items: Sequence[Item], task: Task) -> Iterator[list[Row]]:
    """Rows in the order of the pictures, some at a time.

    Raises:
        VisGLMError: the model failed, or cannot do what is asked. What is wrong with a picture is in its row.
    """
    most = vlm.image_limits.max_bytes
    size = WINDOW * task.settings["batch_size"]
    window: list[tuple[Item, bytes | Unreadable]] = []
    held = 0
    for item, content in read_ahead(items, lambda item: content_of(item, most)):
        window.append((item, content))
        held += 0 if isinstance(content, Unreadable) else len(content)
        if len(window) == size or held >= MOST_HELD:
            yield answer(vlm, window, task)
            window, held = [], 0
    if window:
        yield answer(vlm, window, task)


def content_of(item: Item, most: int) -> bytes | Unreadable:
    try:
        return read(item, most)
    except Unreadable as error:
        return error


def read_ahead(items: Iterable[Item], act: Callable[[Item], Any]) -> Iterator[tuple[Item, Any]]:
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque[tuple[Item, Future]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(act, item)))
                if len(waiting) > READERS:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def answer(vlm: VisGLM, window: Sequence[tuple[Item, bytes | Unreadable]], task: Task) -> list[Row]:
    readable = [content for _, content in window if not isinstance(content, Unreadable)]
    replies = iter(
        vlm.batch(
            [(content, task.question) for content in readable], on_error="return", progress=False, **task.settings
        )
    )
    most = vlm.image_limits.max_bytes
    return [
        row_of(item, content, content if isinstance(content, Unreadable) else next(replies), most)
        for item, content in window
    ]


def row_of(item: Item, content: bytes | Unreadable, reply: Any, most: int) -> Row:
    failed = isinstance(reply, ImageError | Unreadable)
    if isinstance(reply, Exception) and not failed:  # it is not about this picture
        raise reply
    error = str(reply) if failed else why_unanswered(reply) or None
    sha256 = None if isinstance(content, Unreadable) else sha256_of(content, most)
    return {
        "id": identity(item.name, sha256 or ""), "image": item.name, "sha256": sha256, "stamp": item.stamp,
        "text": None if error else reply.text, "finish_reason": None if failed else reply.finish_reason,
        "error": error,
    }  # fmt: skip
