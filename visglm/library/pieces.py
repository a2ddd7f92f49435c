"""What readers make of a document: pieces of text with their place, and pictures; and what a document may cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

from ..errors import ConfigError, DocumentError
from ..pictures import DEFAULT_LIMITS, ImageLimits

# Left, top, right, bottom, as shares of the page's width and height, from its upper left corner.
Box = tuple[float, float, float, float]
Line = tuple[int, int, Box]  # where it begins and ends in the text, and where it stands on the page

MAX_HEADING = 300  # characters; what is longer, whatever it is marked as, is a paragraph


@dataclass(frozen=True)
class Piece:
    """A paragraph, a row of a table, or a picture.

    Args:
        text: as it stands in the document; line breaks inside are its own.
        page: of a PDF, sheet of a workbook or slide, from 1 on; None where there are none.
        heading: the section that it belongs to.
        lines: where its lines stand, if that is known; of a picture one, which spans no text.
        image: the picture, RGB.
        start: where it begins in the text of the whole document, in characters; None behind the one before.
    """

    text: str
    page: int | None = None
    heading: str = ""
    lines: tuple[Line, ...] = ()
    image: Image.Image | None = field(default=None, compare=False)
    start: int | None = None


@dataclass(frozen=True)
class LibraryLimits:
    """What one document may cost.

    Args:
        max_bytes: its size.
        max_unpacked: what an archive in it (docx, pptx, xlsx, epub) may unpack to, in bytes.
        max_files: files in such an archive.
        max_pages: pages, slides or sheets.
        max_characters: of text that is read of it.
        max_pictures: pictures inside of it that are looked at.
        images: of each picture.
    """

    max_bytes: int = 64 * 2**20
    max_unpacked: int = 256 * 2**20
    max_files: int = 10_000
    max_pages: int = 5_000
    max_characters: int = 20_000_000
    max_pictures: int = 64
    images: ImageLimits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        numbers = [value for name, value in vars(self).items() if name != "images"]
        if any(isinstance(number, bool) or not isinstance(number, int) or number < 0 for number in numbers):
            raise ConfigError(f"Limits of documents must be whole numbers, 0 or more; got {self}.")


def check_size(num: int, allowed: int, what: str) -> None:
    """Raise `DocumentError` for more than allowed."""
    if num > allowed:
        raise DocumentError(f"it has {num:,} {what}, more than {allowed:,}. Split it, or allow more: LibraryLimits.")


def within(pieces: Iterator[Piece], limits: LibraryLimits) -> Iterator[Piece]:
    """The pieces, as long as they keep to the limits; one picture too many is left out.

    Raises:
        DocumentError: there is more text than allowed.
    """
    characters = pictures = 0
    for piece in pieces:
        characters += len(piece.text)
        check_size(characters, limits.max_characters, "characters of text")
        pictures += piece.image is not None
        if piece.image is None or pictures <= limits.max_pictures:
            yield piece


def union(boxes: list[Box]) -> Box | None:
    """The smallest box around them."""
    if not boxes:
        return None
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return (min(lefts), min(tops), max(rights), max(bottoms))
