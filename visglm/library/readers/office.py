"""Documents, slides and workbooks of Office, by the libraries that know them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import datetime, time
from typing import Any

from ...errors import ImageError, require
from ...pictures import load_image
from ..pieces import MAX_HEADING, Box, LibraryLimits, Piece, check_size
from .archive import open_archive
from .charts import CHART, RELATION, read_chart
from .text import table

WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
WRAPPERS = frozenset(f"{WORD}{name}" for name in ("sdt", "sdtContent", "customXml", "ins", "moveTo", "smartTag"))
LEFT_OUT = frozenset(f"{WORD}{name}" for name in ("del", "moveFrom", "txbxContent", "instrText", "sdtPr", "pPr"))
SIGNS = {f"{WORD}tab": "\t", f"{WORD}br": "\n", f"{WORD}cr": "\n", f"{WORD}noBreakHyphen": "-"}
BESIDE = tuple(f"{name}+xml" for name in ("footnotes", "endnotes", "comments", "header", "footer"))
MAX_COLUMNS, MAX_ROWS = 256, 200_000  # of a sheet; workbooks declare millions that are empty


def read_docx(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """Paragraphs, tables and charts in their order, under their headings; then notes, comments, what stands above and
    below the pages, and the pictures. Of changes that were tracked, as if they were accepted."""
    open_archive(data, limits)
    package = require("library", "docx")
    document = package.Document(io.BytesIO(data))
    headings: list[str] = []
    for element in _blocks(document.element.body):
        if element.tag == f"{WORD}tbl":
            yield from table(_rows(element), title=" › ".join(filter(None, headings)))
            continue
        text = _text(element)
        level = _level(package.text.paragraph.Paragraph(element, document._body)) if 0 < len(text) <= MAX_HEADING else 0
        if level:
            headings = [*(headings + [""] * level)[: level - 1], " ".join(text.split())]
        elif text:
            yield Piece(text, heading=" › ".join(filter(None, headings)))
        for box in _boxes(element):
            yield Piece(box, heading=" › ".join(filter(None, headings)))
        for place in element.iter(f"{CHART}chart"):
            part = document.part.related_parts.get(place.get(RELATION))
            if part is not None:
                chart = package.oxml.parse_xml(part.blob)
                yield from read_chart(chart, limits, heading=" › ".join(filter(None, headings)))
    parts = list(document.part.related_parts.values())
    seen = set()
    for part in parts:
        if part.content_type.endswith(BESIDE):
            for text in map(_text, package.oxml.parse_xml(part.blob).iter(f"{WORD}p")):
                if text and text not in seen:  # one head for each kind of page
                    yield Piece(text)
                seen.add(text)
    for part in parts:
        if part.content_type.startswith("image/"):
            yield from _picture(part.blob, limits)


def _blocks(element: Any) -> Iterator[Any]:
    """Paragraphs and tables, those inside of fields to be filled in, too."""
    for child in element:
        if child.tag in (f"{WORD}p", f"{WORD}tbl"):
            yield child
        elif child.tag in WRAPPERS:
            yield from _blocks(child)


def _text(element: Any) -> str:
    """What is shown of a paragraph, without what stands in boxes that are anchored there."""
    said: list[str] = []
    waiting = [element]
    while waiting:
        child = waiting.pop()
        if child.tag == f"{WORD}t":
            said.append(child.text or "")
        elif child.tag in SIGNS:
            said.append(SIGNS[child.tag])
        elif child.tag not in LEFT_OUT and child.find(f"{WORD}rPr/{WORD}vanish") is None:
            waiting += reversed(child)
    return "".join(said).strip()


def _boxes(paragraph: Any) -> Iterator[str]:
    """Of the two forms in which a box stands there, for new programs and for old ones, the first."""
    seen = set()
    for box in paragraph.iter(f"{WORD}txbxContent"):
        text = "\n".join(filter(None, map(_text, box.iter(f"{WORD}p"))))
        if text and text not in seen:
            yield text
        seen.add(text)


def _level(paragraph: Any) -> int:
    """1 for a first-level heading and titles, 0 for what is none."""
    name = (paragraph.style.name or "") if paragraph.style is not None else ""
    word, _, number = name.partition(" ")
    return 1 if name == "Title" else int(number) if word == "Heading" and number.isdigit() else 0


def _rows(element: Any) -> Iterator[list[str]]:
    """Its cells; one that spans rows stands in the first of them, tables inside of a cell are a part of it."""
    for row in element.iter(f"{WORD}tr"):
        if next(row.iterancestors(f"{WORD}tbl")) is element:
            cells = (cell for cell in row.iter(f"{WORD}tc") if next(cell.iterancestors(f"{WORD}tr")) is row)
            yield [" ".join(filter(None, map(_text, cell.iter(f"{WORD}p")))) for cell in cells]


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
            elif getattr(shape, "has_chart", False):
                yield from read_chart(shape.chart._chartSpace, limits, number, heading)
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
        rows = sheet.iter_rows(max_row=MAX_ROWS, max_col=MAX_COLUMNS)
        yield from table((list(map(_cell, row)) for row in rows), number, sheet.title)


def _cell(cell: Any) -> str:
    """Its value, as the sheet shows it where that says something else: a day without a time, a share in percent."""
    value = cell.value
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    if isinstance(value, int | float) and not isinstance(value, bool) and str(cell.number_format).endswith("%"):
        return f"{100 * value:.10g}%"
    return "" if value is None else str(value)


def _picture(
    data: bytes, limits: LibraryLimits, page: int | None = None, heading: str = "", box: Box | None = None
) -> Iterator[Piece]:
    """One that cannot be read (a drawing in a format of Office's own, say) is left out: the text counts."""
    try:
        image = load_image(data, limits=limits.images)
    except ImageError:
        return
    yield Piece("", page, heading, ((0, 0, box),) if box else (), image)
