"""Look at training data without training: what is there, what is broken, what would not fit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError, ImageError, VisGLMError, writing
from ..pictures import load_image
from ..processor import VisGLMProcessor
from .containers import Rows, is_stream, open_rows
from .folder import Folder, kind_of, open_image
from .formats import Conversation, format_of, read_row, to_common
from .index import UnusedKeys, answered, content_of
from .renderer import Renderer

NUM_BINS = 10  # of the histogram of lengths


@dataclass
class DataReport:
    """What a look at every row has found.

    Args:
        num_rows: rows that can be used.
        num_answers: answers in them.
        num_images: pictures in them.
        formats: rows by the name of their format.
        unused: keys that nobody reads, and in how many rows they are.
        problems: `(kind, where, what)` for each row that cannot be used; kinds are "row", "missing file",
            "refused image", "unreadable image", "empty answer" and "too long".
        duplicates: `[how many, 2]`, rows that say the same of the same picture, and the row that said it first.
        lengths: tokens of every example, image slots included.
        num_cut: examples longer than `max_length`.
        where: tells file and line of a row.
    """

    max_length: int
    where: Callable[[int], str]
    num_rows: int = 0
    num_answers: int = 0
    num_images: int = 0
    formats: Counter = field(default_factory=Counter)
    unused: UnusedKeys = field(default_factory=UnusedKeys)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    duplicates: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    lengths: Counter = field(default_factory=Counter)
    num_cut: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether every row can be used."""
        return not self.problems

    def histogram(self) -> list[tuple[int, int, int]]:
        """`(from, to, how many)`, by tokens."""
        if not self.lengths:
            return []
        low, high = min(self.lengths), max(self.lengths)
        width = max(1, -(-(high - low + 1) // NUM_BINS))
        bins = Counter((length - low) // width for length in self.lengths.elements())
        return [(low + place * width, low + (place + 1) * width - 1, bins[place]) for place in range(max(bins) + 1)]


def open_whole(source: Any, allow_outside: bool) -> Rows:
    """As `open_rows`, with a hint for streams, which have no end that could be waited for."""
    if is_stream(source):
        raise DataError("a stream cannot be read as a whole. Take a part of it: list(stream.take(1000)).")
    return open_rows(source, allow_outside)


def check_data(
    source: Any,
    processor: VisGLMProcessor,
    *,
    max_length: int,
    question: str | None = None,
    allow_outside: bool = False,
) -> DataReport:
    """Read every row, decode every picture, tokenize every prompt, and report.

    Args:
        source: as for `finetune`.
        processor: of the model that is to learn from it.
        max_length: longest prompt and answer, in tokens.
        question: asked of captions.
        allow_outside: whether rows of a file may name pictures outside of its folder.
    """
    rows, renderer = open_whole(source, allow_outside), Renderer(processor, max_length)
    report = DataReport(max_length, rows.where)
    usable, digests = array("q"), array("Q")  # 16 bytes a row, whatever it holds
    for number in range(len(rows)):
        try:
            row = rows[number]
            conversation = read_row(row, question)
        except VisGLMError as error:
            kind = "empty answer" if "is empty" in str(error) else "row"
            report.problems.append((kind, rows.where(number), str(error)))
            continue
        if problem := _check_images(conversation, rows.folder, renderer):
            report.problems.append((problem[0], rows.where(number), problem[1]))
            continue
        try:
            shapes = renderer.shapes(conversation.images, rows.folder)
            found = [renderer.render(conversation.turns[: turn + 1], shapes) for turn, _ in answered(conversation)]
        except VisGLMError as error:
            report.problems.append(("too long", rows.where(number), str(error)))
            continue
        report.lengths.update(len(rendered.input_ids) for rendered, _, _ in found)
        report.num_cut += sum(is_cut for _, _, is_cut in found)
        report.num_answers += len(found)
        report.unused.count(row)
        report.num_rows += 1
        report.num_images += len(conversation.images)
        report.formats[format_of(row)] += 1
        usable.append(number)
        digests.append(_digest(conversation))
    report.duplicates = _repeated(np.array(usable, dtype=np.int64), np.array(digests, dtype=np.uint64))
    return report


def _repeated(rows: np.ndarray, digests: np.ndarray) -> np.ndarray:
    """Rows whose digest an earlier one has, each beside the first that has it: `[how many, 2]`, in order."""
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    pairs = np.stack([rows, rows[first[group]]], axis=1)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _check_images(conversation: Conversation, folder: Folder, renderer: Renderer) -> tuple[str, str] | None:
    for image in conversation.images:
        try:
            folder.check(image)
        except ImageError as error:
            return "missing file" if "no picture" in str(error) else "refused image", str(error)
        try:
            renderer.open(image, folder)
        except ImageError as error:
            return "unreadable image", str(error)
    return None


def _digest(conversation: Conversation) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in (*map(content_of, conversation.images), repr(conversation.turns).encode("utf-8")):
        digest.update(b"%d:" % len(part) + part)
    return int.from_bytes(digest.digest(), "little")


def convert_data(
    source: Any,
    target: str | Path,
    *,
    question: str | None = None,
    allow_outside: bool = False,
    allow_urls: bool = False,
) -> tuple[int, list[str]]:
    """Write rows of any format as common rows, paths made relative to the target's folder.

    Pictures that are inside the source (WebDataset, `datasets`) are written to the folder `<target>-images`.

    Args:
        source: as for `finetune`.
        target: JSONL file to write.
        question: asked of captions.
        allow_outside: whether rows of a file may name pictures outside of its folder.
        allow_urls: whether pictures that are URLs are downloaded, into the same folder.

    Returns:
        How many rows were written, and what was wrong with the others.
    """
    rows, target = open_whole(source, allow_outside), Path(target)
    if isinstance(source, str | Path) and Path(source).resolve() == target.resolve():
        raise DataError(f"{target} would overwrite what it is made from. Choose another name.")
    pictures = PictureWriter(rows.folder, target, allow_urls)
    part = target.with_name(target.name + ".part")
    num_written, problems = 0, []
    with ExitStack() as stack:
        with writing(target):
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            target.parent.mkdir(parents=True, exist_ok=True)
            stack.callback(part.unlink, missing_ok=True)
            file = stack.enter_context(part.open("w", encoding="utf-8", newline="\n"))
        for number in range(len(rows)):
            try:
                common = to_common(rows[number], question, number)
                common["images"] = [
                    pictures.path_of(image, f"{number:07}-{place}") for place, image in enumerate(common["images"])
                ]
            except ConfigError:  # there is no room for its pictures, nor for those to come
                raise
            except VisGLMError as error:
                problems.append(f"{rows.where(number)}: {error}")
                continue
            with writing(target):
                file.write(json.dumps(common, ensure_ascii=False) + "\n")
            num_written += 1
        with writing(target):
            file.close()
            os.replace(part, target)
    return num_written, problems


class PictureWriter:
    """Paths of pictures for a file of common rows; what is no file yet becomes one beside it.

    Args:
        folder: of the rows. target: the file. allow_urls: whether URLs are downloaded.
    """

    def __init__(self, folder: Folder, target: Path, allow_urls: bool):
        self.folder, self.allow_urls, self.target_folder = folder, allow_urls, target.parent
        self.images_folder = target.with_name(target.stem + "-images")

    def path_of(self, image: Any, name: str) -> str:
        """The path to write, relative to the target's folder. Raises ImageError."""
        path = self.folder.locate(image)
        if not isinstance(path, Path):
            is_url = kind_of(image) == "http(s) URL"
            opened = (
                load_image(image, allow_urls=True) if is_url and self.allow_urls else open_image(image, self.folder)
            )
            path = self.images_folder / f"{name}.png"
            with writing(path):
                self.images_folder.mkdir(exist_ok=True)
                opened.save(path)
        return Path(os.path.relpath(path, self.target_folder)).as_posix()
