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
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import FetchError, ImageError
from .fetch import CHUNK_SIZE, check_url, fetch
from .formats import decode
from .limits import DEFAULT_LIMITS, ImageLimits, check_num_bytes, check_pixels
from .pixels import to_8_bit, to_rgb

# An address, whether or not there is a file of that name: what is typed decides, and not what lies on the disk. No
# scheme has one letter, but a drive has, and a folder may be called `a:`.
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
# How PNG, JPEG, GIF, WEBP, BMP, and AVIF or HEIC begin in base64. A path may begin with /9j/ too, but not go on like
# that.
BASE64_IMAGE = re.compile(
    r"(iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk[0-3][A-Za-z0-9+/]{5}AAAA|AAAA[A-Za-z]GZ0eX)[A-Za-z0-9+/\s=]{24}"
)


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
        ImageError: the source was refused, or is not a readable image in one of `visglm.pictures.FORMATS`.
    """
    image = _load(source, Options(limits, allow_urls, root))
    return image.copy() if image is source else image


def load_images(
    sources: Any, *, limits: ImageLimits = DEFAULT_LIMITS, allow_urls: bool = False, is_read_only: bool = False
) -> tuple[Image.Image, ...]:
    """Load no picture for None, several for a list or tuple, and one for whatever else `load_image` takes.

    Args:
        is_read_only: the pictures are looked at and not kept, so that one that is RGB and upright needs no copy.
    """
    if sources is None:
        return ()
    several = sources if isinstance(sources, list | tuple) else (sources,)
    options = Options(limits, allow_urls, None)
    images = (_load(source, options) for source in several)
    if is_read_only:
        return tuple(images)
    return tuple(image.copy() if image is source else image for source, image in zip(several, images, strict=True))


def refused(source: Any, reason: object) -> ImageError:
    """The error that tells by the name of its source why a picture cannot be used."""
    kind = next((kind for kind in SOURCES.values() if kind.accepts(source)), None)
    name = f"a {type(source).__name__}" if kind is None else kind.describe(source)
    return ImageError(f"Cannot use {name} as an image: {reason}")


def _load(source: Any, options: Options) -> Image.Image:
    """As `load_image`, but a PIL image that is as it should be comes back itself."""
    kind = next((kind for kind in SOURCES.values() if kind.accepts(source)), None)
    if kind is None:
        raise ImageError(f"Cannot use a {type(source).__name__} as an image. Accepted: {', '.join(SOURCES)}.")
    try:
        return to_rgb(kind.load(source, options), options.limits)
    except ImageError as error:
        # `from None`, here and below: the texts underneath hold memory addresses, of use to an attacker.
        raise refused(source, error) from None


def _from_path(source: str | os.PathLike[str], options: Options) -> Image.Image:
    try:
        path = Path(os.fsdecode(source))
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
    return decode(data, options.limits)


def _from_url(source: str, options: Options) -> Image.Image:
    limits = options.limits
    try:
        check_url(source)
        if not options.allow_urls:
            raise ImageError("URLs are switched off. Pass allow_urls=True, or download it and give the path.")
        data = fetch(source, limits.max_bytes, limits.timeout, limits.max_redirects)
    except FetchError as error:
        raise ImageError(str(error)) from None
    return decode(data, limits)


def read_all(read: Callable[[int], bytes], max_bytes: int) -> bytes:
    """Read to the end, never holding more than the limit and one chunk; raise ImageError beyond it."""
    chunks: list[bytes] = []
    num_bytes = 0
    while chunk := read(CHUNK_SIZE):
        if not isinstance(chunk, bytes):
            raise ImageError('it yields text, not bytes. Open it with mode "rb".')
        num_bytes += len(chunk)
        check_num_bytes(num_bytes, max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


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
    return decode(data, options.limits)


def _from_bytes(source: bytes | bytearray | memoryview, options: Options) -> Image.Image:
    check_num_bytes(memoryview(source).nbytes, options.limits.max_bytes)
    return decode(bytes(source), options.limits)


def _from_file(source: Any, options: Options) -> Image.Image:
    try:
        data = read_all(source.read, options.limits.max_bytes)
    except ImageError:
        raise
    except Exception:  # it is closed, or an archive is damaged: each kind of file has its own errors
        raise ImageError("it cannot be read. Is it still open?") from None
    return decode(data, options.limits)


def _from_array(source: np.ndarray, options: Options, channel_axes: tuple[int, ...] = (-1, 0)) -> Image.Image:
    source = np.asarray(source)  # of a subclass, the values alone
    axis = _find_channels(source.shape, channel_axes, options.limits)
    if axis is not None:
        source = np.moveaxis(source, axis, -1)
        source = source[..., 0] if source.shape[-1] == 1 else source
    return Image.fromarray(np.ascontiguousarray(to_8_bit(source)))


def _from_tensor(source: Any, options: Options) -> Image.Image:
    channel_axes = (0, -1)
    _find_channels(tuple(source.shape), channel_axes, options.limits)
    try:
        values = source.detach().cpu()
        values = values.float() if values.is_floating_point() else values  # NumPy has no bfloat16
        array = values.numpy()
    except (RuntimeError, TypeError, NotImplementedError):  # sparse, quantized, or without values
        raise ImageError("its values cannot be read one by one. Give a dense tensor of them.") from None
    return _from_array(array, options, channel_axes)


def _find_channels(shape: tuple[int, ...], channel_axes: tuple[int, ...], limits: ImageLimits) -> int | None:
    """Which axis holds the channels, None where there is no such axis; before anything is computed."""
    axes = [axis for axis in channel_axes if len(shape) == 3 and shape[axis] in (1, 3, 4)]
    if 0 in shape or (len(shape) != 2 and not axes):
        raise ImageError("expected height × width, or height × width × channels with 1, 3 or 4 channels.")
    height, width = shape if not axes else shape[1:] if axes[0] == 0 else shape[:2]
    check_pixels(width, height, limits.max_pixels)
    return axes[0] if axes else None


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
        lambda source: _describe_text("path", os.fsdecode(source)),
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
