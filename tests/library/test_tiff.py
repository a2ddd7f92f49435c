"""TIFFs of scanners and fax machines: every page, upright and in its shape; hostile ones are told."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import pytest
from PIL import Image, ImageDraw, TiffImagePlugin

from tests.library import samples
from visglm.errors import DocumentError
from visglm.library import Library, LibraryLimits
from visglm.library.pieces import Piece
from visglm.library.readers import read
from visglm.library.readers.tiff import draw_tiff

LIMITS = LibraryLimits()
LEFT_HALF = (0, 0, 50, 60)


def sheet(colour: str, mode: str = "RGB", size: tuple[int, int] = (100, 60)) -> Image.Image:
    """A white page whose left half has a colour."""
    drawn = Image.new("RGB", size, "white")
    ImageDraw.Draw(drawn).rectangle((0, 0, size[0] // 2 - 1, size[1]), colour)
    return drawn.convert(mode)


def tiff(*pages: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=list(pages[1:]), **options)
    return file.getvalue()


class Colours:
    """Reads the colour of a page's left half."""

    name = "colours"

    def can_read(self) -> bool:
        return True

    def read(self, image: Image.Image) -> Iterator[Piece]:
        red, green, blue = image.getpixel((image.width // 4, image.height // 2))
        yield Piece("red" if red > 128 > blue else "blue" if blue > 128 > red else "dark")


def drawn(data: bytes, **more: object) -> list[Image.Image | DocumentError]:
    return [page for _, page in draw_tiff(data, LIMITS, **more)]


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_every_page_is_read_with_its_number(compression):
    data = tiff(sheet("red"), sheet("blue"), compression=compression)
    found = read(data, "scan.TIF", LIMITS, Colours())
    assert [(piece.text, piece.page, piece.image is not None) for piece in found] == [
        ("", 1, True), ("red", 1, False), ("", 2, True), ("blue", 2, False),
    ]  # fmt: skip


def test_one_picture_has_no_page():
    assert [piece.page for piece in read(tiff(sheet("red")), "x.tiff", LIMITS, Colours())] == [None, None]


@pytest.mark.parametrize("compression", ["group3", "group4"])
def test_a_fax_has_its_shape_though_its_dots_are_not_square(compression):
    fax = sheet("black", "1", (1728, 1100))
    [page] = drawn(tiff(fax, compression=compression, dpi=(204, 98)))
    assert page.width / page.height == pytest.approx(1728 / 1100 * 98 / 204, abs=0.01)
    assert page.mode == "RGB" and Colours().read(page).__next__().text == "dark"


def test_pages_are_upright_small_and_from_where_they_are_wanted():
    entries = TiffImagePlugin.ImageFileDirectory_v2()
    entries[274] = 6  # its top is on the right
    turned = sheet("red").transpose(Image.Transpose.ROTATE_90)
    [page] = drawn(tiff(turned, tiffinfo=entries))
    assert page.size == (100, 60) and page.getpixel((20, 30)) == (255, 0, 0)
    [first, second] = drawn(tiff(sheet("red"), sheet("blue", "CMYK"), sheet("black", "1")), first=2, max_side=50)
    assert first.size == (50, 30) and second.mode == "RGB"
    assert drawn(tiff(sheet("red")), first=2) == []


def test_thumbnails_are_no_pages():
    entries = TiffImagePlugin.ImageFileDirectory_v2()
    entries[254] = 1
    small = tiff(sheet("blue", size=(10, 6)), tiffinfo=entries)
    data = joined(tiff(sheet("red")), small)
    assert [number for number, _ in draw_tiff(data, LIMITS)] == [1]


def joined(first: bytes, second: bytes) -> bytes:
    """Two TIFFs of a page each as one of two."""
    file = io.BytesIO(first)
    with TiffImagePlugin.AppendingTiffWriter(file) as writer:
        writer.write(second)
        writer.finalize()
    return file.getvalue()


def test_what_is_only_called_a_tiff_is_the_picture_that_it_is():
    found = read(samples.CAT.read_bytes(), "cat.tif", LIMITS, Colours())
    assert found[0].image is not None and found[0].page is None
    with pytest.raises(DocumentError, match="is not PNG"):
        read(b"no picture", "x.tif", LIMITS, Colours())


def test_a_page_that_is_broken_is_told():
    data = tiff(sheet("red"), sheet("blue"), compression="tiff_lzw")
    [whole, broken] = drawn(data[:-20])
    assert isinstance(whole, Image.Image) and isinstance(broken, DocumentError)
    with pytest.raises(DocumentError, match="its page 2: "):
        read(data[:-20], "x.tif", LIMITS, Colours())
    with pytest.raises(DocumentError, match="it ends early"):
        read(data[:6], "x.tif", LIMITS, Colours())


def directory(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    return (
        struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        + struct.pack("<I", following)
    )


HEAD = struct.pack("<4sI", b"II*\0", 8)


def test_what_a_tiff_says_costs_no_more_than_it_is_long():
    with pytest.raises(DocumentError, match="2 pages, more than 1"):
        read(tiff(sheet("red"), sheet("blue")), "x.tif", LibraryLimits(max_pages=1), Colours())
    shared = directory(*((tag, 7, 60_000, 8) for tag in range(700, 1700)))  # 60 MB of what is 60 kB
    with pytest.raises(DocumentError, match="more of its pages than it holds"):
        read(HEAD + shared + bytes(60_000), "x.tif", LIMITS, Colours())
    loop = HEAD + directory((256, 3, 1, 1), following=8)
    assert len(drawn(loop)) == 1
    wide = directory((256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8))
    [problem] = drawn(HEAD + wide)
    assert "60000×60000 pixels" in str(problem)


def test_a_page_is_found_cited_and_shown(tmp_path):
    (tmp_path / "fax.tif").write_bytes(tiff(sheet("red"), sheet("blue")))
    library = Library.open(tmp_path / "notes.library", vectors=False)
    library.indexer.ocr = Colours()
    assert library.add(tmp_path / "fax.tif", progress=False).skipped == {}
    [hit] = library.search("blue", kinds="text")
    assert (hit.page, hit.text) == (2, "blue")
    shown = library.view(hit)
    assert shown.problem == "" and shown.image.getpixel((20, 30)) == (0, 0, 255)
