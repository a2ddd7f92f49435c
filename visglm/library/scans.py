"""Scans that a model reads: pages as Markdown, and their Markdown as pieces of a document."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..engine import engine_of
from ..errors import ConfigError, ContextLengthError, DocumentError, ImageError, VisGLMError, shorten
from ..pictures import load_image
from .files import open_file
from .pieces import LibraryLimits, Piece, check_size
from .readers import READERS
from .readers.markup import parse
from .readers.pdf import draw_pages
from .readers.text import by_headings
from .readers.tiff import draw_tiff, is_tiff

CUT = "it is not whole: the answer ended at its limit. Allow more with max_new_tokens=…, or read a part of the page."

Pages = Iterator[tuple[int, Image.Image | VisGLMError]]
Ask = Callable[[Sequence[Image.Image]], list[Any]]


class Paged(NamedTuple):
    """A kind of file with several pages: what its bytes look like, and what draws them from a page on."""

    accepts: Callable[[bytes], bool]
    draw: Callable[[bytes, LibraryLimits, int], Pages]


# By their row of `READERS`.
PAGED: Mapping[str, Paged] = {
    "pdf": Paged(lambda data: b"%PDF-" in data[:1024], draw_pages),
    "tiff": Paged(is_tiff, draw_tiff),
}


@dataclass(frozen=True)
class Page:
    """A page that was read.

    Args:
        number: in its document, from 1 on.
        text: what it says, as Markdown; "" where nothing was read.
        problem: why there is no text, or not all of it; "" when all is well.
    """

    number: int
    text: str = ""
    problem: str = ""

    def __str__(self) -> str:
        return self.text


def as_plain(text: str) -> str:
    return text.strip()


def as_formula(text: str) -> str:
    """LaTeX, marked as such."""
    text = text.strip()
    return text if not text or text.startswith(("$", "\\[", "\\(")) else f"$$\n{text}\n$$"


# What is on a page → what makes Markdown of the model's words for it.
MARKDOWN: Mapping[str, Callable[[str], str]] = {"text": as_plain, "table": as_plain, "formula": as_formula}


def pages_of(source: Any, limits: LibraryLimits, allow_urls: bool = False, first: int = 1) -> Pages:
    """The pages of a PDF or TIFF, or a picture as the only one; from page `first` on, if there are so many.

    Raises:
        ImageError, DocumentError: the source was refused.
    """
    kind, data = paged(source, limits)
    if data is None:
        return iter([(1, load_image(source, limits=limits.images, allow_urls=allow_urls))][first - 1 :])
    pages = PAGED[kind].draw(data, limits, first)
    some = list(islice(pages, 1))  # what is wrong with the document is told here
    if not some and first == 1:
        raise DocumentError("it has no pages.")
    return (page for each in (some, pages) for page in each)


def paged(source: Any, limits: LibraryLimits) -> tuple[str, bytes | None]:
    """What has pages: its kind, a key of `PAGED`, and its content; None for what is something else."""
    if isinstance(source, bytes | bytearray | memoryview):
        head = bytes(source[:1024])
        check_size(len(source), limits.max_bytes, "bytes")
        kind = next((kind for kind, row in PAGED.items() if row.accepts(head)), "")
        return kind, bytes(source) if kind else None
    name = os.fsdecode(source).lower() if isinstance(source, str | os.PathLike) else ""
    kind = next((kind for kind in PAGED if name.endswith(READERS[kind].suffixes)), "")
    if not kind:
        return "", None
    path = Path(os.fsdecode(source)).expanduser()
    try:
        return kind, open_file(path, limits).data
    except DocumentError as error:
        raise DocumentError(f"{shorten(str(path))}: {error}") from None


def read_pages(pages: Pages, ask: Ask, kind: str, batch_size: int) -> Iterator[Page]:
    """Pages as Markdown, so many at a time.

    Args:
        ask: puts the question to pictures; replies, or what was wrong with one in its place.

    Raises:
        VisGLMError: the model failed. What is wrong with a page is its `problem`.
    """
    while some := list(islice(pages, batch_size)):
        replies = iter(ask([drawn for _, drawn in some if isinstance(drawn, Image.Image)]))
        for number, drawn in some:
            found = next(replies) if isinstance(drawn, Image.Image) else drawn
            yield page_of(number, found, kind)


def page_of(number: int, found: Any, kind: str) -> Page:
    if isinstance(found, ImageError | DocumentError | ContextLengthError):
        return Page(number, problem=str(found))
    if isinstance(found, Exception):  # it is not about this page
        raise found
    return Page(number, MARKDOWN[kind](found.text), CUT if found.finish_reason == "length" else "")


class ModelOcr:
    """A `VisGLM` that reads what is written in pictures, in place of RapidOCR.

    It does not tell where on the page: pieces have no boxes.

    Raises:
        ConfigError: it does not read.
    """

    def __init__(self, vlm: Any):
        if "read" not in getattr(vlm, "abilities", ()):
            raise ConfigError(f"reader must be a VisGLM of a model that reads pages, such as GLM-OCR; got {vlm!r:.80}.")
        self._vlm = vlm
        self.name = engine_of(vlm.model).fingerprint(vlm.model)

    def can_read(self) -> bool:
        return True

    def read(self, image: Image.Image) -> Iterator[Piece]:
        """What is written there, by its headings. A picture that nobody can look at says nothing."""
        for page in self._vlm.read(image):
            yield from pieces_of(page.text, self._vlm.image_limits)


def pieces_of(markdown: str, images: Any) -> Iterator[Piece]:
    """Paragraphs of Markdown; of tables, which stand in it as HTML, their rows."""
    limits = LibraryLimits(images=images)
    for piece in by_headings(markdown):
        if piece.text.lstrip().lower().startswith("<table"):
            for row in parse(piece.text, limits):
                if row.image is None:
                    yield replace(row, heading=": ".join(filter(None, (piece.heading, row.heading))))
        else:
            yield replace(piece, start=None)
