"""A document's bytes → its pieces, by a table. Nothing in a document is fetched or executed, and no other file opened.

A new kind is one function `(data, name, limits) -> Iterator[Piece]` and one row of `READERS`. One that meets
pictures of text takes an `Ocr` as well, and says so there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import NamedTuple

from ...errors import BusyError, DocumentError, EngineError, MissingDependencyError
from ..ocr import Ocr, RapidOcr
from ..pieces import LibraryLimits, Piece, within
from .epub import read_epub
from .mail import read_mail, read_mailbox
from .markup import read_html
from .office import read_docx, read_pptx, read_xlsx
from .pdf import read_pdf
from .picture import read_picture
from .text import read_csv, read_markdown, read_text
from .tiff import read_tiff

__all__ = ["READERS", "Reader", "read", "reader_of"]

Read = Callable[..., Iterator[Piece]]


class Reader(NamedTuple):
    """A row of `READERS`.

    Args:
        meets_text: whether it meets pictures of text, and takes who reads them as its last argument.
    """

    read: Read
    suffixes: tuple[str, ...]
    meets_text: bool = False


READERS: dict[str, Reader] = {
    "text": Reader(read_text, (".txt", ".text", ".log", ".rst")),
    "markdown": Reader(read_markdown, (".md", ".markdown")),
    "csv": Reader(read_csv, (".csv", ".tsv")),
    "html": Reader(read_html, (".html", ".htm", ".xhtml")),
    "pdf": Reader(read_pdf, (".pdf",), meets_text=True),
    "docx": Reader(read_docx, (".docx",)),
    "pptx": Reader(read_pptx, (".pptx",)),
    "xlsx": Reader(read_xlsx, (".xlsx",)),
    "epub": Reader(read_epub, (".epub",)),
    "mail": Reader(read_mail, (".eml",)),
    "mailbox": Reader(read_mailbox, (".mbox",)),
    "tiff": Reader(read_tiff, (".tif", ".tiff"), meets_text=True),
    "picture": Reader(
        read_picture, (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif", ".heic", ".heif"), meets_text=True
    ),
}  # fmt: skip
BY_SUFFIX = {suffix: name for name, reader in READERS.items() for suffix in reader.suffixes}


def reader_of(name: str) -> str | None:
    """The row of `READERS` that a file of this name is read by; None where there is none."""
    return BY_SUFFIX.get(PurePath(name).suffix.lower())


def read(data: bytes, name: str, limits: LibraryLimits, ocr: Ocr | None = None) -> list[Piece]:
    """Everything in a document.

    Args:
        data: its bytes.
        name: of the file; its ending chooses the reader.
        ocr: reads pictures of text; by default RapidOCR, where it is installed.

    Raises:
        DocumentError: nobody reads such files, or this one is damaged, encrypted or larger than allowed. The message
            does not name it.
    """
    kind = reader_of(name)
    if kind is None:
        raise DocumentError(f"files like this are not read. Those that are end in {', '.join(BY_SUFFIX)}.")
    if not data:
        raise DocumentError("it is empty.")
    row, more = READERS[kind], [ocr or RapidOcr()]
    try:
        return list(within(row.read(data, name, limits, *(more if row.meets_text else ())), limits))
    except (DocumentError, MissingDependencyError, EngineError, BusyError):
        raise
    except (RecursionError, MemoryError) as error:
        raise DocumentError(
            f"it is nested too deeply, or unpacks to more than fits ({type(error).__name__})."
        ) from None
    except Exception as error:  # parsers meet a damaged file with any error there is
        raise DocumentError(f"it is damaged, or no {kind} ({type(error).__name__}). Get a complete copy.") from None
