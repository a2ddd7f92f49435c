"""Whole pictures with broken or bloated metadata are read; what would take a decoder minutes is refused at once."""

from __future__ import annotations

import base64
import io
import re
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.memory import peak_memory
from visglm import VisGLM
from visglm.errors import ImageError
from visglm.pictures import FORMATS, ImageLimits, load_image
from visglm.pictures import formats as formats_module

FILES = Path(__file__).parent / "files"
CAT = Path(__file__).parents[2] / "examples" / "cat.png"
linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def disc(size=(64, 48)) -> Image.Image:
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    red = (columns - size[0] / 2) ** 2 + (rows - size[1] / 2) ** 2 < (size[1] / 3) ** 2
    return Image.fromarray(np.where(red[..., None], (220, 30, 30), (240, 240, 240)).astype(np.uint8))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(added: bytes, data: bytes | None = None, *, at_end: bool = False) -> bytes:
    """A PNG with a chunk more, behind its header or in front of its end."""
    data = encode(disc()) if data is None else data
    place = len(data) - 12 if at_end else 33
    return data[:place] + added + data[place:]


# ---- metadata -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["big_icc.png", "big_ztxt.png", "big_ztxt_after.png", "bad_text_crc.png"])
def test_metadata_decides_nothing_about_pixels(name):
    image = load_image(FILES / name)
    assert image.size == (96, 96)
    small = np.asarray(load_image(CAT).resize((96, 96))).astype(int)
    assert np.abs(np.asarray(image).astype(int) - small).mean() < 20


BOMB = zlib.compress(b"a" * 200_000_000, 9)


@linux
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    "added",
    [
        chunk(b"zTXt", b"Comment\0\0" + BOMB),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
        chunk(b"iCCP", b"profile\0\0" + BOMB),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
        chunk(b"tEXt", b"Comment\0" + b"a" * 5_000_000),
        chunk(b"iCCP", b"profile\0\0" + b"no zlib"),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + b"no zlib"),
        chunk(b"zTXt", b"Raw profile type exif\0\1" + BOMB),
        chunk(b"iTXt", b"XML:com.adobe.xmp"),
        chunk(b"tEXt", b"no keyword"),
        chunk(b"sRGB", b""),
        chunk(b"gAMA", b"1"),
        chunk(b"pHYs", b"12"),
        chunk(b"eXIf", b"\xff" * 20)[:-4] + b"0000",
        chunk(b"abCd", b"\0" * 1000),
    ],
    ids=lambda added: added[4:30].decode("latin-1").partition("\0")[0],
)
def test_no_chunk_beside_the_pixels_costs_or_breaks_anything(added, at_end):
    data = with_chunk(added, at_end=at_end)
    assert np.array_equal(np.asarray(load_image(data)), np.asarray(disc()))
    assert peak_memory(lambda: load_image(data)) < 20 * 2**20


ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
RAW_PROFILE = b"\nexif\n%8d\n%s\n" % (len(ORIENTED.tobytes()), ORIENTED.tobytes().hex().encode())


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    "added",
    [
        chunk(b"eXIf", ORIENTED.tobytes()[6:]),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"tEXt", b"Raw profile type exif\0" + RAW_PROFILE),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_PROFILE)),
    ],
    ids=["eXIf", "XMP", "text", "packed text"],
)
def test_every_place_where_a_png_says_which_way_up_it_is_counts(added, at_end):
    image = load_image(with_chunk(added, at_end=at_end))
    assert np.array_equal(np.asarray(image), np.rot90(np.asarray(disc()), -1))


def test_a_wrong_bit_among_the_pixels_is_still_told():
    data = bytearray(encode(disc()))
    data[data.index(b"IDAT") + 20] ^= 1
    with pytest.raises(ImageError, match="ends early or is damaged"):
        load_image(bytes(data))


def test_a_bmp_whose_fourth_byte_is_unused_is_opaque():
    image = load_image(FILES / "alpha0.bmp")
    assert image.getextrema() != ((255, 255),) * 3
    assert load_image(Image.open(FILES / "alpha0.bmp")).tobytes() == image.tobytes()
    clear = encode(Image.new("RGBA", (4, 4), (200, 0, 0, 0)))  # a PNG means it
    assert load_image(clear).getcolors() == [(16, (255, 255, 255))]


def test_exif_with_a_division_by_zero_still_turns_the_picture():
    with Image.open(FILES / "exif_zero_div.jpg") as raw:
        turned = raw.transpose(Image.Transpose.ROTATE_270).convert("RGB")
    assert np.array_equal(np.asarray(load_image(FILES / "exif_zero_div.jpg")), np.asarray(turned))


# ---- what a decoder would take long for ------------------------------------------------------------------------


@pytest.fixture
def no_pixels(monkeypatch):
    """Nothing may be decoded."""
    for name in ("load", "load_prepare"):
        monkeypatch.setattr(f"PIL.ImageFile.ImageFile.{name}", lambda *_: pytest.fail("it was decoded"))


def progressive(num_scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encode(disc((256, 256)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * (num_scans - data.count(b"\xff\xda")) + data[-2:]


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded(no_pixels):
    with pytest.raises(ImageError, match="over 100 scans. Save it again, not progressive"):
        load_image(progressive(300))


def test_scans_are_counted_rightly():
    assert load_image(progressive(100)).size == (256, 256)
    with pytest.raises(ImageError, match="over 100 scans"):
        load_image(progressive(101))
    # What looks like a scan inside a comment, and behind the end, is none.
    data = progressive(50)
    fake = b"\xff\xda\0\x08" * 100
    data = data[:2] + b"\xff\xfe" + struct.pack(">H", len(fake) + 2) + fake + data[2:] + fake
    assert load_image(data).size == (256, 256)
    data = encode(disc((300, 300)), "JPEG", restart_marker_blocks=1)
    assert len(re.findall(rb"\xff[\xd0-\xd7]", data)) > 300 and load_image(data).size == (300, 300)


def insert(data: bytes, place: int, piece: bytes, count: int) -> bytes:
    return data[:place] + piece * count + data[place:]


JPEG, GIF = encode(disc(), "JPEG"), encode(disc(), "GIF")
GIF_PIXELS = GIF.index(b",", 13 + 3 * 2 ** ((GIF[10] & 7) + 1))
LONG = {
    "png, empty pieces": insert(encode(disc()), 33, chunk(b"IDAT", b""), 200_000),
    "png, unknown pieces": insert(encode(disc()), 33, chunk(b"abCd", b""), 200_000),
    "jpeg, empty segments": insert(JPEG, 20, b"\xff\xe5\0\2", 200_000),
    "jpeg, padding": insert(JPEG, 20, b"\xff", 2_000_000),
    "jpeg, junk": insert(JPEG, 20, b"\1", 2_000_000),
    "jpeg, markers alone": insert(JPEG, 20, b"\xff\x01", 200_000),
    "gif, empty extensions": insert(GIF, GIF_PIXELS, b"!\xfe\0", 200_000),
    "gif, long comments": insert(GIF, GIF_PIXELS, b"!\xfe" + b"\1a" * 100_000 + b"\0", 1),
}


@pytest.mark.parametrize("name", LONG)
def test_files_in_very_many_pieces_are_refused_before_they_are_read(name, monkeypatch):
    for plugin in ("PngImagePlugin.PngImageFile", "JpegImagePlugin.JpegImageFile", "GifImagePlugin.GifImageFile"):
        monkeypatch.setattr(f"PIL.{plugin}._open", lambda *_: pytest.fail("Pillow has seen it"))
    with pytest.raises(ImageError, match="pieces. Save it again|ends early or is damaged"):
        load_image(LONG[name])


@pytest.mark.parametrize(
    "data, place, piece",
    [
        (encode(disc()), 33, chunk(b"IDAT", b"")),
        (JPEG, 20, b"\xff\xe5\0\2\xff\xff"),
        (GIF, GIF_PIXELS, b"!\xfe\1a\0"),
    ],
    ids=["png", "jpeg", "gif"],
)
def test_files_in_some_pieces_more_are_read(data, place, piece):
    assert load_image(insert(data, place, piece, 50)).size == (64, 48)


def run_length_coded(num_bytes: int) -> bytes:
    """A BMP of 16 × 16 whose runs are followed by so much that no decoder needs."""
    rows = b"".join(b"\x10" + bytes([row]) + b"\0\0" for row in range(16)) + b"\0\1" + b"\0" * num_bytes
    header = struct.pack("<IiiHHIIiiII", 40, 16, 16, 1, 8, 1, len(rows), 0, 0, 256, 0)
    palette = b"".join(bytes([value] * 3 + [0]) for value in range(256))
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + palette + rows


def test_run_lengths_that_python_would_unpack_are_bounded(no_pixels):
    with pytest.raises(ImageError, match="run-length coded BMP of over"):
        load_image(run_length_coded(formats_module.MAX_RLE_BYTES))


def test_run_lengths_are_read():
    column = np.asarray(load_image(run_length_coded(0)))[:, 0, 0]
    assert column.tolist() == list(range(15, -1, -1))


# ---- very large photographs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photograph() -> bytes:
    """108 megapixels, as phones take them; grey, so that it is quickly made."""
    rows = np.linspace(0, 255, 9000, dtype=np.uint8)[:, None]
    return encode(Image.fromarray(np.broadcast_to(rows, (9000, 12000)).copy()), "JPEG", quality=95)


@linux
def test_a_photograph_of_108_megapixels_is_read_at_half_its_size(photograph):
    def read():
        image = load_image(photograph)
        assert image.size == (6000, 4500)
        assert [image.getpixel((3000, row))[0] for row in (0, 2250, 4499)] == pytest.approx([0, 128, 255], abs=2)

    read()
    assert peak_memory(read) < 250 * 2**20  # in full and in RGB it would be 324 MB, and 648 while it is copied


def test_a_photograph_of_108_megapixels_is_answered(photograph):
    reply = VisGLM.from_pretrained().chat(photograph, "What is this?", max_new_tokens=2)
    assert reply.images[0].size == (6000, 4500)


def test_pictures_within_the_limit_are_read_as_they_are():
    data = encode(disc((400, 300)), "JPEG")
    assert load_image(data, limits=ImageLimits(max_pixels=120_000)).size == (400, 300)
    assert load_image(data, limits=ImageLimits(max_pixels=119_999)).size == (200, 150)
    assert load_image(data, limits=ImageLimits(max_pixels=30_000)).size == (200, 150)
    refused = [encode(disc((400, 300))), encode(disc((400, 300)), "WEBP")]
    for other in (*refused, encode(disc((400, 300)), "JPEG", progressive=True)):
        with pytest.raises(ImageError, match="400×300 pixels, more than 119,999"):
            load_image(other, limits=ImageLimits(max_pixels=119_999))
    with pytest.raises(ImageError, match="400×300 pixels, more than 29,999"):
        load_image(data, limits=ImageLimits(max_pixels=29_999))


def test_more_pixels_than_pillow_likes_are_a_matter_of_the_limits(monkeypatch):
    """Its own limit is one for the whole process, and nobody at a door of visglm can set it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for format in ("PNG", "JPEG", "GIF", "BMP"):
        assert load_image(encode(disc(), format)).size == (64, 48)


# ---- other formats ----------------------------------------------------------------------------------------------


@pytest.fixture
def heif():
    return pytest.importorskip("pillow_heif")


def test_avif():
    data = encode(disc(), "AVIF", quality=95)
    image = load_image(data)
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(disc())).mean() < 5
    assert load_image(base64.b64encode(data).decode()).size == (64, 48)
    assert load_image(encode(disc(), "AVIF", exif=ORIENTED.tobytes())).size == (48, 64)
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert load_image(encode(clear, "AVIF")).getpixel((8, 8)) == (255, 255, 255)
    frames = encode(disc(), "AVIF", save_all=True, append_images=[Image.new("RGB", (64, 48))])
    assert load_image(frames).getpixel((1, 1)) > (200, 200, 200)


def heic(heif, **options) -> bytes:
    file = io.BytesIO()
    heif.from_pillow(disc()).save(file, quality=95, **options)
    return file.getvalue()


def test_heic(heif):
    data = heic(heif)
    image = load_image(data)
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(disc())).mean() < 5
    assert load_image(base64.b64encode(data).decode()).size == (64, 48)
    turned = np.asarray(load_image(heic(heif, exif=ORIENTED.tobytes())))
    assert turned.shape == (64, 48, 3)


def test_heic_and_avif_within_limits(heif):
    for data in (heic(heif), encode(disc(), "AVIF")):
        with pytest.raises(ImageError, match="64×48 pixels, more than 1,000"):
            load_image(data, limits=ImageLimits(max_pixels=1000))
        with pytest.raises(ImageError, match="header is damaged|ends early"):
            load_image(data[: len(data) // 2])


def test_heic_without_its_package_says_how_to_get_it(heif, monkeypatch):
    data = heic(heif)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r'HEIC, as phones take it.*pip install "visglm\[heif\]".*save it as JPEG'):
        load_image(data)


@pytest.mark.parametrize(
    "data, words",
    [
        (encode(disc(), "TIFF"), "content is TIFF.* save it as PNG"),
        (b"%PDF-1.7\n", "content is PDF.*Export the page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="">', "content is SVG.*Export"),
        (b"\n<!doctype html><title>Sign in", "content is a web page.*the picture itself"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "content is a video.*one frame"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS.*git lfs pull"),
    ],
    ids=["tiff", "pdf", "svg", "html", "mp4", "lfs"],
)
def test_what_is_called_png_and_is_not_is_told_what_it_is(tmp_path, data, words):
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=f"picture.png.*{words}"):
        load_image(path)


def test_the_formats_are_a_table_that_others_can_extend(monkeypatch):
    reader = formats_module.Format(
        lambda data: data.startswith(b"MINE"), lambda data, limits: Image.new("RGB", (3, 2)), "MINE"
    )
    monkeypatch.setitem(FORMATS, "MINE", reader)
    assert load_image(b"MINE").size == (3, 2)
    with pytest.raises(ImageError, match="HEIC or MINE"):
        load_image(b"something else")


def test_whether_anything_is_decoded_would_be_noticed(no_pixels):
    with pytest.raises(pytest.fail.Exception):
        load_image(JPEG)
