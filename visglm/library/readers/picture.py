"""Pictures that are files of their own."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import DocumentError, ImageError
from ...pictures import load_image
from ..ocr import read_lines
from ..pieces import LibraryLimits, Piece


def read_picture(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """The picture, and what is written in it where the extra `ocr` is there to read that."""
    try:
        image = load_image(data, limits=limits.images)
    except ImageError as error:
        raise DocumentError(str(error)) from None
    yield Piece("", lines=((0, 0, (0.0, 0.0, 1.0, 1.0)),), image=image)
    yield from read_lines(image)
