"""Pictures that are files of their own."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import DocumentError, ImageError
from ...pictures import load_image
from ..ocr import Ocr
from ..pieces import LibraryLimits, Piece


def read_picture(data: bytes, name: str, limits: LibraryLimits, ocr: Ocr) -> Iterator[Piece]:
    """The picture, and what is written in it."""
    try:
        image = load_image(data, limits=limits.images)
    except ImageError as error:
        raise DocumentError(str(error)) from None
    yield Piece("", lines=((0, 0, (0.0, 0.0, 1.0, 1.0)),), image=image)
    yield from ocr.read(image)
