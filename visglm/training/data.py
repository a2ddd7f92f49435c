"""Rows → items: one per answer, read, decoded and rendered when it is needed. Only its last answer is supervised."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ..errors import DataError, VisGLMError
from ..prompt import IGNORE_INDEX, Rendered
from .containers import Rows, as_row, undecoded
from .folder import HERE
from .formats import Conversation, read_row
from .index import Index, UnusedKeys, answered
from .renderer import Example, Renderer

logger = logging.getLogger(__name__)

NUM_SUBSTITUTES = 100  # rows tried in place of one whose picture cannot be read


def shared_number() -> Tensor:
    """A number that processes that read data see as it is now."""
    return torch.zeros((), dtype=torch.int64).share_memory_()


def question_number(row: int, epoch: int) -> int:
    """Which question is asked of a caption: each row begins somewhere, and goes round epoch by epoch."""
    return zlib.crc32(str(row).encode()) + epoch


class TrainingData(Dataset):
    """One item per answer; files are read, pictures decoded and prompts tokenized when it is asked for.

    A row whose picture turns out to be broken is replaced by the next one that is not, and named in the item.

    Args:
        rows: where they are kept. index: of them. places: which answers of the index are meant.
        renderer: of the model. question: asked of captions, in place of one after the other as `epoch` goes on.
    """

    def __init__(self, rows: Rows, index: Index, places: np.ndarray, renderer: Renderer, question: str | None = None):
        self.rows, self.renderer, self.question = rows, renderer, question
        self.epoch = shared_number()
        self.checksum = f"{index.checksum:08x}"
        self.row_of = np.frombuffer(index.rows, dtype=np.int64)[places]
        self.turn_of = np.frombuffer(index.turns, dtype=np.int32)[places]

    def __len__(self) -> int:
        return len(self.row_of)

    def conversation(self, index: int) -> Conversation:
        """The row of an item."""
        row = int(self.row_of[index])
        return read_row(self.rows[row], self.question, question_number(row, int(self.epoch)))

    def where(self, index: int) -> str:
        return self.rows.where(int(self.row_of[index]))

    def rendered(self, index: int) -> tuple[Rendered, bool]:
        """Ids and labels of an item without its pictures, and whether it was cut."""
        conversation = self.conversation(index)
        turns = conversation.turns[: self.turn_of[index] + 1]
        shown = conversation.images[: sum(turn.num_images for turn in turns)]
        rendered, _, is_cut = self.renderer.render(turns, self.renderer.shapes(shown, self.rows.folder))
        return rendered, is_cut

    def example(self, index: int) -> Example:
        return self.renderer.example(
            self.conversation(index), int(self.turn_of[index]), self.rows.folder, self.where(index)
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        skipped: list[str] = []
        for offset in range(min(NUM_SUBSTITUTES, len(self))):
            place = (int(index) + offset) % len(self)
            try:
                return self.renderer.tensors(self.example(place)) | {"skipped": skipped}
            except VisGLMError as error:
                skipped.append(f"{self.where(place)}: {error}")
        raise DataError(f"{len(skipped)} rows one after the other cannot be used. The first: {skipped[0]}")


class StreamData(IterableDataset):
    """As `TrainingData`, from rows that come one after the other only. Unusable rows are left out and named.

    Args:
        rows: an iterable that can be started anew. num_skipped_rows: rows at its start that are not meant.
    """

    def __init__(self, rows: Any, renderer: Renderer, question: str | None = None, num_skipped_rows: int = 0):
        self.rows, self.renderer, self.question = undecoded(rows), renderer, question
        self.num_skipped_rows = num_skipped_rows
        self.epoch = shared_number()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        skipped: list[str] = []
        unused = UnusedKeys()
        for number, row in enumerate(self.rows):
            if number < self.num_skipped_rows:
                continue
            try:
                row = as_row(row)
                conversation = read_row(row, self.question, question_number(number, int(self.epoch)))
                num_known = len(unused)
                unused.count(row)
                if len(unused) > num_known:
                    logger.warning("row %d: %s", number, str(unused))
                for turn, _ in answered(conversation):
                    example = self.renderer.example(conversation, turn, HERE, f"row {number}")
                    yield self.renderer.tensors(example) | {"skipped": skipped}
                    skipped = []
            except VisGLMError as error:
                skipped.append(f"row {number}: {error}")
                if len(skipped) == NUM_SUBSTITUTES:
                    raise DataError(
                        f"{NUM_SUBSTITUTES} rows one after the other cannot be used. The first: {skipped[0]}"
                    ) from None


class HeldOutData(Dataset):
    """Examples to measure on: one whose picture turns out to be broken is not replaced, and counts nothing.

    Args:
        data: what is held out.
    """

    def __init__(self, data: TrainingData):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data[index] | {"place": int(index)}
        if item["skipped"]:  # another stands in for it: a batch must have something in it
            item["skipped"] = item["skipped"][:1]
            item["labels"] = torch.full_like(item["labels"], IGNORE_INDEX)
        return item
