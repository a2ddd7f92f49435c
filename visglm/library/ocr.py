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
from .layout import Row, in_order, paragraphs, piece_of, slant, upright
from .pieces import Piece

LOWEST_SCORE = 0.6  # of a line, by its reader's own judgement
# Below, a line is read once more: long ones come out garbled at times, and whole with a little more paper around them.
DOUBTFUL_SCORE = 0.9
PAPER = 4  # pixels of it
LETTERS = 0.75  # of a box's height, which has some paper above and below its letters
ALIKE = 0.6  # of the heights of two lines of one paragraph: one without a p or an l has a lower box
ONE_AT_A_TIME = threading.Lock()
Corners = list[tuple[float, float]]  # x and y in pixels, clockwise from the upper left one


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
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)  # it warns of every picture without a word
    return module.RapidOCR(params={"Global.log_level": "error", "Global.text_score": 0.0})


def read_lines(image: Image.Image) -> Iterator[Piece]:
    """The paragraphs in a picture, in the order in which they are read, with the boxes of their lines. Nothing without
    the extra."""
    if not can_read():
        return
    with ONE_AT_A_TIME:
        # What is left out here stays as the call before has set it.
        found = _reader()(np.asarray(image)[:, :, ::-1], use_det=True, use_cls=True)
        if found.txts is None or found.boxes is None:
            return
        lines = [
            (*surer(image, words, float(score), corners), corners)
            for words, score, corners in zip(found.txts, found.scores, map(points, found.boxes), strict=True)
        ]
    kept = [(words, corners) for words, score, corners in lines if score >= LOWEST_SCORE and words.strip()]
    degrees = slant([corners for _, corners in kept])
    rows = [row_of(words, corners, degrees, image.size) for words, corners in kept]
    for paragraph in paragraphs(in_order(rows), ALIKE):
        yield piece_of(paragraph)


def points(corners: np.ndarray) -> Corners:
    return [(float(x), float(y)) for x, y in corners]


def surer(image: Image.Image, words: str, score: float, corners: Corners) -> tuple[str, float]:
    """A line's words and their score; where that is low, as it is read by itself, if it is surer of that."""
    if score >= DOUBTFUL_SCORE:
        return words, score
    again = _reader()(np.asarray(cut_out(image, corners))[:, :, ::-1], use_det=False, use_cls=False)
    if again.txts and float(again.scores[0]) > score:
        return again.txts[0], float(again.scores[0])
    return words, score


def cut_out(image: Image.Image, corners: Corners) -> Image.Image:
    """A line, upright, with some paper around it."""
    upper_left, upper_right, lower_right, lower_left = map(np.array, corners)
    across, down = upper_right - upper_left, lower_left - upper_left
    width, height = max(float(np.linalg.norm(across)), 1.0), max(float(np.linalg.norm(down)), 1.0)
    right, below = PAPER / width * across, PAPER / height * down
    quad = (upper_left - right - below, lower_left - right + below, lower_right + right + below,
            upper_right + right - below)  # fmt: skip
    size = (round(width) + 2 * PAPER, round(height) + 2 * PAPER)
    data = tuple(float(number) for corner in quad for number in corner)
    return image.transform(size, Image.Transform.QUAD, data, Image.Resampling.BICUBIC)


def row_of(words: str, corners: Corners, degrees: float, size: tuple[int, int]) -> Row:
    """A line: set upright, to be ordered, and its box in the picture as it is."""
    left, bottom, right, top = upright(corners, degrees)
    blank = (1 - LETTERS) / 2 * (top - bottom)
    across, down = [x / size[0] for x, _ in corners], [y / size[1] for _, y in corners]
    box = (min(across), min(down), max(across), max(down))
    return Row(words, left, bottom + blank, right, top - blank, box)
