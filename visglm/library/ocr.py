"""What is written in a picture: who may read it, and RapidOCR, which does where the extra `ocr` is installed."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..errors import require
from .pieces import Line, Piece, union

LOWEST_SCORE = 0.6  # of a line, by its reader's own judgement
ONE_AT_A_TIME = threading.Lock()


class Ocr(Protocol):
    """Reads what is written in a picture.

    Attributes:
        name: by which a library knows who read; "" for whoever there is.
    """

    name: str

    def can_read(self) -> bool:
        """Whether there is somebody."""

    def read(self, image: Image.Image) -> Iterator[Piece]:
        """What is written there, from top to bottom."""


class RapidOcr:
    """RapidOCR, where it is installed; nobody else."""

    name = ""

    def can_read(self) -> bool:
        return can_read()

    def read(self, image: Image.Image) -> Iterator[Piece]:
        return read_lines(image)


def can_read() -> bool:
    """Whether the extra `ocr` is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("rapidocr", "onnxruntime"))


@cache
def _reader() -> Any:
    module = require("ocr", "rapidocr")
    logging.getLogger("RapidOCR").setLevel(logging.WARNING)
    return module.RapidOCR(params={"Global.log_level": "warning"})


def read_lines(image: Image.Image) -> Iterator[Piece]:
    """The lines in a picture with their boxes, from top to bottom; those that touch, one paragraph. Nothing without the
    extra."""
    if not can_read():
        return
    with ONE_AT_A_TIME:
        found = _reader()(np.asarray(image)[:, :, ::-1])
    if found.txts is None or found.boxes is None:
        return
    width, height = image.size
    text, lines = "", list[Line]()
    last_bottom = None
    for words, corners, score in zip(found.txts, found.boxes, found.scores, strict=True):
        if score < LOWEST_SCORE or not words.strip():
            continue
        across, down = corners[:, 0] / width, corners[:, 1] / height
        box = union([(float(x), float(y), float(x), float(y)) for x, y in zip(across, down, strict=True)])
        if box is None:
            continue
        is_apart = last_bottom is not None and box[1] - last_bottom > box[3] - box[1]
        if is_apart and text:
            yield Piece(text, lines=tuple(lines))
            text, lines = "", []
        text += "\n" if text else ""
        lines.append((len(text), len(text) + len(words), box))
        text += words
        last_bottom = box[3]
    if text:
        yield Piece(text, lines=tuple(lines))
