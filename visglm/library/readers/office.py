"""Documents, slides and workbooks of Office, by the libraries that know them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from ...errors import ImageError, require
from ...pictures import load_image
from ..pieces import Box, LibraryLimits, Piece, check_size
from .archive import open_archive
from .text import table

MAX_COLUMNS, MAX_ROWS = 256, 200_000  # of a sheet; workbooks declare millions that are empty


def read_docx(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """Paragraphs and tables in their order, under their headings; then the pictures."""
    open_archive(data, limits)
    document = require("library", "docx").Document(io.BytesIO(data))
    headings: list[str] = []
    for block in document.iter_inner_content():
        if hasattr(block, "rows"):
            yield from table(_rows(block), title=" › ".join(filter(None, headings)))
        elif text := block.text.strip():
            level = _level(block)
            if level:
                headings = [*(headings + [""] * level)[: level - 1], " ".join(text.split())]
            else:
                yield Piece(text, heading=" › ".join(filter(None, headings)))
    for part in document.part.related_parts.values():
        if part.content_type.startswith("image/"):
            yield from _picture(part.blob, limits)


def _level(paragraph: Any) -> int:
    """1 for a first-level heading and titles, 0 for what is none."""
    name = (paragraph.style.name or "") if paragraph.style is not None else ""
    word, _, number = name.partition(" ")
    return 1 if name == "Title" else int(number) if word == "Heading" and number.isdigit() else 0


def _rows(block: Any) -> Iterator[list[str]]:
    for row in block.rows:
        cells, last = [], None
        for cell in row.cells:  # one that spans columns comes once for each
            if cell._tc is not last:
                cells.append(cell.text)
            last = cell._tc
        yield cells


def read_pptx(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """Slide by slide: its title is the heading, notes come last."""
    open_archive(data, limits)
    slides = require("library", "pptx").Presentation(io.BytesIO(data))
    size = (slides.slide_width or 1, slides.slide_height or 1)
    check_size(len(slides.slides), limits.max_pages, "slides")
    for number, slide in enumerate(slides.slides, start=1):
        title = slide.shapes.title
        heading = " ".join(title.text_frame.text.split()) if title is not None else ""
        for shape in _shapes(slide.shapes):
            box = _place(shape, size)
            if getattr(shape, "has_table", False):
                rows = ([cell.text for cell in row.cells] for row in shape.table.rows)
                yield from table(rows, number, heading)
            elif shape.has_text_frame and shape.text_frame.text.strip():
                text = shape.text_frame.text.strip().replace("\v", "\n")
                yield Piece(text, number, heading, ((0, len(text), box),) if box else ())
            elif hasattr(shape, "image"):
                yield from _picture(shape.image.blob, limits, number, heading, box)
        frame = slide.notes_slide.notes_text_frame if slide.has_notes_slide else None
        if frame is not None and frame.text.strip():
            yield Piece(frame.text.strip(), number, heading)


def _shapes(shapes: Any) -> Iterator[Any]:
    """Those inside of groups, too."""
    for shape in shapes:
        if hasattr(shape, "shapes"):
            yield from _shapes(shape.shapes)
        else:
            yield shape


def _place(shape: Any, size: tuple[int, int]) -> Box | None:
    if None in (shape.left, shape.top, shape.width, shape.height):
        return None
    width, height = size
    corners = (
        shape.left / width, shape.top / height,
        (shape.left + shape.width) / width, (shape.top + shape.height) / height,
    )  # fmt: skip
    left, top, right, bottom = (min(max(corner, 0.0), 1.0) for corner in corners)
    return (left, top, right, bottom) if left < right and top < bottom else None


def read_xlsx(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """Sheets as tables; of formulas the values that were saved with them."""
    open_archive(data, limits)
    workbook = require("library", "openpyxl").load_workbook(
        io.BytesIO(data), read_only=True, data_only=True, keep_links=False
    )
    check_size(len(workbook.worksheets), limits.max_pages, "sheets")
    for number, sheet in enumerate(workbook.worksheets, start=1):
        sheet.reset_dimensions()
        rows = sheet.iter_rows(values_only=True, max_row=MAX_ROWS, max_col=MAX_COLUMNS)
        yield from table((["" if cell is None else str(cell) for cell in row] for row in rows), number, sheet.title)


def _picture(
    data: bytes, limits: LibraryLimits, page: int | None = None, heading: str = "", box: Box | None = None
) -> Iterator[Piece]:
    """One that cannot be read (a drawing in a format of Office's own, say) is left out: the text counts."""
    try:
        image = load_image(data, limits=limits.images)
    except ImageError:
        return
    yield Piece("", page, heading, ((0, 0, box),) if box else (), image)
