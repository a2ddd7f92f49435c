"""PDF: paragraphs whose lines keep their boxes, pictures, and pages that are scans."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from PIL import Image

from ...errors import DocumentError, ImageError, counted, require
from ...pictures import load_image
from ..chunks import LEADERS
from ..layout import CELLS_APART, Row, paragraphs, piece_of
from ..ocr import Ocr
from ..pieces import Box, LibraryLimits, Line, Piece, check_size, union

PDFIUM = threading.RLock()  # it is not made for several threads; held while it works, and not while a page is read
SCAN_PIXELS = 2_000  # of the longer side of a page that is read by OCR
DOTS_PER_INCH, MOST_PIXELS = 200, 4_000  # of a page that is read as a whole, and of its longer side at the most
SMALLEST_PICTURE = 48  # pixels a side; below are rules and bullets
MAX_CHARACTERS = 200_000  # of one page
PASSWORD = 4  # of PDFium's error codes
LINE_HYPHEN = 2  # what PDFium makes of a hyphen at the end of a line; it goes on with the next one
SOFT_HYPHEN = {chr(LINE_HYPHEN), "\xad"}


def read_pdf(data: bytes, name: str, limits: LibraryLimits, ocr: Ocr) -> Iterator[Piece]:
    """Page by page; the outline gives the headings. Forms, scripts and attachments are not looked at."""
    pdfium = require("library", "pypdfium2")
    with opened(data, limits) as document:
        with PDFIUM:
            outline, count = _outline(document), len(document)
        unread = characters = 0
        for number in range(1, count + 1):
            with PDFIUM:
                page = document[number - 1]
                heading = next((title for first, title in reversed(outline) if first <= number), "")
                found = list(_page(pdfium, page, number, heading, limits))
                is_scan = any(piece.image for piece in found) and not any(piece.text for piece in found)
                scan = _draw(page, SCAN_PIXELS) if is_scan and ocr.can_read() else None
                page.close()
            unread += is_scan and scan is None
            if scan is not None:
                found += [placed(piece, number, heading) for piece in ocr.read(scan)]
            characters += sum(len(piece.text) for piece in found)
            yield from found
        if unread and not characters:
            pages = counted(unread, "page is a picture", "pages are pictures")
            raise DocumentError(f'its {pages} of text. To have it read: pip install "visglm[ocr]", then add it again.')


def placed(piece: Piece, number: int | None, heading: str) -> Piece:
    """A piece of a page, under the headings of its document and its own."""
    return replace(piece, page=number, heading=" › ".join(filter(None, (heading, piece.heading))))


def draw_pages(data: bytes, limits: LibraryLimits, first: int = 1) -> Iterator[tuple[int, Image.Image | DocumentError]]:
    """The pages from one on as their viewers show them, RGB, by their numbers; in the place of a broken one, what is
    wrong.

    Raises:
        DocumentError: it is no PDF, encrypted, or has more pages than allowed.
    """
    with opened(data, limits) as document:
        for number in range(first, len(document) + 1):
            drawn: Image.Image | DocumentError
            try:
                with PDFIUM:
                    page = document[number - 1]
                    points = max(page.get_width(), page.get_height())
                    drawn = _draw(page, min(MOST_PIXELS, points * DOTS_PER_INCH / 72))
                    page.close()
            except Exception as error:  # whatever it is, it is about this page
                drawn = DocumentError(f"it cannot be drawn ({type(error).__name__}).")
            yield number, drawn


def _draw(page: Any, max_side: float) -> Image.Image:
    scale = max_side / max(page.get_width(), page.get_height(), 1)
    return page.render(scale=scale).to_pil().convert("RGB")


@contextmanager
def opened(data: bytes, limits: LibraryLimits) -> Iterator[Any]:
    """PDFium's document, of as many pages as are allowed; it is closed at the end.

    Raises:
        DocumentError: it is no PDF, encrypted, or has more pages.
    """
    pdfium = require("library", "pypdfium2")
    with PDFIUM:
        try:
            document = pdfium.PdfDocument(data)
        except pdfium.PdfiumError as error:
            if getattr(error, "err_code", None) == PASSWORD or "password" in str(error).lower():
                raise DocumentError("it is encrypted. Save it without a password.") from None
            raise DocumentError("it is damaged, or no PDF. Get a complete copy.") from None
    try:
        check_size(len(document), limits.max_pages, "pages")
        yield document
    finally:
        with PDFIUM:
            document.close()


def render_page(data: bytes, number: int, max_side: int) -> Image.Image:
    """A page as its viewers show it, RGB, the longer side of this many pixels.

    Args:
        number: from 1 on.

    Raises:
        DocumentError: it cannot be drawn.
    """
    pdfium = require("library", "pypdfium2")
    with PDFIUM:
        try:
            document = pdfium.PdfDocument(data)
        except pdfium.PdfiumError as error:
            raise DocumentError(f"its page cannot be drawn ({type(error).__name__}).") from None
        try:
            return _draw(document[number - 1], max_side)
        except (pdfium.PdfiumError, IndexError) as error:
            raise DocumentError(f"its page {number} cannot be drawn ({type(error).__name__}).") from None
        finally:
            document.close()


def _outline(document: Any) -> list[tuple[int, str]]:
    """Pages and the title that begins there, in the order of pages."""
    found = []
    try:
        for entry in document.get_toc():
            target = entry.get_dest()
            index = target.get_index() if target is not None else None
            if index is not None and (title := " ".join(entry.get_title().split())):
                found.append((index + 1, title))
    except Exception:  # one that is damaged leads nowhere, and the text is what counts
        return []
    return sorted(found, key=lambda entry: entry[0])


def _page(pdfium: Any, page: Any, number: int, heading: str, limits: LibraryLimits) -> Iterator[Piece]:
    left, bottom, right, top = page.get_cropbox()
    width, height = right - left, top - bottom
    if width <= 0 or height <= 0:
        return

    def place(points: Box) -> Box:
        a, b, c, d = points
        corners = ((a - left) / width, (top - d) / height, (c - left) / width, (top - b) / height)
        a, b, c, d = (min(max(corner, 0.0), 1.0) for corner in corners)
        return turned((a, b, c, d), page.get_rotation())

    # What was printed beside the page nobody sees.
    rows = [
        replace(row, box=place(row.box))
        for row in _rows(pdfium, page)
        if row.box[0] < right and row.box[2] > left and row.box[1] < top and row.box[3] > bottom
    ]
    for paragraph in paragraphs(rows):
        yield piece_of(paragraph, number, heading)
    yield from _pictures(pdfium, page, number, heading, limits, place)


def turned(box: Box, degrees: int) -> Box:
    """A box as it stands once the page is turned clockwise, as its viewers show it."""
    left, top, right, bottom = box
    for _ in range(degrees // 90 % 4):
        left, top, right, bottom = 1 - bottom, left, 1 - top, right
    return (left, top, right, bottom)


def _rows(pdfium: Any, page: Any) -> list[Row]:
    """Lines as they run, whichever way up; the box of each is where it stands on the page as it is in the file, in
    points from its lower left corner."""
    textpage = page.get_textpage()
    raw = pdfium.raw
    try:
        count = textpage.count_chars()
        check_size(count, MAX_CHARACTERS, "characters on one page")
        rows: list[Row] = []
        letters: list[str] = []
        boxes: list[Box] = []
        line_turn = 0  # quarters by which the letters of this line are turned
        for index in range(count):
            code = raw.FPDFText_GetUnicode(textpage, index)
            letter = chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else ""
            if 0xD800 <= code < 0xDC00:  # half of a character beyond the first plane; the other half follows
                low = raw.FPDFText_GetUnicode(textpage, index + 1) if index + 1 < count else 0
                letter = chr(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)) if 0xDC00 <= low < 0xE000 else ""
            box = textpage.get_charbox(index, loose=True) if letter.strip() else None
            turn = round(raw.FPDFText_GetCharAngle(textpage, index) / (math.pi / 2)) % 4 if box else line_turn
            box = box and quarters(box, turn)
            is_below = box and boxes and (box[3] < boxes[-1][1] or box[1] > boxes[-1][3])
            if letter in "\r\n" or is_below or turn != line_turn:
                _end_row(rows, letters, boxes, line_turn)
            line_turn = turn
            if letter in SOFT_HYPHEN:
                letter = "-"
            if letter and letter not in "\r\n\0":
                letters.append(letter)
                if box:
                    boxes.append(box)
            if code == LINE_HYPHEN:
                _end_row(rows, letters, boxes, line_turn)
        _end_row(rows, letters, boxes, line_turn)
        return rows
    finally:
        textpage.close()


def quarters(points: Box, turn: int) -> Box:
    """Left, bottom, right, top, y upwards, after so many quarters of a turn to the right around the origin."""
    left, bottom, right, top = points
    for _ in range(turn % 4):
        left, bottom, right, top = bottom, -right, top, -left
    return (left, bottom, right, top)


def _end_row(rows: list[Row], letters: list[str], boxes: list[Box], turn: int) -> None:
    text = "".join(letters).strip()
    around = union(boxes)
    if text and around:
        height = around[3] - around[1]
        gaps = [other[0] - one[2] for one, other in zip(boxes, boxes[1:], strict=False)]
        cells = 1 + sum(gap > CELLS_APART * height for gap in gaps) + (LEADERS.search(text) is not None)
        rows.append(Row(text, *around, box=quarters(around, -turn), cells=cells))
    letters.clear()
    boxes.clear()


def _pictures(pdfium: Any, page: Any, number: int, heading: str, limits: LibraryLimits, place: Any) -> Iterator[Piece]:
    found = 0
    for item in page.get_objects(filter=[pdfium.raw.FPDF_PAGEOBJ_IMAGE], max_depth=3):
        found += 1
        if found > limits.max_pictures:
            return
        try:
            width, height = item.get_px_size()
            if min(width, height) < SMALLEST_PICTURE or width * height > limits.images.max_pixels:
                continue
            left, bottom, right, top = item.get_bounds()
            image = load_image(item.get_bitmap().to_pil(), limits=limits.images)
        except (pdfium.PdfiumError, ImageError, ValueError):  # the text counts, and other pictures
            continue
        yield Piece("", number, heading, ((0, 0, place((left, bottom, right, top))),), image)


__all__ = ["Line", "draw_pages", "read_pdf", "render_page", "turned"]
