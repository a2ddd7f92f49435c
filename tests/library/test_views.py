"""What citations lead to: the page with its box, the picture, the quote in its surroundings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.library import samples
from visglm import Library, VisGLM
from visglm.errors import LibraryError


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained()


@pytest.fixture
def folder(tmp_path) -> Path:
    where = tmp_path / "notes"
    where.mkdir()
    (where / "kettle.txt").write_text("It is made of steel.\n\n\n\nIts warranty lasts thirty months.\n\nBye.", "utf-8")
    lines = [(50, 100, "The museum opens at nine."), (50, 300, "Tickets cost eleven"), (50, 316, "euros for adults.")]
    (where / "museum.pdf").write_bytes(samples.pdf([(50, 100, "Welcome.")], lines))
    shutil.copy(samples.CAT, where / "a.png")
    (where / "kettle.docx").write_bytes(samples.docx_file())
    return where


@pytest.fixture
def library(folder, tmp_path) -> Library:
    library = Library.open(tmp_path / "notes", vectors=False)
    library.sync(folder, progress=False)
    return library


def test_a_pdf_shows_the_page_with_the_box_on_the_letters(vlm, library):
    [citation] = vlm.ask("How much do tickets cost?", library=library).citations
    shown = library.view(citation)
    assert (shown.quote, shown.problem) == ("Tickets cost eleven\neuros for adults.", "")
    width, height = shown.image.size
    left, top, right, bottom = (share * side for share, side in zip(shown.box, (width, height) * 2, strict=True))
    grey = shown.image.convert("L").point(lambda value: 255 * (value < 128))
    inside = grey.crop((int(left), int(top), int(right) + 1, int(bottom) + 1))
    below = grey.crop((0, int(top) - 40, width, height))
    # All ink from there down is in the box: the box is where the letters are.
    assert inside.getbbox() and sum(inside.histogram()[255:]) == sum(below.histogram()[255:])
    marked = shown.marked()
    assert marked.size == shown.image.size and marked.getpixel((int(left) + 2, int(bottom) - 1)) != (255, 255, 255)
    assert shown.image.getpixel((5, 5)) == marked.getpixel((5, 5))


def test_a_text_shows_its_surroundings(vlm, library, folder):
    citation = vlm.ask("How long does the warranty last?", library=library, files="*.txt").citations[0]
    text = (folder / "kettle.txt").read_text("utf-8")
    assert text[citation.start : citation.end] == citation.quote == "Its warranty lasts thirty months."
    shown = library.view(citation)
    assert (shown.before + shown.quote + shown.after).split() == text.split()
    assert shown.quote == citation.quote and shown.image is shown.box is shown.marked() is None


@pytest.mark.parametrize("name", ["a.png", "kettle.docx"])
def test_a_picture_shows_itself_wherever_it_is(library, name):
    [found] = library.search(samples.CAT, files=name, kinds="picture")
    shown = library.view(found)
    assert "cat" in shown.quote and shown.box is None
    assert shown.image.size == library.view(library.search(samples.CAT, files="a.png")[0]).image.size


def test_a_cited_picture_shows_itself(vlm, library):
    [citation] = vlm.ask("Which picture shows a cat?", library=library, files="*.png").citations
    shown = library.view(citation)
    assert shown.quote == citation.quote and shown.image.size == library.view(citation).marked().size


def test_a_file_that_is_another_one_by_now_is_not_shown_for_it(vlm, library, folder):
    [citation] = vlm.ask("How much do tickets cost?", library=library).citations
    (folder / "museum.pdf").write_bytes(samples.pdf([(50, 100, "Closed.")]))
    shown = library.view(citation)
    assert shown.image is None and "has changed" in shown.problem and shown.quote == citation.quote
    (folder / "museum.pdf").unlink()
    assert "cannot be opened" in library.view(citation).problem
    library.sync(folder, progress=False)
    with pytest.raises(LibraryError, match="not in the library any more"):
        library.view(citation)


def test_whoever_wants_is_told_how_far_it_is(folder, tmp_path):
    told = []
    library = Library.open(tmp_path / "other", vectors=False)
    library.sync(folder, progress=lambda *numbers: told.append(numbers))
    assert told == [(number, 4) for number in range(5)]

    def stop(done: int, num: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        library.sync(folder, progress=stop)
    assert library.stats().documents == 4
