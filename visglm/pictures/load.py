"""Anything that holds a picture → one RGB image, within limits.

Every picture that visglm sees comes through `load_image`, from a notebook, a data file or the network alike.
It is given image sources only: the text of a question is never searched for paths or URLs.

A new kind of source is one function and one row of `SOURCES`.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import stat
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import ConfigError, ImageError
from .fetch import check_num_bytes, check_url, fetch, read_all

# What cameras, browsers and screenshots write. Pillow's other readers run Ghostscript or are hardly tested
# against hostile files, so they are never tried, whatever a file is called.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

# EXIF orientation, as the standard numbers it → what turns the image upright; 1 is upright.
ORIENTATION_TAG = 0x0112
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# How PNG, JPEG, GIF, WEBP and BMP begin in base64. A path may begin with /9j/ too, but not go on like that.
BASE64_IMAGE = re.compile(r"(iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk[0-3][A-Za-z0-9+/]{5}AAAA)[A-Za-z0-9+/\s=]{24}")


@dataclass(frozen=True)
class ImageLimits:
    """How much one image may cost.

    Args:
        max_bytes: largest encoded size (file, download, decoded base64), in bytes.
        max_pixels: largest width × height, in pixels.
        timeout: longest time for a download with all its redirects, in seconds.
        max_redirects: how many redirects a download may follow.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000
    timeout: float = 10.0
    max_redirects: int = 3

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0 or 0 in (self.max_bytes, self.max_pixels, self.timeout):
            raise ConfigError(f"Image limits must be positive, only max_redirects may be 0; got {self}.")


DEFAULT_LIMITS = ImageLimits()


class Options(NamedTuple):
    """What a source function must respect: the arguments of `load_image` beside the source."""

    limits: ImageLimits
    allow_urls: bool
    root: str | os.PathLike[str] | None


class Source(NamedTuple):
    """A row of `SOURCES`."""

    accepts: Callable[[Any], bool]  # cheap, and opens nothing
    load: Callable[[Any, Options], Image.Image]  # in any mode; raises ImageError without naming the source
    describe: Callable[[Any], str]  # names the source in errors: short, and nothing of its content


def load_image(
    source: Any,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    allow_urls: bool = False,
    root: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """Load one picture from wherever it is.

    Args:
        source: a path (`str` or `Path`), an http(s) URL, a data URL, base64 text, encoded bytes, an open
            binary file, a PIL image, a NumPy array (height × width, or height × width × 1, 3 or 4 channels in
            RGB order; uint8, uint16, or floats in 0..1) or a PyTorch tensor (the same, channels first).
            Channels on the other side are found there if only that fits the shape.
        limits: the largest sizes and the longest download that are accepted.
        allow_urls: whether URLs may be fetched. Only public addresses are connected to even then.
        root: a folder outside of which no path is opened, links resolved; relative paths start there.

    Returns:
        A new image in mode RGB, 8 bits per channel: upright as its EXIF says, the first frame of an
        animation, transparency laid on white, 16-bit values scaled to 8 bits.

    Raises:
        ImageError: the source was refused, or is not a readable PNG, JPEG, WEBP, GIF or BMP image.
    """
    kind = next((kind for kind in SOURCES.values() if kind.accepts(source)), None)
    if kind is None:
        raise ImageError(f"Cannot use a {type(source).__name__} as an image. Accepted: {', '.join(SOURCES)}.")
    try:
        return _to_rgb(kind.load(source, Options(limits, allow_urls, root)), limits)
    except ImageError as error:
        # `from None`, here and below: the texts underneath hold memory addresses, of use to an attacker.
        raise ImageError(f"Cannot use {kind.describe(source)} as an image: {error}") from None


def load_images(sources: Any, *, allow_urls: bool = False) -> tuple[Image.Image, ...]:
    """Load no picture for None, several for a list or tuple, and one for whatever else `load_image` takes."""
    if sources is None:
        return ()
    several = sources if isinstance(sources, list | tuple) else (sources,)
    return tuple(load_image(source, allow_urls=allow_urls) for source in several)


def _decode(data: bytes, limits: ImageLimits) -> Image.Image:
    """Encoded bytes → image of which only the header has been read, so that its size can be judged first."""
    if not data:
        raise ImageError("it is empty. If it was read before, go back to its start.")
    try:
        with warnings.catch_warnings():  # of many pixels: the limits say it, in one voice
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError("it has more pixels than PIL.Image.MAX_IMAGE_PIXELS allows. Make it smaller.") from None
    except Exception:  # Pillow's readers raise a dozen unrelated types
        names = ", ".join(FORMATS)
        raise ImageError(f"its content is not {names}, or its header is damaged. Convert it first.") from None


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageError(
            f"it has {width}×{height} pixels, more than {limits.max_pixels:,}. Make it smaller, or raise "
            "ImageLimits.max_pixels."
        )


def _to_rgb(image: Image.Image, limits: ImageLimits) -> Image.Image:
    _check_pixels(*image.size, limits)
    try:
        image.load()
        rgb = _flatten(image)
    except (ImageError, MemoryError):
        raise
    except Exception:  # as above
        raise ImageError("its data ends early or is damaged. Get a complete copy of it.") from None
    orientation = None
    with suppress(Exception):  # broken EXIF is common, raises as many types, and the pixels are fine
        orientation = image.getexif().get(ORIENTATION_TAG)
    rgb.info = {}  # it holds the EXIF, by which the next reader would turn the image once more
    return rgb.transpose(ORIENTATIONS[orientation]) if orientation in ORIENTATIONS else rgb


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode → a new image in mode RGB."""
    if image.mode in ("I", "F"):
        raise ImageError(f"nothing says which value is white in mode {image.mode}. Convert it to 8 bits first.")
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        samples = np.array(image)
        if "transparency" in image.info:
            samples[samples == image.info["transparency"]] = 65535
        return Image.fromarray(_to_8_bit(samples)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(samples: np.ndarray) -> np.ndarray:
    kind = samples.dtype.str[1:]  # without the byte order
    if kind == "u1":
        return samples
    if kind == "u2":
        return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind[0] != "f":
        raise ImageError(f"its values are {samples.dtype}, expected uint8, uint16 or floats in 0..1.")
    low, high = float(samples.min()), float(samples.max())
    if not (low >= 0 and high <= 1):  # also where one is not a number
        raise ImageError(f"its floats are in {low:g}..{high:g}, expected 0..1. Divide them by their range.")
    return np.rint(samples.astype(np.float32) * 255).astype(np.uint8)


def _from_path(source: str | os.PathLike[str], options: Options) -> Image.Image:
    try:
        path = Path(source)
        if options.root is not None:
            root = os.path.realpath(options.root)
            path = Path(os.path.realpath(os.path.join(root, path)))
            if not path.is_relative_to(root):
                raise ImageError("it lies outside of the media root. Only files below that folder are opened.")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a folder; or a pipe or a device, which might never end
            raise ImageError("it is not a regular file. Give the path of one image.")
        check_num_bytes(status.st_size, options.limits.max_bytes)
        with path.open("rb") as file:
            data = read_all(file.read, options.limits.max_bytes)
    except ImageError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise ImageError(f"it cannot be opened ({error.strerror}).") from None
        start = f"the working directory {os.getcwd()}" if options.root is None else "the media root"
        accepted = ", ".join(SOURCES)
        raise ImageError(f"there is no such file, starting from {start}. Accepted: {accepted}.") from None
    except ValueError:
        raise ImageError("a path cannot hold a null character.") from None
    return _decode(data, options.limits)


def _from_url(source: str, options: Options) -> Image.Image:
    check_url(source)
    if not options.allow_urls:
        raise ImageError("URLs are switched off. Pass allow_urls=True, or download it and give the path.")
    limits = options.limits
    return _decode(fetch(source, limits.max_bytes, limits.timeout, limits.max_redirects), limits)


def _from_data_url(source: str, options: Options) -> Image.Image:
    comma = source.find(",")
    if not source[:comma].lower().endswith(";base64"):
        raise ImageError('expected "data:image/png;base64," or the like in front of the data.')
    return _from_base64(source, options, start=comma + 1)


def _from_base64(source: str, options: Options, start: int = 0) -> Image.Image:
    # Measured before anything is copied.
    num_bytes = (len(source) - start) * 3 // 4 - source[-2:].count("=")
    check_num_bytes(num_bytes, options.limits.max_bytes)
    try:
        data = base64.b64decode("".join(source[start:].split()), validate=True)
    except ValueError:
        raise ImageError("its base64 text is damaged or cut short.") from None
    return _decode(data, options.limits)


def _from_bytes(source: bytes | bytearray | memoryview, options: Options) -> Image.Image:
    check_num_bytes(memoryview(source).nbytes, options.limits.max_bytes)
    return _decode(bytes(source), options.limits)


def _from_file(source: Any, options: Options) -> Image.Image:
    try:
        data = read_all(source.read, options.limits.max_bytes)
    except ImageError:
        raise
    except (OSError, ValueError):  # ValueError: it is closed
        raise ImageError("it cannot be read. Is it still open?") from None
    return _decode(data, options.limits)


def _from_array(source: np.ndarray, options: Options, channel_axes: tuple[int, ...] = (-1, 0)) -> Image.Image:
    if source.ndim == 2:
        source, channel_axes = source[..., None], (-1,)
    axes = [axis for axis in channel_axes if source.ndim == 3 and source.shape[axis] in (1, 3, 4)]
    if not axes or 0 in source.shape:
        raise ImageError("expected height × width, or height × width × channels with 1, 3 or 4 channels.")
    samples = _to_8_bit(np.moveaxis(source, axes[0], -1))
    return Image.fromarray(np.ascontiguousarray(samples[..., 0] if samples.shape[-1] == 1 else samples))


def _from_tensor(source: Any, options: Options) -> Image.Image:
    values = source.detach().cpu()
    values = values.float() if values.is_floating_point() else values  # NumPy has no bfloat16
    return _from_array(values.numpy(), options, channel_axes=(0, -1))


def _is_text(source: Any, pattern: re.Pattern[str]) -> bool:
    return isinstance(source, str) and pattern.match(source) is not None


def _is_tensor(source: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported it
    return torch is not None and isinstance(source, torch.Tensor)


def _describe_text(kind: str, text: str) -> str:
    short = text if len(text) <= 80 else f"{text[:30]}…{text[-45:]}"  # a file's name is at the end
    return f"the {kind} {short!r}"


def _describe_url(url: str) -> str:
    """Leaves out what may be secret: user, query and fragment."""
    return _describe_text("URL", re.sub(r"//[^/]*@", "//", re.split(r"[?#]", url)[0]))


def _describe_file(file: Any) -> str:
    name = getattr(file, "name", None)
    return _describe_text("open file", name) if isinstance(name, str) else "the open file"


def _describe_array(array: Any) -> str:
    return f"the array of shape {tuple(array.shape)} and type {array.dtype}"


# Tried from top to bottom: a text is a path only if it is nothing else.
SOURCES = {
    "data URL": Source(
        lambda source: isinstance(source, str) and source[:5].lower() == "data:",
        _from_data_url,
        lambda source: f"the data URL of {len(source):,} characters",
    ),
    "http(s) URL": Source(lambda source: _is_text(source, SCHEME), _from_url, _describe_url),
    "base64 text": Source(
        lambda source: _is_text(source, BASE64_IMAGE),
        _from_base64,
        lambda source: f"the base64 text of {len(source):,} characters",
    ),
    "path": Source(
        lambda source: isinstance(source, (str, os.PathLike)),
        _from_path,
        lambda source: _describe_text("path", os.fspath(source)),
    ),
    "bytes": Source(
        lambda source: isinstance(source, (bytes, bytearray, memoryview)),
        _from_bytes,
        lambda source: f"the {memoryview(source).nbytes:,} bytes given",
    ),
    "PIL image": Source(
        lambda source: isinstance(source, Image.Image),
        lambda source, options: source,
        lambda source: f"the PIL image of {source.width}×{source.height} pixels",
    ),
    "NumPy array": Source(lambda source: isinstance(source, np.ndarray), _from_array, _describe_array),
    "PyTorch tensor": Source(_is_tensor, _from_tensor, _describe_array),
    "open binary file": Source(lambda source: callable(getattr(source, "read", None)), _from_file, _describe_file),
}
