"""TIFF, as scanners and fax machines write it: one picture a page."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

from PIL import Image, TiffImagePlugin

from ...errors import DocumentError, ImageError
from ...pictures import load_image
from ...pictures.limits import check_pixels
from ...pictures.pixels import to_rgb
from ..ocr import Ocr
from ..pieces import LibraryLimits, Piece, check_size
from .pdf import MOST_PIXELS, SCAN_PIXELS, placed
from .picture import read_picture

ORDERS = {b"II*\0": "<", b"MM\0*": ">"}  # of bytes, by the first four of them
# Directory entries that are looked at, by their numbers.
SUBFILE, ORIENTATION, ACROSS, DOWN = 254, 274, 282, 283
THUMBNAIL, MASK = 1, 4  # bits of SUBFILE: what belongs to another page and is none
SIDEWAYS = 5  # orientations from here on have width and height exchanged
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
MAX_STRETCH = 4  # of a fax, whose dots are up to twice as far apart downwards as across


class Frame(NamedTuple):
    """A picture in the file: its place in the row of all, and its page's number."""

    order: int
    number: int


def is_tiff(data: bytes) -> bool:
    return data[:4] in ORDERS


def read_tiff(data: bytes, name: str, limits: LibraryLimits, ocr: Ocr) -> Iterator[Piece]:
    """Its pages as pictures, each followed by what is written there. What is only called a TIFF is read as the picture
    that it is."""
    if not is_tiff(data):
        yield from read_picture(data, name, limits, ocr)
        return
    is_one = len(_frames(data, limits)) == 1
    for number, page in draw_tiff(data, limits, max_side=SCAN_PIXELS):
        if isinstance(page, DocumentError):
            raise DocumentError(f"its page {number}: {page}")
        where = None if is_one else number
        yield Piece("", where, lines=((0, 0, (0.0, 0.0, 1.0, 1.0)),), image=page)
        yield from (placed(piece, where, "") for piece in ocr.read(page))


def draw_tiff(
    data: bytes, limits: LibraryLimits, first: int = 1, max_side: int = MOST_PIXELS
) -> Iterator[tuple[int, Image.Image | DocumentError]]:
    """The pages from one on, RGB, upright, with square dots, by their numbers; in the place of a broken one, what is
    wrong. Reduced copies of a page and masks are left out.

    Raises:
        ImageError: it is no TIFF, and no other picture.
        DocumentError: it is damaged, or has more pages than allowed.
    """
    if not is_tiff(data):
        yield from [(1, load_image(data, limits=limits.images))][first - 1 :]
        return
    for frame in _frames(data, limits)[first - 1 :]:
        drawn: Image.Image | DocumentError
        try:
            drawn = _draw(data, frame.order, limits, max_side)
        except ImageError as error:
            drawn = DocumentError(str(error))
        except Exception as error:  # Pillow's reader raises any there is; it is about this page
            drawn = DocumentError(f"it cannot be drawn ({type(error).__name__}).")
        yield frame.number, drawn


def _draw(data: bytes, index: int, limits: LibraryLimits, max_side: int) -> Image.Image:
    with warnings.catch_warnings():  # of entries that Pillow leaves out; they decide nothing about pixels
        warnings.simplefilter("ignore")
        image = TiffImagePlugin.TiffImageFile(BytesIO(data), "")
        image.seek(index)
        width, height = (image.tag_v2.get(tag) for tag in (ACROSS, DOWN))  # dots a unit
        stretch = float(width) / float(height) if width and height else 1.0
        if image.tag_v2.get(ORIENTATION, 1) >= SIDEWAYS:
            stretch = 1 / stretch
        page = to_rgb(image, limits.images)
    if 1 < max(stretch, 1 / stretch) <= MAX_STRETCH:
        size = (page.width, round(page.height * stretch)) if stretch > 1 else (round(page.width / stretch), page.height)
        check_pixels(*size, limits.images.max_pixels)
        page = page.resize(size)
    page.thumbnail((max_side, max_side))
    return page


def _frames(data: bytes, limits: LibraryLimits) -> list[Frame]:
    """The pages, found without decoding any.

    Raises:
        DocumentError: there is none, there are more than allowed, or what is said of them is more than the file holds.
    """
    order = ORDERS[data[:4]]
    frames: list[Frame] = []
    seen: set[int] = set()
    said = 0
    try:
        (place,) = struct.unpack_from(f"{order}I", data, 4)
        while place and place not in seen:
            seen.add(place)
            check_size(len(seen), 2 * limits.max_pages, "pictures inside")
            (num_entries,) = struct.unpack_from(f"{order}H", data, place)
            kind = 0
            for entry in range(place + 2, place + 2 + 12 * num_entries, 12):
                tag, form, count = struct.unpack_from(f"{order}HHI", data, entry)
                said += SIZES.get(form, 0) * count
                if tag == SUBFILE:
                    (kind,) = struct.unpack_from(f"{order}I", data, entry + 8)
            if not kind & (THUMBNAIL | MASK):
                frames.append(Frame(len(seen) - 1, len(frames) + 1))
            (place,) = struct.unpack_from(f"{order}I", data, place + 2 + 12 * num_entries)
    except struct.error:
        if not frames:
            raise DocumentError("it is damaged: it ends early. Get a complete copy.") from None
        frames.append(Frame(len(seen), len(frames) + 1))  # one that is not there, and will be told
    check_size(len(frames), limits.max_pages, "pages")
    if said > 2 * len(data):  # several entries may share what they say, but not all of it thousands of times
        raise DocumentError("it is damaged: it says more of its pages than it holds. Save it again.")
    if not frames:
        raise DocumentError("it is damaged: it has no pages. Get a complete copy.")
    return frames
