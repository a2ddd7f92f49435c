"""What a citation leads to, to be looked at: the quote in its surroundings, the page or the picture it stands on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..errors import DocumentError, ImageError, LibraryError, shorten
from ..pictures import load_image
from ..reply import Citation
from .chunks import GLUE, chunks
from .pieces import Box, LibraryLimits
from .readers import read, reader_of
from .readers.pdf import render_page
from .readers.tiff import draw_tiff
from .search import Found
from .store import Store, among

MAX_SIDE = 1460  # pixels of a page that is drawn
MARK, INK = (255, 204, 64, 70), (178, 58, 36, 255)  # RGBA of a box: inside, and its line
MARGIN = 0.004  # of the page's width, between the letters and the line around them


@dataclass(frozen=True)
class View:
    """Where a citation leads.

    Args:
        quote: as the citation has it; of a picture what the model says that it shows.
        before: what stands before it, in its own part of the document and the one before.
        after: what stands behind it.
        image: the page of a PDF or TIFF or the picture, RGB; None for a document that has no pages.
        box: of the quote on the image, in shares from the upper left corner; None for all of it.
        problem: why there is no image, where there would be one.
    """

    quote: str
    before: str = ""
    after: str = ""
    image: Image.Image | None = field(default=None, compare=False)
    box: Box | None = None
    problem: str = ""

    def marked(self) -> Image.Image | None:
        """The image with the box drawn on it."""
        if self.image is None or self.box is None:
            return self.image
        width, height = self.image.size
        layer = Image.new("RGBA", self.image.size)
        margin = MARGIN * width
        left, top, right, bottom = self.box
        corners = (left * width - margin, top * height - margin, right * width + margin, bottom * height + margin)
        ImageDraw.Draw(layer).rectangle(corners, MARK, INK, max(2, width // 400))
        return Image.alpha_composite(self.image.convert("RGBA"), layer).convert("RGB")


def view(store: Store, limits: LibraryLimits, citation: Citation | Found) -> View:
    """Look a citation up.

    Raises:
        LibraryError: it is not in the library any more.
    """
    rows = store.beside(citation.source, citation.start, citation.end, citation.kind)
    own = next((row for row in rows if row["start"] <= citation.start and row["end"] >= citation.end
                and row["kind"] == citation.kind), None)  # fmt: skip
    if own is None:
        raise LibraryError(f"{shorten(citation.source)} is not in the library any more, or has changed. Ask again.")
    before, quote, after = around(own, rows, citation)
    draw = DRAWN.get(reader_of(citation.source) or "", draw_inner if citation.kind == "picture" else None)
    if draw is None:
        return View(quote, before, after)
    try:
        image = draw(read_again(store, limits, citation.source), citation, limits, own["part"])
    except (DocumentError, ImageError) as error:
        return View(quote, before, after, problem=f"{shorten(citation.source)}: {error}")
    return View(quote, before, after, image, None if whole(citation) else citation.box)


def whole(citation: Citation | Found) -> bool:
    """Whether it is all of a picture that is shown: there is no box to draw."""
    return citation.kind == "picture" and reader_of(citation.source) != "pdf"


def around(own: dict[str, Any], rows: list[dict[str, Any]], citation: Citation | Found) -> tuple[str, str, str]:
    """The quote, and what is before and behind it."""
    if citation.kind == "picture":
        return "", own["text"], ""
    start, end = citation.start - own["start"], citation.end - own["start"]
    texts = [(row["part"], row["text"]) for row in rows if row["kind"] == "text"]
    before = [text for part, text in texts if part < own["part"]] + [own["text"][:start]]
    after = [own["text"][end:]] + [text for part, text in texts if part > own["part"]]
    return GLUE.join(before), own["text"][start:end], GLUE.join(after)


def read_again(store: Store, limits: LibraryLimits, source: str) -> bytes:
    """The file, as it was when it was read.

    Raises:
        DocumentError: it is not there any more, or is another one.
    """
    head = store.table.search().where(f"part = -1 AND {among('source', [source])}").select(["hash"]).limit(1).to_list()
    try:
        with Path(source).open("rb") as file:
            data = file.read(limits.max_bytes + 1)
    except OSError as error:
        raise DocumentError(f"it cannot be opened any more ({error.strerror}).") from None
    if not head or hashlib.sha256(data).hexdigest() != head[0]["hash"]:
        raise DocumentError("it has changed since it was read. Sync the library.")
    return data


def draw_page(data: bytes, citation: Citation | Found, limits: LibraryLimits, part: int) -> Image.Image:
    return render_page(data, citation.page or 1, MAX_SIDE)


def draw_sheet(data: bytes, citation: Citation | Found, limits: LibraryLimits, part: int) -> Image.Image:
    """A page of a TIFF."""
    _, image = next(draw_tiff(data, limits, citation.page or 1, MAX_SIDE), (0, DocumentError("the page is gone.")))
    if isinstance(image, DocumentError):
        raise image
    return image


def draw_picture(data: bytes, citation: Citation | Found, limits: LibraryLimits, part: int) -> Image.Image:
    return load_image(data, limits=limits.images)


def draw_inner(data: bytes, citation: Citation | Found, limits: LibraryLimits, part: int) -> Image.Image:
    """A picture inside of a document that has no pages."""
    found = list(chunks(read(data, citation.source, limits)))
    image = found[part].image if part < len(found) else None
    if image is None:
        raise DocumentError("the picture is not in it any more.")
    return image


# Reader → what draws the image of one of its documents.
DRAWN: dict[str, Callable[[bytes, Citation | Found, LibraryLimits, int], Image.Image]] = {
    "pdf": draw_page, "tiff": draw_sheet, "picture": draw_picture,
}  # fmt: skip
