"""What a picture says is read in the order in which people read it. Lines are found here by their places in a drawing,
so that these tests need no reader of letters; tests/library/test_ocr.py has one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.library import samples
from visglm import Library
from visglm.library import answer, ocr

SIZE = (1000, 1400)  # pixels of a page
PITCH, HEIGHT, LETTER = 40, 30, 14
LEFT = (
    "The lighthouse of Orsund was built in", "1874 and lit by oil for thirty years.", "Its keeper climbed the stairs",
    "four times in every single night, and", "wrote down what he had seen there.",
)  # fmt: skip
RIGHT = (
    "A railway came to the town in 1891 and", "went as far as the northern harbour.", "Two trains a day were enough",
    "until the cannery began to work in", "three shifts, in summer and winter.",
)  # fmt: skip


def columns(tilt: float = 0.0, title: str = "") -> list:
    """Words and corners, from top to bottom as a reader of letters finds them, both columns alternating."""
    found = [place(title, 80, 40, tilt)] if title else []
    for number in range(len(LEFT)):
        found.append(place(LEFT[number], 80, 160 + number * PITCH, tilt))
        found.append(place(RIGHT[number], 540, 160 + number * PITCH, tilt))
    return sorted(found, key=lambda line: line[1][0][1])


def place(words: str, left: float, top: float, tilt: float) -> tuple[str, list]:
    right = left + LETTER * 0.75 * len(words)
    corners = [(left, top), (right, top), (right, top + HEIGHT), (left, top + HEIGHT)]
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    middle_x, middle_y = SIZE[0] / 2, SIZE[1] / 2
    return words, [
        ((x - middle_x) * cos - (y - middle_y) * sin + middle_x, (x - middle_x) * sin + (y - middle_y) * cos + middle_y)
        for x, y in corners
    ]


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """A library with a picture in which these lines are found."""

    def make(lines: list, garbled: tuple[int, str] | None = None) -> Library:
        txts, scores = [words for words, _ in lines], [0.99] * len(lines)
        whole = SimpleNamespace(txts=["" if garbled is None else txts[garbled[0]]], scores=[0.98])
        if garbled is not None:
            txts[garbled[0]], scores[garbled[0]] = garbled[1], 0.7
        found = SimpleNamespace(txts=txts, boxes=[np.array(corners) for _, corners in lines], scores=scores)
        monkeypatch.setattr(ocr, "can_read", lambda: True)
        monkeypatch.setattr(ocr, "_reader", lambda: lambda image, use_det=True, **_: found if use_det else whole)
        path = tmp_path / "page.png"
        Image.new("RGB", SIZE, "white").save(path)
        library = Library.open(tmp_path / "seen", vectors=False)
        library.add(path, progress=False)
        return library

    return make


@pytest.mark.parametrize("tilt", [0.0, 2.0, -3.0])
@pytest.mark.parametrize("title", ["", "Of lighthouses and railways and of what became of them in the end"])
def test_columns_are_read_one_after_the_other(seen, tilt, title):
    library = seen(columns(tilt, title))
    for question, sentence, side in (
        ("When was the lighthouse of Orsund built?", " ".join(LEFT[:2]), (0, 0.55)),
        ("When came a railway to the town?", " ".join(RIGHT[:2]), (0.45, 1)),
    ):
        first = answer(question, library, kinds="text").citations[0]
        assert first.quote.replace("\n", " ") == sentence
        assert side[0] < first.box[0] < first.box[2] < side[1] and first.box[3] - first.box[1] < 0.09


def test_a_line_that_came_out_garbled_is_read_once_more(seen):
    library = seen(columns(2.0), garbled=(0, "T  l gh h   -"))
    first = answer("When was the lighthouse of Orsund built?", library, kinds="text").citations[0]
    assert first.quote.replace("\n", " ") == " ".join(LEFT[:2])


def test_rows_of_a_table_stay_together(seen):
    rows = [("4711", "Kettle of steel", "39.90"), ("4712", "Lid, blue", "7.00"), ("4713", "Spout", "9.50"),
            ("4714", "Handle of beech wood", "12.00")]  # fmt: skip
    lines = [
        place(cell, left, 200 + number * 60, 1.5)
        for number, row in enumerate(rows)
        for cell, left in zip(row, (80, 250, 800), strict=True)
    ]
    [first, *_] = answer("lid blue", seen(lines[::-1]), kinds="text").citations
    assert first.quote == "4712 Lid, blue 7.00" and first.box[2] - first.box[0] > 0.7


def test_cells_of_a_printed_table_stay_together(tmp_path):
    rows = [("4711", "Kettle of steel", "39.90"), ("4712", "Lid, blue", "7.00"), ("4713", "Spout", "9.50")]
    cells = [(left, 100 + number * 20, cell) for number, row in enumerate(rows)
             for left, cell in zip((50, 120, 300), row, strict=True)]  # fmt: skip
    (tmp_path / "table.pdf").write_bytes(samples.pdf(cells))
    library = Library.open(tmp_path / "table", vectors=False)
    library.add(tmp_path / "table.pdf", progress=False)
    [first, *_] = answer("lid blue", library).citations
    assert first.quote == "4712 Lid, blue 7.00" and first.box[3] - first.box[1] < 0.04


def test_what_is_printed_beside_the_page_is_not_on_it(tmp_path):
    (tmp_path / "a.pdf").write_bytes(samples.pdf([(50, 100, "Seen: a quagga."), (50, -60, "Unseen: an okapi.")]))
    library = Library.open(tmp_path / "a", vectors=False)
    library.add(tmp_path / "a.pdf", progress=False)
    assert library.search("okapi") == [] and len(library.search("quagga")) == 1
