"""Pixels in any mode or number format → 8 bits per channel, RGB, upright."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from PIL import Image

from ..errors import ImageError
from .formats import DAMAGED
from .limits import ImageLimits, check_pixels

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
# Mode → what stands in the way of RGB.
NOT_RGB = {
    "I": "nothing says which value is white in mode I. Convert it to 8 bits first.",
    "F": "nothing says which value is white in mode F. Convert it to 8 bits first.",
    "LAB": "mode LAB needs a colour profile to become RGB. Convert it with PIL.ImageCms first.",
}
# Through what Pillow reaches RGBA from a mode that it does not convert directly.
ON_THE_WAY_TO_RGBA = {"La": "LA"}


def to_rgb(image: Image.Image, limits: ImageLimits) -> Image.Image:
    """An image in any mode as RGB, upright, without metadata; itself where it is all that already.

    Raises:
        ImageError: it is too large or has no pixels, nothing says how its mode becomes RGB, or its data is damaged.
    """
    check_pixels(*image.size, limits.max_pixels)
    try:
        image.load()
        check_pixels(*image.size, limits.max_pixels)  # what is decoded may differ from what the header said
        rgb = _flatten(image)
    except (ImageError, MemoryError):
        raise
    except Exception:  # Pillow's readers raise a dozen unrelated types
        raise ImageError(DAMAGED) from None
    orientation = None
    with suppress(Exception):  # broken EXIF is common, raises as many types, and the pixels are fine
        orientation = image.getexif().get(ORIENTATION_TAG)
    if orientation in ORIENTATIONS:
        rgb = rgb.transpose(ORIENTATIONS[orientation])
    elif rgb is image and (type(image) is not Image.Image or image.info):
        rgb = image.copy()  # a plain image in place of one that belongs to a file
    if rgb is not image:
        rgb.info = {}  # it holds the EXIF, by which the next reader would turn the image once more
    return rgb


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode → RGB."""
    if image.mode in NOT_RGB:
        raise ImageError(NOT_RGB[image.mode])
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        samples = np.array(image)
        if "transparency" in image.info:
            samples[samples == image.info["transparency"]] = 65535
        return Image.fromarray(to_8_bit(samples)).convert("RGB")
    if image.mode in ON_THE_WAY_TO_RGBA:
        image = image.convert(ON_THE_WAY_TO_RGBA[image.mode])
    if image.has_transparency_data and not _has_empty_alpha(image):
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _has_empty_alpha(image: Image.Image) -> bool:
    """Whether it is a BMP whose fourth byte is 0 everywhere: many programs leave it so in opaque pictures."""
    return image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)


def to_8_bit(samples: np.ndarray) -> np.ndarray:
    """Samples of 8 or 16 bits, or floats in 0..1 → uint8 in 0..255.

    Raises:
        ImageError: they are of another type, or out of range.
    """
    kind = samples.dtype.str[1:]  # without the byte order
    if kind == "u1":
        return samples
    if kind == "u2":
        return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if samples.dtype.kind != "f":
        raise ImageError(
            f"its values are {samples.dtype}, expected uint8, uint16 or floats in 0..1. Values in 0..255: "
            "convert them to uint8. A mask: multiply it by 255 first."
        )
    low, high = float(samples.min()), float(samples.max())
    if not (low >= 0 and high <= 1):  # also where one is not a number
        raise ImageError(f"its floats are in {low:g}..{high:g}, expected 0..1. Divide them by their range.")
    return np.rint(samples.astype(np.float32) * 255).astype(np.uint8)
