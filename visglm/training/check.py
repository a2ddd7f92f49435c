"""Look at training data without training: what is there, what is broken, what would not fit."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, ImageError, VisGLMError
from ..processor import VisGLMProcessor
from .containers import Rows, is_stream, open_rows
from .data import Renderer, answered, locate, open_image
from .formats import Conversation, format_of, read_row, to_common

NUM_BINS = 10  # of the histogram of lengths


@dataclass
class DataReport:
    """What a look at every row has found.

    Args:
        num_rows, num_answers, num_images: of the rows that can be used.
        formats: rows by the name of their format. languages: answers by language.
        problems: `(kind, where, what)` for each row that cannot be used; kinds are "row", "missing file",
            "unreadable image", "empty answer" and "too long".
        duplicates: `[how many, 2]`, rows that say the same of the same picture, and the row that said it first.
        lengths: tokens of every example, image slots included. num_cut: examples longer than `max_length`.
        where: tells file and line of a row.
    """

    max_length: int
    where: Callable[[int], str]
    num_rows: int = 0
    num_answers: int = 0
    num_images: int = 0
    formats: Counter = field(default_factory=Counter)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    duplicates: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    lengths: Counter = field(default_factory=Counter)
    num_cut: int = 0

    @property
    def is_clean(self) -> bool:
        return not self.problems

    def histogram(self) -> list[tuple[int, int, int]]:
        """`(from, to, how many)`, by tokens."""
        if not self.lengths:
            return []
        low, high = min(self.lengths), max(self.lengths)
        width = max(1, -(-(high - low + 1) // NUM_BINS))
        bins = Counter((length - low) // width for length in self.lengths.elements())
        return [(low + place * width, low + (place + 1) * width - 1, bins[place]) for place in range(max(bins) + 1)]


def open_whole(source: Any) -> Rows:
    """As `open_rows`, with a hint for streams, which have no end that could be waited for."""
    if is_stream(source):
        raise DataError("a stream cannot be read as a whole. Take a part of it: list(stream.take(1000)).")
    return open_rows(source)


def check_data(source: Any, processor: VisGLMProcessor, *, max_length: int, question: str | None = None) -> DataReport:
    """Read every row, decode every picture, tokenize every prompt, and report.

    Args:
        source: as for `finetune`. processor: of the model that is to learn from it.
        max_length: longest prompt and answer, in tokens. question: asked of captions.
    """
    rows, renderer = open_whole(source), Renderer(processor, max_length)
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
            for turn, _ in answered(conversation):
                rendered, _, is_cut = renderer.render(conversation.turns[: turn + 1])
                report.lengths[len(rendered.input_ids)] += 1
                report.num_cut += is_cut
                report.num_answers += 1
        except DataError as error:
            report.problems.append(("too long", rows.where(number), str(error)))
            continue
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


def _check_images(conversation: Conversation, folder: Path, renderer: Renderer) -> tuple[str, str] | None:
    for image in conversation.images:
        path = locate(image, folder)
        if isinstance(path, Path) and not path.is_file():
            return "missing file", f"there is no picture {path}."
        try:
            renderer.open(image, folder)
        except ImageError as error:
            return "unreadable image", str(error)
    return None


def _digest(conversation: Conversation) -> int:
    images = [image if isinstance(image, str) else repr(image) for image in conversation.images]
    text = repr((images, conversation.turns)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def convert_data(source: Any, target: str | Path, *, question: str | None = None) -> tuple[int, list[str]]:
    """Write rows of any format as common rows, paths made relative to the target's folder.

    Pictures that are inside the source (WebDataset, `datasets`) are written to the folder `<target>-images`.

    Returns:
        How many rows were written, and what was wrong with the others.
    """
    rows, target = open_whole(source), Path(target)
    if isinstance(source, str | Path) and Path(source).resolve() == target.resolve():
        raise DataError(f"{target} would overwrite what it is made from. Choose another name.")
    images_folder = target.with_name(target.stem + "-images")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    num_written, problems = 0, []
    with part.open("w", encoding="utf-8", newline="\n") as file:
        for number in range(len(rows)):
            try:
                common = to_common(rows[number], question)
                read_row(common)
                common["images"] = [
                    _image_path(image, rows.folder, target.parent, images_folder, f"{number:07}-{place}")
                    for place, image in enumerate(common["images"])
                ]
            except VisGLMError as error:
                problems.append(f"{rows.where(number)}: {error}")
                continue
            file.write(json.dumps(common, ensure_ascii=False) + "\n")
            num_written += 1
    os.replace(part, target)
    return num_written, problems


def _image_path(image: Any, folder: Path, target_folder: Path, images_folder: Path, name: str) -> str:
    located = locate(image, folder)
    if isinstance(located, Path):
        return Path(os.path.relpath(located, target_folder)).as_posix()
    images_folder.mkdir(exist_ok=True)
    path = images_folder / f"{name}.png"
    open_image(image, folder).save(path)
    return Path(os.path.relpath(path, target_folder)).as_posix()
