"""Every kind of source gives the same RGB image, and every bad one a clear refusal."""

from __future__ import annotations

import base64
import errno
import io
import os
import pathlib
import re
import socket
import struct
import sys
import traceback
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.memory import peak_memory
from tests.web import serve
from visglm.errors import ConfigError, ImageError
from visglm.pictures import SOURCES, ImageLimits, load_image
from visglm.pictures import fetch as fetch_module
from visglm.pictures import load as images_module

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)  # height 5, width 7, RGBA


def encode(image, format="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def picture(num_channels: int = 3) -> Image.Image:
    return Image.fromarray(PIXELS[..., 0] if num_channels == 1 else PIXELS[..., :num_channels])


def on_white(pixels: np.ndarray) -> np.ndarray:
    alpha = pixels[..., 3:] / 255
    return pixels[..., :3] * alpha + 255 * (1 - alpha)


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def with_exif(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, exif=exif)


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(fetch_module, "is_public_address", lambda address: address == "127.0.0.1")
    with serve() as web:
        yield web


# ---- the contract of a source: a new row of SOURCES needs a row here ----------------------------------------


def to_path(data, tmp_path, web):
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    return path


def to_tensor(data, tmp_path, web):
    array = np.array(Image.open(io.BytesIO(data)))
    return torch.from_numpy(array if array.ndim == 2 else array.transpose(2, 0, 1).copy())


# For each source: PNG bytes → the source, and what must stand in an error to name it.
CASES = {
    "data URL": (lambda data, tmp_path, web: data_url(data), r"the data URL of [\d,]+ characters"),
    "http(s) URL": (lambda data, tmp_path, web: web.page("/a.png", data) + "#x", r"the URL 'http://.*/a.png'"),
    "base64 text": (lambda data, tmp_path, web: base64.b64encode(data).decode(), r"the base64 text of [\d,]+ char"),
    "path": (to_path, r"the path '.*picture.png'"),
    "bytes": (lambda data, tmp_path, web: data, r"the [\d,]+ bytes given"),
    "open binary file": (lambda data, tmp_path, web: to_path(data, tmp_path, web).open("rb"), "file '.*picture.png'"),
    "PIL image": (lambda data, tmp_path, web: Image.open(io.BytesIO(data)), "the PIL image of 7×5 pixels"),
    "NumPy array": (lambda data, tmp_path, web: np.array(Image.open(io.BytesIO(data))), r"the array of shape \(5, 7"),
    "PyTorch tensor": (to_tensor, r"the array of shape \(3, 5, 7\) and type torch.uint8"),
}
BARE = {"NumPy array", "PyTorch tensor"}  # values only: no EXIF, and nothing to break
ENCODED = set(CASES) - BARE - {"PIL image"}


@pytest.fixture
def make(name, tmp_path, web):
    """PNG bytes → the source of that name."""
    return lambda data: CASES[name][0](data, tmp_path, web)


def each(names=CASES):
    return pytest.mark.parametrize("name", sorted(names))


def test_every_source_has_a_case():
    assert set(CASES) == set(SOURCES)


@each()
def test_source_gives_rgb(make):
    image = load_image(make(encode(picture())), allow_urls=True)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), PIXELS[..., :3])


@each()
def test_source_gives_rgb_of_grey(make):
    image = load_image(make(encode(picture(1))), allow_urls=True)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.repeat(PIXELS[..., :1], 3, axis=-1))


@each()
def test_source_lays_transparency_on_white(make):
    image = load_image(make(encode(picture(4))), allow_urls=True)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image) - on_white(PIXELS)).max() <= 1


@each(set(CASES) - BARE)
def test_source_is_turned_upright(make):
    image = load_image(make(with_exif(picture(), 6)), allow_urls=True)
    assert np.array_equal(np.asarray(image), np.rot90(PIXELS[..., :3], -1))


@each()
def test_source_over_the_pixel_limit_is_refused_by_name(name, make):
    assert load_image(make(encode(picture())), allow_urls=True, limits=ImageLimits(max_pixels=35)).size == (7, 5)
    with pytest.raises(ImageError, match=f"Cannot use .*{CASES[name][1]}.*7×5 pixels, more than 34") as caught:
        load_image(make(encode(picture())), allow_urls=True, limits=ImageLimits(max_pixels=34))
    assert len(str(caught.value)) < 400


@each(ENCODED)
def test_source_over_the_byte_limit_is_refused_by_name(name, make):
    data = encode(picture())
    assert load_image(make(data), allow_urls=True, limits=ImageLimits(max_bytes=len(data))).size == (7, 5)
    with pytest.raises(ImageError, match=f"Cannot use .*{CASES[name][1]}.*over {len(data) - 1:,} bytes"):
        load_image(make(data), allow_urls=True, limits=ImageLimits(max_bytes=len(data) - 1))


@each(set(CASES) - BARE)
def test_source_refusal_never_holds_its_content(make):
    big = Image.fromarray(RNG.integers(0, 256, (5 * 20, 7 * 20, 3), dtype=np.uint8))
    data = encode(big)
    with pytest.raises(ImageError, match="ends early or is damaged") as caught:
        load_image(make(data[: len(data) // 6 * 3]), allow_urls=True)
    assert "iVBOR" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "0x" not in "".join(traceback.format_exception(caught.value))


# ---- what is in a file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation(orientation):
    data = with_exif(picture(), orientation)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    image = load_image(data)
    assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert np.array_equal(np.asarray(load_image(image)), np.asarray(expected))  # not turned a second time


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0", b"\xff" * 40, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xee" * 30]
)
def test_broken_exif_is_skipped(exif):
    image = Image.new("RGB", (16, 8), (200, 100, 50))
    assert load_image(encode(image, "JPEG", exif=exif)).size == (16, 8)
    assert np.array_equal(np.asarray(load_image(encode(image, exif=exif))), np.asarray(image))


def test_a_good_orientation_counts_though_another_tag_is_broken():
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x8769, 4, 1, 0xFFFFFF)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + struct.pack("<I", 0)
    assert load_image(encode(picture(), exif=exif)).size == (5, 7)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert load_image(data).getcolors() == [(64, (255, 0, 0))]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_one_pixel_in_every_format(format):
    image = load_image(encode(Image.new("RGB", (1, 1), "white"), format))
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (1, 1), (255, 255, 255))


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    assert colours(load_image(encode(image))) == [(255, 0, 0), (0, 255, 0)]
    for transparency in (1, b"\xff\x00"):
        assert colours(load_image(encode(image, transparency=transparency))) == [(255, 0, 0), (255, 255, 255)]
    assert colours(load_image(encode(image, "GIF", transparency=1))) == [(255, 0, 0), (255, 255, 255)]
    assert colours(load_image(encode(image, transparency=b"\xff\x80")))[1] == (127, 255, 127)


def test_colour_keys_of_grey_and_rgb_are_transparent():
    grey = Image.fromarray(np.array([[10, 20]], dtype=np.uint8))
    assert colours(load_image(encode(grey, transparency=20))) == [(10, 10, 10), (255, 255, 255)]
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert colours(load_image(encode(rgb, transparency=(4, 5, 6)))) == [(1, 2, 3), (255, 255, 255)]


def test_grey_with_alpha_and_black_and_white():
    grey = Image.fromarray(PIXELS[..., [0, 3]])
    assert grey.mode == "LA"
    expected = on_white(PIXELS[..., [0, 0, 0, 3]])
    assert np.abs(np.asarray(load_image(encode(grey))) - expected).max() <= 1
    bilevel = Image.fromarray(np.array([[True, False]]))
    assert colours(load_image(encode(bilevel))) == [(255, 255, 255), (0, 0, 0)]


def test_cmyk():
    data = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = load_image(data).getpixel((8, 8))
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bits_are_scaled_to_8(dtype):
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=dtype)
    expected = [0, 0, 1, 1, 128, 254, 255, 255]  # round(value / 257)
    for source in (values, Image.fromarray(values), encode(Image.fromarray(values))):
        assert np.asarray(load_image(source))[0].tolist() == [[value] * 3 for value in expected]


def test_16_bit_colour_and_colour_key():
    values = np.array([[1000, 40000]], dtype=np.uint16)
    image = load_image(encode(Image.fromarray(values), transparency=1000))
    assert colours(image) == [(255,) * 3, (156,) * 3]

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    pixel = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">3H", 65535, 32768, 0)))
    image = load_image(b"\x89PNG\r\n\x1a\n" + header + pixel + chunk(b"IEND", b""))
    assert image.getpixel((0, 0)) == (255, 128, 0)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_defined_white_are_refused(mode):
    with pytest.raises(ImageError, match=f"which value is white in mode {mode}"):
        load_image(Image.new(mode, (2, 2)))


# ---- hostile and broken files --------------------------------------------------------------------------------

HOSTILE = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
    "psd": b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + b"\0" * 200,
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "tiff": encode(picture(), "TIFF"),
    "ppm": encode(picture(), "PPM"),
    "ico": encode(Image.new("RGB", (16, 16)), "ICO"),
    "jpeg2000": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 100,
    "html": b"<!DOCTYPE html><title>Sign in</title>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_other_formats_are_refused_whatever_they_are_called(tmp_path, name):
    path = tmp_path / "picture.png"
    path.write_bytes(HOSTILE[name])
    for source in (path, HOSTILE[name], data_url(HOSTILE[name])):
        with pytest.raises(ImageError, match="not PNG, JPEG, WEBP, GIF, BMP"):
            load_image(source)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused_with_a_fixed_text(format, share):
    data = encode(Image.fromarray(RNG.integers(0, 256, (60, 60, 3), dtype=np.uint8)), format)
    with pytest.raises(ImageError) as caught:
        load_image(data[: int(len(data) * share)])
    problem = str(caught.value).split("as an image: ")[1]
    assert problem.startswith(("its content is not PNG", "its data ends early")), problem
    assert "0x" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("data", [b"\0" * 100, b"hello", RNG.bytes(5000), b"\x89PNG\r\n\x1a\n" + RNG.bytes(500)])
def test_garbage_is_refused_without_memory_addresses(data):
    with pytest.raises(ImageError, match="not PNG, JPEG|ends early") as caught:
        load_image(io.BytesIO(data))
    assert "0x" not in "".join(traceback.format_exception(caught.value))


def test_nothing_is_refused_as_empty(tmp_path):
    (tmp_path / "empty.png").touch()
    for source in (b"", tmp_path / "empty.png", "data:image/png;base64,", io.BytesIO()):
        with pytest.raises(ImageError, match="it is empty"):
            load_image(source)


# ---- pixel bombs ---------------------------------------------------------------------------------------------


def bomb(format: str, width: int, height: int) -> bytes:
    """A complete picture of one pixel whose header claims another size."""
    options = {"lossless": True} if format == "WEBP" else {}
    data = bytearray(encode(Image.new("RGB", (1, 1)), format, **options))
    if format == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif format == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", height, width)
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    else:  # an animation, whose canvas may be larger than its only frame
        frame = b"\0" * 15 + b"\0" + data[12:]
        chunks = struct.pack("<4sI4B", b"VP8X", 10, 2, 0, 0, 0)
        chunks += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        chunks += struct.pack("<4sIIH", b"ANIM", 6, 0, 0) + struct.pack("<4sI", b"ANMF", len(frame)) + frame
        data = b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks
    return bytes(data)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (12000, 12000), (15000, 15000)])
def test_pixel_bombs_are_refused_before_decoding(format, width, height):
    data = bomb(format, width, height)

    def attempt():
        with pytest.raises(ImageError, match=f"{width}×{height} pixels, more than|more pixels than PIL"):
            load_image(data)

    attempt()  # imports and caches
    assert peak_memory(attempt) < 10 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_the_measure_of_memory_would_see_a_bomb_go_off():
    assert peak_memory(lambda: load_image(encode(Image.new("L", (6000, 4000))))) > 60 * 2**20


def test_a_bomb_in_a_text_chunk_is_harmless():
    text = zlib.compress(b"a" * 100_000_000)
    chunk = b"zTXt" + b"Comment\0\0" + text
    data = encode(picture())
    data = data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    assert load_image(data).size == (7, 5)


# ---- paths ---------------------------------------------------------------------------------------------------


def test_a_missing_file_says_so_and_names_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("missing.png", pathlib.Path("missing.png"), "/missing/cat.jpg", "a" * 5000):
        with pytest.raises(ImageError, match="no such file") as caught:
            load_image(source)
        assert str(tmp_path) in str(caught.value)
        assert len(str(caught.value)) < 500


def test_text_that_is_nothing_gets_a_list_of_what_is_accepted():
    for source in ("hello", "what is in the picture?", "", "iVBORw0KGgo", b"hello".hex() * 100):
        with pytest.raises(ImageError) as caught:
            load_image(source)
        if source:
            assert all(name in str(caught.value) for name in SOURCES)
    for source in (None, 3, ["a.png"], {"url": "a.png"}):
        with pytest.raises(ImageError, match=f"Cannot use a {type(source).__name__} as an image.*data URL.*path"):
            load_image(source)


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for source in (tmp_path, tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ImageError, match="not a regular file"):
            load_image(source)
    with pytest.raises(ImageError, match="null character"):
        load_image("a\0b.png")


def test_files_that_cannot_be_opened_say_why(tmp_path, monkeypatch):
    path = to_path(encode(picture()), tmp_path, None)

    def forbidden(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "open", forbidden)
    with pytest.raises(ImageError, match=r"picture.png.*cannot be opened \(Permission denied\)"):
        load_image(path)


@pytest.fixture
def media(tmp_path):
    """A media root with a picture, beside a secret picture outside of it."""
    root = tmp_path / "media"
    (root / "inner").mkdir(parents=True)
    (tmp_path / "media-secret").mkdir()
    for path in (root / "cat.png", root / "inner" / "cat.png", tmp_path / "secret.png"):
        path.write_bytes(encode(picture()))
    (tmp_path / "media-secret" / "cat.png").write_bytes(encode(picture()))
    (root / "good_link.png").symlink_to(root / "inner" / "cat.png")
    (root / "bad_link.png").symlink_to(tmp_path / "secret.png")
    (root / "bad_folder").symlink_to(tmp_path)
    (root / "loop.png").symlink_to(root / "loop.png")
    return root


def test_paths_inside_the_media_root(media, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("cat.png", "inner/cat.png", "inner/../cat.png", "good_link.png", str(media / "cat.png")):
        assert load_image(source, root=media).size == (7, 5)
        assert load_image(source, root="media").size == (7, 5)


@pytest.mark.parametrize(
    "source",
    ["../secret.png", "inner/../../secret.png", "bad_link.png", "bad_folder/secret.png", "../media-secret/cat.png"]
    + ["{outside}/secret.png", "/etc/passwd", "../no-such-file.png", "..", "/"],
)
def test_paths_outside_the_media_root_are_refused_whether_they_exist_or_not(media, source):
    with pytest.raises(ImageError, match="outside of the media root"):
        load_image(source.format(outside=media.parent), root=media)


def test_a_missing_file_under_the_media_root_does_not_tell_where_that_is(media, monkeypatch):
    with pytest.raises(ImageError, match="no such file, starting from the media root") as caught:
        load_image("missing.png", root=media)
    assert str(media.parent) not in str(caught.value)
    assert os.getcwd() not in str(caught.value)
    with pytest.raises(ImageError):
        load_image("loop.png", root=media)


def test_a_folder_may_be_called_like_a_drive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:" / "inner").mkdir(parents=True)
    (tmp_path / "x.png").write_bytes(encode(picture()))
    (tmp_path / "a:" / "x.png").write_bytes(encode(picture()))
    for source in ("a://../x.png", "a://x.png", "a:/x.png", "a:/inner/../../x.png", "./a://x.png"):
        for allow_urls in (False, True):
            assert load_image(source, allow_urls=allow_urls).size == (7, 5)
    with pytest.raises(ImageError, match="the path 'b://x.png'.*no such file"):
        load_image("b://x.png", allow_urls=True)


def test_such_a_folder_leads_no_more_out_of_the_media_root_than_another(media, monkeypatch):
    monkeypatch.chdir(media)
    (media / "a:").mkdir()
    assert load_image("a://../cat.png", root=media).size == (7, 5)
    for source in ("a://../../secret.png", "a:/../../secret.png", "a:///../../secret.png"):
        with pytest.raises(ImageError, match="outside of the media root"):
            load_image(source, root=media)


@pytest.mark.parametrize("scheme", ["file", "ftp", "s3", "ab", "javascript", "a1", "x-y.z+1", "FILE"])
def test_no_address_is_opened_as_a_file(media, monkeypatch, scheme):
    """Though there is a file of that very name."""
    monkeypatch.chdir(media)
    (media / f"{scheme}:" / "host").mkdir(parents=True)
    (media / f"{scheme}:" / "host" / "x.png").write_bytes(encode(picture()))
    for options in ({}, {"root": media}, {"allow_urls": True}):
        with pytest.raises(ImageError, match="only http:// and https://.* or put ./ in front"):
            load_image(f"{scheme}://host/x.png", **options)
        assert load_image(f"./{scheme}://host/x.png", **{**options, "allow_urls": False}).size == (7, 5)
        assert load_image(pathlib.Path(f"{scheme}://host/x.png"), **options).size == (7, 5)


def test_paths_of_bytes(tmp_path):
    class Entry:
        def __fspath__(self):
            return os.fsencode(tmp_path / "picture.png")

    with pytest.raises(ImageError, match="picture.png'.*no such file"):
        load_image(Entry())
    to_path(encode(picture()), tmp_path, None)
    assert load_image(Entry()).size == (7, 5)


# ---- URLs, data URLs, base64 ---------------------------------------------------------------------------------


def test_urls_are_switched_off(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("the name was looked up"))
    for source in ("http://example.com/cat.png", "HTTPS://example.com/cat.png"):
        with pytest.raises(ImageError, match="allow_urls=True"):
            load_image(source)


@pytest.mark.parametrize("source", ["file:///etc/passwd", "ftp://example.com/a.png", "s3://bucket/a.png"])
@pytest.mark.parametrize("allow_urls", [True, False])
def test_other_schemes_are_refused(source, allow_urls):
    with pytest.raises(ImageError, match="only http:// and https://"):
        load_image(source, allow_urls=allow_urls)


def test_a_local_server_sees_nothing(monkeypatch):
    with serve() as web:
        with pytest.raises(ImageError, match="private"):
            load_image(web.page("/a.png", encode(picture())), allow_urls=True)
        assert web.connections == 0


def test_the_limits_reach_the_download(web):
    loop = web.page("/loop", status=302, Location="/loop")
    with pytest.raises(ImageError, match="more than 1 times"):
        load_image(loop, allow_urls=True, limits=ImageLimits(max_redirects=1))
    with pytest.raises(ImageError, match="longer than 1e-06 seconds"):
        load_image(loop, allow_urls=True, limits=ImageLimits(timeout=1e-6))


def test_a_url_is_named_without_its_secrets():
    with pytest.raises(ImageError, match="'http://example.com/a.png'") as caught:
        load_image("http://me:password@example.com/a.png?signature=1234#part")
    assert not re.search("password|1234|part", str(caught.value))


def test_too_much_base64_is_refused_before_decoding(monkeypatch):
    text = base64.b64encode(encode(picture()) + b"\0" * 10_000).decode()
    monkeypatch.setattr(images_module.base64, "b64decode", lambda *args, **kwargs: pytest.fail("it was decoded"))
    for source in (text, "data:image/png;base64," + text):
        with pytest.raises(ImageError, match="over 10,000 bytes"):
            load_image(source, limits=ImageLimits(max_bytes=10_000))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_base64_of_every_format_is_recognized(format):
    data = encode(Image.new("RGB", (1, 1)), format)
    assert load_image(base64.b64encode(data).decode()).size == (1, 1)
    assert load_image(base64.encodebytes(data).decode()).size == (1, 1)  # with line breaks
    assert load_image("DATA:;BASE64," + base64.b64encode(data).decode()).size == (1, 1)


@pytest.mark.parametrize("name", ["9j", "Qk12", "R0lGODfiles", "UklGR_pictures_of_the_year", "Qk" * 30])
def test_paths_that_begin_like_base64_are_paths(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(encode(picture()))
    assert load_image(name).size == (7, 5)


@pytest.mark.parametrize(
    "source",
    ["data:image/png,abc", "data:image/svg+xml;utf8,<svg/>", "data:image/png;base64", "data:", "data:,"],
)
def test_data_urls_without_base64(source):
    with pytest.raises(ImageError, match='expected "data:image/png;base64,"'):
        load_image(source)


def test_damaged_base64():
    text = base64.b64encode(encode(picture())).decode()
    for damaged in (text[:-1], text[:60] + "!" + text[60:]):
        for source in (damaged, "data:image/png;base64," + damaged):
            with pytest.raises(ImageError, match="base64 text is damaged"):
                load_image(source)


# ---- bytes, files, images, arrays ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_kinds_of_bytes(kind):
    assert load_image(kind(encode(picture()))).size == (7, 5)


class Stream:
    """Gives what is left in small pieces, cannot go back."""

    def __init__(self, data: bytes):
        self.rest = data

    def read(self, num_bytes: int) -> bytes:
        piece, self.rest = self.rest[: min(num_bytes, 10)], self.rest[min(num_bytes, 10) :]
        return piece


def test_files_are_read_from_where_they_are():
    assert load_image(Stream(encode(picture()))).size == (7, 5)
    file = io.BytesIO(b"header" + encode(picture()))
    file.seek(6)
    assert load_image(file).size == (7, 5)
    with pytest.raises(ImageError, match="go back to its start"):
        load_image(file)


def test_endless_files_are_refused_while_reading():
    with open("/dev/zero", "rb") as endless, pytest.raises(ImageError, match="over 100,000 bytes"):
        load_image(endless, limits=ImageLimits(max_bytes=100_000))


def test_files_that_cannot_be_read(tmp_path):
    path = to_path(encode(picture()), tmp_path, None)
    with path.open(encoding="latin-1") as text, pytest.raises(ImageError, match='mode "rb"'):
        load_image(text)
    with path.open("rb") as closed:
        pass

    class Archive:
        def read(self, num_bytes):
            raise zlib.error("invalid block")

    with pytest.raises(ImageError, match="cannot be read"):
        load_image(Archive())
    with pytest.raises(ImageError, match="still open"):
        load_image(closed)


def test_the_image_given_stays_as_it_was():
    original = picture()
    image = load_image(original)
    image.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(original), PIXELS[..., :3])
    rotated = Image.open(io.BytesIO(with_exif(picture(), 6)))
    load_image(rotated)
    assert rotated.size == (7, 5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_float_arrays(dtype, num_channels):
    pixels = PIXELS[..., :num_channels]
    expected = np.asarray(load_image(pixels))
    assert np.array_equal(np.asarray(load_image((pixels / 255).astype(dtype))), expected)
    assert np.array_equal(np.asarray(load_image(torch.from_numpy((pixels / 255).astype(dtype)))), expected)


def test_16_bit_arrays_with_channels():
    expected = np.asarray(load_image(PIXELS))
    assert np.array_equal(np.asarray(load_image(PIXELS.astype(np.uint16) * 257)), expected)


def test_the_channel_axis_is_found_where_only_one_fits():
    channels_first = np.ascontiguousarray(PIXELS[..., :3].transpose(2, 0, 1))
    for source in (channels_first, torch.from_numpy(channels_first), torch.from_numpy(PIXELS[..., :3])):
        assert np.array_equal(np.asarray(load_image(source)), PIXELS[..., :3])
    both = PIXELS[:3, :, :3]  # 3 × 7 × 3: arrays have channels last, tensors first
    assert np.array_equal(np.asarray(load_image(both)), both)
    assert np.array_equal(np.asarray(load_image(torch.from_numpy(both))), both.transpose(1, 2, 0))
    for grey in (PIXELS[:3, :, 0], PIXELS[:, :4, 0]):  # neither 3 rows nor 4 columns are channels
        for source in (grey, torch.from_numpy(grey)):
            assert np.array_equal(np.asarray(load_image(source))[..., 1], grey)


def test_strided_arrays_and_tensors_of_a_training_run():
    assert np.array_equal(np.asarray(load_image(PIXELS[::2, ::-1, 2::-1])), PIXELS[::2, ::-1, 2::-1])
    tensor = torch.from_numpy(PIXELS[..., :3] / 255).permute(2, 0, 1).to(torch.bfloat16).requires_grad_()
    assert np.abs(np.asarray(load_image(tensor)).astype(int) - PIXELS[..., :3]).max() <= 1


@pytest.mark.parametrize("shape", [(5,), (5, 7, 2), (5, 7, 5), (1, 5, 7, 3), (0, 7, 3), (5, 0), ()])
def test_shapes_that_are_no_image(shape):
    with pytest.raises(ImageError, match=f"shape {re.escape(str(shape))}.*expected height × width"):
        load_image(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint32, bool, complex, object])
def test_types_without_a_defined_range(dtype):
    with pytest.raises(ImageError, match="expected uint8, uint16 or floats in 0..1"):
        load_image(np.zeros((2, 2, 3), dtype=dtype))


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((2, 2, 3), dtype=np.int32),
        np.array([[True, False]]),
        np.zeros((2, 2), dtype="datetime64[s]"),
        np.zeros((2, 2), dtype="U3"),
        np.zeros((2, 2), dtype=[("red", "u1"), ("green", "u1")]),
        np.array([[{}, None]], dtype=object),
        np.zeros((2, 2, 3), dtype="V2"),
        torch.zeros(3, 2, 2, dtype=torch.int64),
        torch.zeros(3, 2, 2, dtype=torch.bool),
        torch.zeros(3, 2, 2, dtype=torch.complex64),
    ],
    ids=lambda source: str(source.dtype)[:20],
)
def test_values_without_a_defined_range_are_refused_with_a_way_out(source):
    with pytest.raises(ImageError, match="expected uint8, uint16 or floats in 0..1. Values in 0..255: convert them"):
        load_image(source)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, 2, 2).to_sparse(),
        lambda: torch.zeros(3, 2, 2, device="meta"),
        lambda: torch.quantize_per_tensor(torch.zeros(3, 2, 2), 0.1, 0, torch.quint8),
    ],
    ids=["sparse", "meta", "quantized"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_without_plain_values_are_refused(make):
    with pytest.raises(ImageError, match="cannot be read one by one"):
        load_image(make())


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_kinds_of_arrays():
    rgb = PIXELS[..., :3]
    frozen = rgb.copy()
    frozen.flags.writeable = False
    swapped = (rgb / 255).astype(">f4")
    for source in (
        frozen,
        swapped,
        np.ma.masked_array(rgb),
        np.asfortranarray(rgb),
        rgb.astype(">u2") * np.uint16(257),
    ):
        assert np.array_equal(np.asarray(load_image(source)), rgb)
    assert np.array_equal(np.asarray(load_image(np.asmatrix(rgb[..., 0])))[..., 0], rgb[..., 0])
    image = load_image(rgb)
    image.putpixel((0, 0), (1, 2, 3))  # a copy: the array is not touched
    assert np.array_equal(rgb, PIXELS[..., :3])


def test_arrays_are_measured_before_anything_is_computed():
    """A view of one value may claim any size."""
    value = np.zeros(1, dtype=np.float32)
    for dtype in (np.uint8, np.uint16, np.float32):
        with pytest.raises(ImageError, match="1000000×1000000 pixels"):
            load_image(np.broadcast_to(value.astype(dtype), (1_000_000, 1_000_000)))
    for dtype in (torch.uint8, torch.bfloat16):
        with pytest.raises(ImageError, match="1000000×2000000 pixels"):
            load_image(torch.zeros(1, dtype=dtype).expand(3, 2_000_000, 1_000_000))


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_pictures_without_pixels_are_refused(size, mode):
    with pytest.raises(ImageError, match=f"{size[0]}×{size[1]} pixels, that is none. Expected at least 1×1"):
        load_image(Image.new(mode, size))


# Mode → the value of a pixel in it, and what that is in RGB; None where nothing says.
MODES = {
    "1": (255, (255, 255, 255)),
    "L": (90, (90, 90, 90)),
    "LA": ((90, 255), (90, 90, 90)),
    "La": ((45, 128), (172, 172, 172)),
    "RGB": ((10, 20, 30), (10, 20, 30)),
    "RGBX": ((10, 20, 30, 0), (10, 20, 30)),
    "RGBA": ((10, 20, 30, 255), (10, 20, 30)),
    "RGBa": ((0, 0, 0, 0), (255, 255, 255)),
    "CMYK": ((0, 255, 255, 0), (255, 0, 0)),
    "YCbCr": ((76, 85, 255), (255, 0, 0)),
    "HSV": ((0, 255, 255), (255, 0, 0)),
    "P": (0, (0, 0, 0)),
    "PA": ((0, 0), (255, 255, 255)),
    "I;16": (32896, (128, 128, 128)),
    "I;16L": (32896, (128, 128, 128)),
    "I;16B": (32896, (128, 128, 128)),
    "LAB": ((128, 128, 128), None),
    "I": (1, None),
    "F": (1.0, None),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow_is_right_or_refused(mode):
    value, expected = MODES[mode]
    image = Image.new(mode, (3, 2))
    image.putdata([value] * 6) if mode not in ("La", "RGBa", "PA") else image.paste(value, (0, 0, 3, 2))
    if expected is None:
        with pytest.raises(ImageError, match=f"mode {mode}.* first"):
            load_image(image)
        return
    loaded = load_image(image)
    assert (loaded.mode, loaded.size) == ("RGB", (3, 2))
    assert np.abs(np.array(loaded.getpixel((1, 1))) - expected).max() <= 1


def test_every_mode_of_pillow_is_known():
    assert set(Image.MODES) - {"I;16N"} <= set(MODES)
    assert load_image(Image.new("I;16N", (1, 1))).size == (1, 1)


@pytest.mark.parametrize("value", [1.5, 255.0, -0.1, float("nan"), float("inf")])
def test_floats_out_of_range(value):
    with pytest.raises(ImageError, match="expected 0..1"):
        load_image(np.array([[0.5, value]]))


@pytest.mark.parametrize("name", ["max_bytes", "max_pixels", "timeout", "max_redirects"])
def test_limits_must_make_sense(name):
    with pytest.raises(ConfigError, match=f"{name} must be .*; got -1"):
        ImageLimits(**{name: -1})
    assert ImageLimits(max_redirects=0).max_redirects == 0
