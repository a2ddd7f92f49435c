"""Scans and pictures with words in them, read by RapidOCR: added, asked, cited with the place."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from visglm import Library
from visglm.library import answer

pytestmark = [pytest.mark.ocr, pytest.mark.timeout(600)]
SIZE = (1000, 700)
COLUMNS = {
    60: ("The lighthouse of Orsund was built", "in 1874 and lit by oil for thirty",
         "years. Its keeper climbed the stairs", "four times in every single night."),
    540: ("A railway came to the town in 1891", "and went as far as the harbour. Two",
          "trains a day were enough until the", "cannery began to work in winter."),
}  # fmt: skip
QUESTIONS = {
    "When was the lighthouse of Orsund built?": (
        "The lighthouse of Orsund was built in 1874 and lit by oil for thirty years.", 0.0, 0.53
    ),
    "When did a railway come to the town?": (
        "A railway came to the town in 1891 and went as far as the harbour.", 0.5, 1.0
    ),
}  # fmt: skip


def page(tilt: float = 0.0) -> Image.Image:
    """Two columns, as a scanner sees them."""
    image = Image.new("RGB", SIZE, "white")
    font = ImageFont.load_default(24)
    for left, lines in COLUMNS.items():
        for number, words in enumerate(lines):
            ImageDraw.Draw(image).text((left, 200 + 38 * number), words, "black", font)
    return image.rotate(tilt, Image.Resampling.BICUBIC, fillcolor="white").filter(
        ImageFilter.GaussianBlur(0.8 if tilt else 0)
    )


@pytest.mark.parametrize("tilt", [0.0, 2.0])
@pytest.mark.parametrize("name", ["scan.pdf", "photograph.png"])
def test_what_a_scan_says_is_cited_where_it_stands(tmp_path, name, tilt):
    page(tilt).save(tmp_path / name)
    library = Library.open(tmp_path / "notes", vectors=False)
    assert library.add(tmp_path / name, progress=False).skipped == {}
    for question, (sentence, left, right) in QUESTIONS.items():
        first = answer(question, library, kinds="text").citations[0]
        assert "".join(first.quote.split()) == sentence.replace(" ", "")
        assert first.page == (1 if name.endswith("pdf") else None)
        assert left < first.box[0] < first.box[2] < right
        assert 0.25 < first.box[1] < 0.31 and 0.35 < first.box[3] < 0.5


def test_a_picture_without_a_word_says_nothing(tmp_path, capfd):
    Image.new("RGB", (300, 200), "white").save(tmp_path / "blank.png")
    library = Library.open(tmp_path / "notes", vectors=False)
    library.add(tmp_path / "blank.png", progress=False)
    assert [hit.kind for hit in library.search("blank")] == ["picture"]
    assert "RapidOCR" not in "".join(capfd.readouterr())
