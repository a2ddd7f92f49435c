"""How much one picture may cost, and the words in which the limits refuse one."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..errors import ConfigError, ImageError


@dataclass(frozen=True)
class ImageLimits:
    """How much one image may cost.

    Args:
        max_bytes: largest encoded size (file, download, decoded base64), in bytes.
        max_pixels: largest width × height, in pixels. A JPEG of up to four times as many is read at half its width
            and height, which takes no more memory.
        timeout: longest time for a download with all its redirects, in seconds.
        max_redirects: how many redirects a download may follow.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000
    timeout: float = 10.0
    max_redirects: int = 3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0 or (value == 0 and name != "max_redirects"):
                least = "0 or more" if name == "max_redirects" else "positive"
                raise ConfigError(f"{name} must be {least}, a limit of pictures; got {value}.")


DEFAULT_LIMITS = ImageLimits()


def check_num_bytes(num_bytes: int, max_bytes: int) -> None:
    """Raise ImageError for more bytes than allowed."""
    if num_bytes > max_bytes:
        raise ImageError(
            f"it is over {max_bytes:,} bytes. Save it smaller, or allow more in Python: ImageLimits(max_bytes=…)."
        )


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise ImageError for more pixels than allowed, or for none."""
    if width < 1 or height < 1:
        raise ImageError(f"it has {width}×{height} pixels, that is none. Expected at least 1×1.")
    if width * height > max_pixels:
        raise ImageError(
            f"it has {width}×{height} pixels, more than {max_pixels:,}. Make it smaller, or allow more: --max-pixels "
            "on the command line, ImageLimits(max_pixels=…) in Python."
        )
