"""Encoded bytes → an image of which only the header has been read, at a cost that the bytes cannot drive up.

What is no pixel decides nothing about pixels, and what would take a decoder minutes is refused before it starts.
A new format is one row of `FORMATS`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import NamedTuple

from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from ..errors import ImageError, MissingDependencyError, require
from .limits import ImageLimits

DAMAGED = "its data ends early or is damaged. Get a complete copy of it."

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PNG_CHUNKS = 100_000  # pixels in pieces of 8 KiB, as libpng writes them, are 4,096 within the default limits
PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
# Where a PNG may say which way up it is, and how long that may be: eXIf, and texts with these keywords.
ORIENTATION_TEXTS = re.compile(rb"(Raw profile type exif|XML:com\.adobe\.xmp)\0", re.IGNORECASE)
MAX_ORIENTATION_BYTES = 2**17

PIECES = "it is in over {:,} pieces. Save it again with another program."

MAX_JPEG_SCANS = 100  # a progressive picture has about ten, and each is a pass over all of its blocks
MAX_JPEG_SEGMENTS = 10_000
MAX_JPEG_FILL = 2**16  # bytes between segments
JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
JPEG_START_OF_SCAN, JPEG_END = 0xDA, 0xD9
JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
# No complete picture has more: the shortest code of a grey block of 8×8 pixels has two bits.
MAX_JPEG_PIXELS_PER_BYTE = 256
MAX_GIF_BLOCKS = 10_000  # in front of the first frame
MAX_RLE_BYTES = 2**22  # Pillow unpacks run-length codes in Python, run by run

AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


class Format(NamedTuple):
    """A row of `FORMATS`."""

    accepts: Callable[[bytes], bool]  # looks at the first bytes
    open: Callable[[bytes, ImageLimits], Image.Image]  # reads the header; raises ImageError, or whatever Pillow does
    name: str  # for people


def decode(data: bytes, limits: ImageLimits) -> Image.Image:
    """The image in encoded bytes, of which only the header has been read, so that its size can be judged first.

    Raises:
        ImageError: they are in no format of `FORMATS`, or the header is damaged.
    """
    if not data:
        raise ImageError("it is empty. If it was read before, go back to its start.")
    kind = next((kind for kind in FORMATS.values() if kind.accepts(data)), None)
    accepted = " or ".join(", ".join(kind.name for kind in FORMATS.values()).rsplit(", ", 1))
    if kind is None:
        other = next((other for other in OTHERS if other.pattern.match(data)), None)
        if other is not None:
            raise ImageError(f"its content is {other.name}, not {accepted}, whatever it is called. {other.advice}")
    else:
        try:
            return kind.open(data, limits)
        except ImageError:
            raise
        except Image.DecompressionBombError:  # some readers look, before they make room for the pixels
            raise ImageError("it has more pixels than PIL.Image.MAX_IMAGE_PIXELS allows. Make it smaller.") from None
        except Exception:  # Pillow's readers raise a dozen unrelated types
            pass
    raise ImageError(f"its content is not {accepted}, or its header is damaged. Convert it first.")


def _with(plugin: Callable[..., Image.Image]) -> Callable[[bytes, ImageLimits], Image.Image]:
    """Straight to one reader: `Image.open` has a limit of its own, which is global and cannot be told per picture."""
    return lambda data, limits: plugin(BytesIO(data), "")


def _open_png(data: bytes, limits: ImageLimits) -> Image.Image:
    return PngImagePlugin.PngImageFile(BytesIO(PNG_SIGNATURE + b"".join(_png_chunks(data))), "")


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """Those of a PNG that its pixels need, and those that may say which way up it is.

    Everything else, profiles and comments, may be broken or unpack to any size. Frames after the first are left out
    too, and chunks without content.
    """
    position = len(PNG_SIGNATURE)
    for _ in range(MAX_PNG_CHUNKS):
        head = data[position : position + 8]
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        end = position + length + 12
        if (kind in PNG_PIXELS and (length or kind == b"IEND")) or _tells_orientation(kind, data, position + 8, length):
            yield data[position:end]
        if kind == b"IEND":
            return
        position = end
    raise ImageError(PIECES.format(MAX_PNG_CHUNKS))


def _tells_orientation(kind: bytes, data: bytes, start: int, length: int) -> bool:
    if length > MAX_ORIENTATION_BYTES or kind not in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
        return False
    body = data[start : start + length]
    if data[start + length : start + length + 4] != struct.pack(">I", zlib.crc32(kind + body)):
        return False
    if kind == b"eXIf":
        return True
    keyword = ORIENTATION_TEXTS.match(body)
    if keyword is None:
        return False
    packed = body[keyword.end() :]  # zTXt: one byte for the method, then the text; iTXt: 1 in front if it is packed
    return kind == b"tEXt" or (packed[:1] == b"\0" and (kind == b"iTXt" or _unpacks_to_little(packed[1:])))


def _unpacks_to_little(packed: bytes) -> bool:
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, MAX_ORIENTATION_BYTES)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail


def _open_jpeg(data: bytes, limits: ImageLimits) -> Image.Image:
    num_scans = _count_scans(data)
    image = JpegImagePlugin.jpeg_factory(BytesIO(data), "")
    width, height = image.size
    is_whole = width * height <= MAX_JPEG_PIXELS_PER_BYTE * len(data)
    # Of several scans, libjpeg holds all of the picture, at whatever size it is wanted.
    if limits.max_pixels < width * height <= 4 * limits.max_pixels and num_scans == 1 and is_whole:
        image.draft("RGB", (width // 2, height // 2))
    return image


def _count_scans(data: bytes) -> int:
    """Scans of a JPEG, by its markers alone.

    Raises:
        ImageError: there are more than any picture needs, or more segments, or more bytes between them.
    """
    position = num_scans = num_fill = 0
    for _ in range(MAX_JPEG_SEGMENTS):
        found = JPEG_MARKER.search(data, position)
        num_fill += (found.start() if found else len(data)) - position
        if num_fill > MAX_JPEG_FILL:
            raise ImageError(DAMAGED)
        if found is None or found[0][1] == JPEG_END:
            return num_scans
        position = found.end()
        if found[0][1] in JPEG_WITHOUT_LENGTH:
            continue
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
        if found[0][1] == JPEG_START_OF_SCAN:
            num_scans += 1
            if num_scans > MAX_JPEG_SCANS:
                raise ImageError(f"it is a JPEG of over {MAX_JPEG_SCANS} scans. Save it again, not progressive.")
            end = JPEG_SCAN_END.search(data, position)
            position = end.start() if end else len(data)
    raise ImageError(PIECES.format(MAX_JPEG_SEGMENTS))


def _open_gif(data: bytes, limits: ImageLimits) -> Image.Image:
    has_palette, palette_size = data[10] & 0x80, 3 * 2 ** ((data[10] & 7) + 1)
    position, num_blocks = 13 + (palette_size if has_palette else 0), 0
    while data[position : position + 1] == b"!":  # an extension: its label, then blocks with their lengths, then 0
        position += 2
        while length := int.from_bytes(data[position : position + 1], "big"):
            position, num_blocks = position + 1 + length, num_blocks + 1
        position, num_blocks = position + 1, num_blocks + 1
        if num_blocks > MAX_GIF_BLOCKS:
            raise ImageError(PIECES.format(MAX_GIF_BLOCKS))
    return GifImagePlugin.GifImageFile(BytesIO(data), "")


def _open_bmp(data: bytes, limits: ImageLimits) -> Image.Image:
    compression = int.from_bytes(data[30:34], "little")
    if compression in (1, 2) and len(data) > MAX_RLE_BYTES:
        raise ImageError(f"it is a run-length coded BMP of over {MAX_RLE_BYTES:,} bytes. Save it as PNG.")
    return BmpImagePlugin.BmpImageFile(BytesIO(data), "")


def _open_heif(data: bytes, limits: ImageLimits) -> Image.Image:
    try:
        pillow_heif = require("heif", "pillow_heif")
    except MissingDependencyError:
        raise ImageError(
            'its content is HEIC, as phones take it, and reading that needs a package: pip install "visglm[heif]". Or '
            "save it as JPEG."
        ) from None
    return pillow_heif.HeifImageFile(BytesIO(data), "")


def _begins(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(signatures)


def _is_of(brands: Iterable[bytes]) -> Callable[[bytes], bool]:
    """Whether an ISO base media file says that it is one of these, first of all or among others."""

    def accepts(data: bytes) -> bool:
        if data[4:8] != b"ftyp":
            return False
        size = min(int.from_bytes(data[:4], "big"), 1024)
        return not {data[8:12], *(data[start : start + 4] for start in range(16, size, 4))}.isdisjoint(brands)

    return accepts


# What cameras, phones, browsers and screenshots write. Pillow's other readers run Ghostscript or are hardly tested
# against hostile files, so they are never tried, whatever a file is called. AVIF stands before HEIF, since both may
# call themselves mif1 besides.
FORMATS: dict[str, Format] = {
    "PNG": Format(_begins(PNG_SIGNATURE), _open_png, "PNG"),
    "JPEG": Format(_begins(b"\xff\xd8\xff"), _open_jpeg, "JPEG"),
    "WEBP": Format(
        lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP", _with(WebPImagePlugin.WebPImageFile), "WEBP"
    ),
    "GIF": Format(_begins(b"GIF87a", b"GIF89a"), _open_gif, "GIF"),
    "BMP": Format(_begins(b"BM"), _open_bmp, "BMP"),
    "AVIF": Format(_is_of(AVIF_BRANDS), _with(AvifImagePlugin.AvifImageFile), "AVIF"),
    "HEIF": Format(_is_of(HEIF_BRANDS), _open_heif, "HEIC"),
}


class Other(NamedTuple):
    """What people take for a picture in one of `FORMATS`, and what they can do about it."""

    pattern: re.Pattern[bytes]
    name: str
    advice: str


SAVE_AS = "Open it in an image viewer and save it as PNG or JPEG."
EXPORT = "Export the page or drawing as PNG."
OTHERS = tuple(
    Other(re.compile(pattern, re.IGNORECASE | re.DOTALL), name, advice)
    for pattern, name, advice in (
        (rb"II[*+]\0|MM\0[*+]", "TIFF (or the raw data of a camera)", SAVE_AS),
        (rb"%PDF-", "PDF", EXPORT),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", EXPORT),
        (rb"8BPS", "a Photoshop document", EXPORT),
        (rb"\s*(<\?xml[^>]*>\s*)?(<!--.{0,1000}?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg", "SVG", EXPORT),
        (rb"\s*<(!DOCTYPE )?html", "a web page", "Save the picture itself, not the page around it."),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000", SAVE_AS),
        (rb"\0\0\0\x0cJXL |\xff\x0a", "JPEG XL", SAVE_AS),
        (rb"\0\0[\1\2]\0", "an icon", SAVE_AS),
        (rb".{4}ftyp", "a video", "Save one frame of it as PNG or JPEG."),
        (rb"version https://git-lfs", "a pointer of Git LFS", "Fetch the file itself: git lfs pull."),
    )
)
