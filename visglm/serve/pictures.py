"""What a request calls a picture: a data URL, or an address of a host that was allowed. Nothing else is opened."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from PIL import Image

from ..errors import FetchError, ImageError
from ..pictures import ImageLimits, load_image
from ..pictures.fetch import check_url, fetch

SCHEMES = ("data:", "http://", "https://")
EXPECTED = "Expected data:image/png;base64,… or the like"


def check_source(source: str, hosts: Collection[str]) -> None:
    """Refuse what will not be opened, before anything is.

    Raises:
        ImageError: it is no data URL, and no address that may be fetched.
    """
    if is_data(source):
        return
    if not source.lower().startswith(SCHEMES):
        raise ImageError(f"A picture is neither a data URL nor an http(s) address. {EXPECTED}.")
    if not hosts:
        raise ImageError(f"Pictures are not fetched from addresses here. {EXPECTED}.")
    try:
        host = check_url(source).hostname
    except FetchError as error:
        raise ImageError(str(error)) from None
    if host not in hosts:
        raise ImageError(f"Pictures are fetched from hosts that were allowed only, and this is none. {EXPECTED}.")


def is_data(source: str) -> bool:
    return source[:5].lower() == "data:"


def download(source: str, hosts: Collection[str], limits: ImageLimits) -> bytes:
    """What is behind an address.

    Raises:
        ImageError: it was refused or failed.
    """
    try:
        return fetch(source, limits.max_bytes, limits.timeout, limits.max_redirects, hosts)
    except FetchError as error:
        raise ImageError(f"A picture could not be fetched: {error}") from None


def decode(found: str | bytes, limits: ImageLimits, max_body: int) -> Image.Image:
    """RGB.

    Raises:
        ImageError: it is too large, damaged or no picture.
    """
    return load_image(found, limits=replace(limits, max_bytes=min(limits.max_bytes, max_body)))
