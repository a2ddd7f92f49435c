"""What reading every row once has found: answers, what cannot be used, and which pictures to keep apart."""

from __future__ import annotations

import logging
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import DataError, ImageError, VisGLMError, counted
from ..prompt import Turn
from .containers import Rows
from .folder import check_files
from .formats import Conversation, read_row, unused_keys

logger = logging.getLogger(__name__)

MAX_BAD_ROWS = 0.01  # share of the rows that may be unusable before training refuses to start or go on
MAX_HELD_OUT = 500  # rows: a loss over more takes time from training and tells no more
MAX_UNUSED_KEYS = 1000  # different ones that are counted
NUM_UNUSED_SHOWN = 20


@dataclass
class Index:
    """What reading every row once has found: which answers there are, and what cannot be used.

    Args:
        rows, turns: row and turn of every answer.
        groups: hash of the first picture (of the question where there is none) of every row, by which rows that share
            a picture stay on one side of the held-out split; -1 where the row is unusable.
        problems: file, line and what is wrong.
        checksum: of all questions and answers. Paths of pictures have no part in it: data may lie elsewhere next time.
    """

    rows: array = field(default_factory=lambda: array("q"))
    turns: array = field(default_factory=lambda: array("i"))
    groups: array = field(default_factory=lambda: array("q"))
    problems: list[str] = field(default_factory=list)
    checksum: int = 0


def build_index(rows: Rows, question: str | None = None) -> Index:
    """Read every row once; a dozen bytes are kept of each. Keys that nobody reads are told."""
    index, unused = Index(), UnusedKeys()
    for number in range(len(rows)):
        try:
            row = rows[number]
            conversation = read_row(row, question)
            check_files(conversation.images, rows.folder)
            group = _group(conversation)
        except VisGLMError as error:
            index.groups.append(-1)
            index.problems.append(f"{rows.where(number)}: {error}")
            continue
        index.groups.append(group)
        said = repr([(turn.question, turn.answer) for turn in conversation.turns])
        index.checksum = zlib.crc32(said.encode("utf-8"), index.checksum)
        unused.count(row)
        for turn, _ in answered(conversation):
            index.rows.append(number)
            index.turns.append(turn)
    if unused:
        logger.warning("%s", str(unused))
    return index


class UnusedKeys(Counter):
    """Keys of rows that nobody reads, and in how many rows they are."""

    def count(self, row: Any) -> None:
        self.update(key for key in unused_keys(row) if key in self or len(self) < MAX_UNUSED_KEYS)

    def __str__(self) -> str:
        shown = ", ".join(f"{key} ({counted(count, 'row')})" for key, count in self.most_common(NUM_UNUSED_SHOWN))
        more = f", and {len(self) - NUM_UNUSED_SHOWN} more" if len(self) > NUM_UNUSED_SHOWN else ""
        return f"keys that are not used: {shown}{more}."


def answered(conversation: Conversation) -> Iterator[tuple[int, Turn]]:
    return ((number, turn) for number, turn in enumerate(conversation.turns) if turn.answer is not None)


def _group(conversation: Conversation) -> int:
    first = conversation.images[0] if conversation.images else conversation.turns[0].question
    return zlib.crc32(content_of(first))


def content_of(image: Any) -> bytes:
    """By what pictures are told apart: the path or text of some, the pixels of others.

    Raises:
        ImageError: its pixels cannot be read.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        try:
            image = np.asarray(image)
        except Exception:  # Pillow's readers raise a dozen unrelated types
            raise ImageError("a picture's data ends early or is damaged. Get a complete copy of it.") from None
    if isinstance(image, Tensor):
        image = image.detach().cpu().float().numpy()
    if isinstance(image, np.ndarray):
        return f"{image.shape} {image.dtype}".encode() + image.tobytes()
    return str(image).encode("utf-8", "surrogatepass")


def split_held_out(index: Index, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Places in the index to train on, and to keep apart: `fraction` of the pictures, rounded down.

    The choice depends on the data alone, so that another run, method or seed keeps the same rows apart. A share that
    is less than one picture is none: of few pictures every one is needed to learn from.
    """
    groups = np.frombuffer(index.groups, dtype=np.int64)
    usable = np.unique(groups[groups >= 0])
    # 0.29 * 100 is a little less than 29.
    count = min(int(fraction * len(usable) + 1e-9), MAX_HELD_OUT, len(usable) - 1)
    if count < 1:
        return np.arange(len(index.rows)), np.arange(0)
    # A second hash: the first may be in the order of file names.
    mixed = (usable * 2654435761) % (1 << 32)
    held_out = np.isin(groups[np.frombuffer(index.rows, dtype=np.int64)], usable[np.argsort(mixed)[:count]])
    apart = np.flatnonzero(held_out)
    # Few pictures may have very many rows; those that are too many to measure on are not to train on either.
    return np.flatnonzero(~held_out), apart[:: max(1, -(-len(apart) // MAX_HELD_OUT))]


def check_bad_share(num_bad: int, num_rows: int, problems: Sequence[str], limit: float = MAX_BAD_ROWS) -> None:
    """Refuse data of which too much is unusable.

    Raises:
        DataError: more than `limit` of the rows are, or every one.
    """
    if num_bad > limit * num_rows or num_bad == num_rows:
        shown = "".join(f"\n  {problem}" for problem in problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        too_many = f"more than {limit:.0%}" if num_bad > limit * num_rows else "which leaves none"
        raise DataError(
            f"{num_bad} of {num_rows} rows cannot be used, {too_many}:{shown}{more}\n"
            "Mend or remove them (`visglm data check` lists them all), or raise max_bad_rows."
        )
