"""Rows → batches: one example per answer, read and decoded when it is needed, padded on the right.

The prompt of an example is what chat would show the model, from the same renderer; only its last answer is supervised.
"""

from __future__ import annotations

import logging
import zlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ..errors import DataError, ImageError, VisGLMError
from ..prompt import IGNORE_INDEX, Rendered, Turn, render
from ..reply import PictureShape
from .containers import Rows, as_row, undecoded
from .folder import HERE, Folder, check_files, open_image
from .formats import Conversation, read_row, unused_keys

logger = logging.getLogger(__name__)

MAX_BAD_ROWS = 0.01  # share of the rows that may be unusable before training refuses to start or go on
MAX_HELD_OUT = 500  # rows: a loss over more takes time from training and tells no more
NUM_SUBSTITUTES = 100  # rows tried in place of one whose picture cannot be read
MAX_UNUSED_KEYS = 1000  # different ones that are counted
NUM_UNUSED_SHOWN = 20


@dataclass(frozen=True)
class Example:
    """One answer to learn.

    Args:
        rendered: ids and labels.
        images: pictures in order, RGB.
        where: file and line, for people.
        is_cut: whether the context had no room for all of it.
    """

    rendered: Rendered
    images: tuple[Image.Image, ...]
    where: str
    is_cut: bool


@dataclass
class Index:
    """What reading every row once has found: which answers there are, and what cannot be used.

    Args:
        rows, turns: row and turn of every answer.
        groups: hash of the first picture (of the question where there is none) of every row, by which rows that share
            a picture stay on one side of the held-out split; -1 where the row is unusable.
        problems: file, line and what is wrong.
    """

    rows: array = field(default_factory=lambda: array("q"))
    turns: array = field(default_factory=lambda: array("i"))
    groups: array = field(default_factory=lambda: array("q"))
    problems: list[str] = field(default_factory=list)


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
        shown = ", ".join(f"{key} ({count} rows)" for key, count in self.most_common(NUM_UNUSED_SHOWN))
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


class Renderer:
    """Conversations → examples, for one model.

    Args:
        processor: of the model.
        max_length: longest prompt and answer, in tokens.
    """

    def __init__(self, processor: Any, max_length: int):
        self.processor = processor
        self.max_length = max_length
        self.options = processor.render_options

    def shapes(self, images: Sequence[Any], folder: Folder) -> tuple[PictureShape, ...]:
        """Of pictures that are opened for it, where their size says how many image slots they have; else nothing."""
        if self.processor.num_query_tokens is not None:
            return ()
        return tuple(self.processor.shapes([self.open(image, folder) for image in images]))

    def rendered(self, turns: Sequence[Turn], shapes: Sequence[PictureShape] = ()) -> Rendered:
        """Turns with all their pictures' image slots."""
        slots = {"num_query_tokens": [one.num_tokens for one in shapes]}
        return render(turns, **self.options | (slots if self.processor.num_query_tokens is None else {}))

    def render(self, turns: Sequence[Turn], shapes: Sequence[PictureShape] = ()) -> tuple[Rendered, int, bool]:
        """The conversation up to its last answer, how many of its first turns had to go, and whether anything had to.

        What does not fit loses its oldest turns as long as they show no picture, then the end of the answer. Image
        slots are never touched.

        Raises:
            DataError: the question alone does not fit.
        """
        num_dropped = 0
        rendered = self.rendered(turns, shapes)
        if len(rendered.input_ids) > self.max_length:
            num_dropped = self.num_to_drop(turns, shapes)
            rendered = self.rendered(turns[num_dropped:], shapes)
        length = len(rendered.input_ids)
        if length <= self.max_length:
            return rendered, num_dropped, num_dropped > 0
        num_prompt = rendered.labels.count(IGNORE_INDEX)
        if num_prompt >= self.max_length:
            raise DataError(
                f"the question takes {num_prompt} tokens, image slots included, and leaves no room for an answer "
                f"within {self.max_length}. Shorten it, show fewer pictures, or raise max_length."
            )
        cut = slice(self.max_length)
        return Rendered(rendered.input_ids[cut], rendered.labels[cut]), num_dropped, True

    def num_to_drop(self, turns: Sequence[Turn], shapes: Sequence[PictureShape] = ()) -> int:
        """How many of the first turns must go until the rest fits; all that may, where it never does.

        Searched for by halves: a row may have thousands.
        """
        most = min(next((place for place, turn in enumerate(turns) if turn.num_images), len(turns)), len(turns) - 1)
        least = min(max(1, len(turns) - self.max_length), most)  # every turn takes a token at least
        candidates = range(least, most)

        def fits(dropped: int) -> bool:
            return len(self.rendered(turns[dropped:], shapes).input_ids) <= self.max_length

        return least + bisect_left(candidates, True, key=fits)

    def example(self, conversation: Conversation, turn: int, folder: Folder, where: str) -> Example:
        """The example of one answer, its pictures read."""
        turns = conversation.turns[: turn + 1]
        num_images = sum(turn.num_images for turn in turns)  # only turns without pictures are dropped
        shown = conversation.images[:num_images]
        rendered, _, is_cut = self.render(turns, self.shapes(shown, folder))  # before all are opened: it may not fit
        images = tuple(self.open(image, folder) for image in shown)
        return Example(rendered, images, where, is_cut)

    def open(self, image: Any, folder: Folder) -> Image.Image:
        """As `open_image`, within the limits of the model's image processor."""
        return open_image(image, folder, self.processor.limits)

    def tensors(self, example: Example) -> dict[str, Any]:
        """An example as the collator takes it."""
        item: dict[str, Any] = {
            "input_ids": torch.tensor(example.rendered.input_ids),
            "labels": torch.tensor(example.rendered.labels),
            "where": example.where,
            "is_cut": example.is_cut,
            "skipped": [],
        }
        if example.images:
            item["pixel_values"] = self.processor.pixels(example.images)
        return item


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


@dataclass(frozen=True)
class Collator:
    """Items → a batch: ids and labels padded on the right, all pictures in order of appearance.

    Logits are asked for where some answer goes on, and nowhere else.

    Without a picture in the batch, `pixel_values` has no rows but is there: with sharded weights every process must
    run every module.

    `pictures` tells them apart by content, `is_own` says whose answers are the model's own.

    Args:
        pad_token_id: fills up ids.
        image_size: height and width of `pixel_values`; None for a text-only model.
        arrange: of a family whose pictures are of any size, what its network takes of a batch and its pictures.
    """

    pad_token_id: int
    image_size: tuple[int, int] | None
    arrange: Callable[[dict[str, Any], list[Tensor]], dict[str, Any]] | None = None

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        input_ids, labels = [item["input_ids"] for item in items], [item["labels"] for item in items]
        batch: dict[str, Any] = {
            "input_ids": pad(input_ids, self.pad_token_id),
            "attention_mask": pad([torch.ones_like(ids) for ids in input_ids], 0),
            "labels": pad(labels, IGNORE_INDEX),
            "where": [item["where"] for item in items],
            "skipped": [where for item in items for where in item["skipped"]],
            "num_cut": sum(item["is_cut"] for item in items),
            "pictures": [
                blake2b(picture.numpy().tobytes(), digest_size=16).digest()
                for item in items
                for picture in item.get("pixel_values", ())
            ],
            "is_own": [item.get("is_own", False) for item in items],
            "num_tokens": sum(map(len, input_ids)),  # counted here: a GPU would have to be waited for
        }
        is_learnt = (batch["labels"] != IGNORE_INDEX).any(0)
        if places := [item["place"] for item in items if "place" in item]:
            batch["places"] = places
            is_learnt[1] |= not bool(is_learnt.any())  # all of them broken: the model runs all the same
        elif not bool(is_learnt.any()):
            raise DataError(f"no token to learn in a whole batch: {', '.join(batch['where'])}. Check these answers.")
        # Over a whole vocabulary, logits of a long prompt would take more time and memory than all else around them.
        batch["logits_to_keep"] = is_learnt.nonzero().flatten() - 1
        pictures = [item["pixel_values"] for item in items if "pixel_values" in item]
        if self.arrange is not None:
            return batch | self.arrange(batch, [picture for some in pictures for picture in some])
        if self.image_size is not None:
            batch["pixel_values"] = torch.cat(pictures) if pictures else torch.zeros(0, 3, *self.image_size)
        elif pictures:
            raise DataError(f"{batch['where'][0]} shows a picture to a text-only model. Choose a model that can see.")
        return batch


def pad(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


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
