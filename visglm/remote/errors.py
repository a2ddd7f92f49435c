"""What goes wrong with a server, as the library's own errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import ContextLengthError, ImageError, ServerError, printable

# Code of an error → what it is; others are by their status.
CODES: Mapping[str, type[Exception]] = {"context_length_exceeded": ContextLengthError, "invalid_image": ImageError}
# Status → reason, and what to do.
REASONS: Mapping[int, tuple[str, str]] = {
    401: ("key", "Give the right key: --api-key-file on the command line, api_key=… in Python, or VISGLM_API_KEY."),
    403: ("key", "This key may not do that."),
    404: ("missing", "It lists what it has at /v1/models. Is the address that of `visglm serve`?"),
    421: ("missing", "Start the server with --allowed-host for the name by which you call it."),
    429: ("full", "It has as many requests waiting as it takes. Ask again in a moment."),
    503: ("ending", "It ends, or is busy with something long. Ask again later, or ask another server."),
}


def unreachable(url: str, error: Any) -> ServerError:
    what = error if isinstance(error, str) else type(error).__name__
    return ServerError(
        f"{url} does not answer ({what}). Is `visglm serve` running there, and is the address right?", "unreachable"
    )


def no_server(url: str) -> ServerError:
    return ServerError(f"{url} answers, but not as `visglm serve` does. Is the address right?", "missing")


def error_of(url: str, status: int, body: bytes, retry_after: str = "") -> Exception:
    """What a server says went wrong, as the library's own error where it has one."""
    try:
        told = json.loads(body)["error"]
        message, code = printable(str(told["message"])[:500]), str(told.get("code"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        message, code = "", ""
    if code in CODES:
        return CODES[code](message)
    if code == "shutting_down":
        status = 503
    reason, advice = REASONS.get(status, ("refused" if 400 <= status < 500 else "failed", ""))
    wait = float(retry_after) if retry_after.isdecimal() else None
    said = " ".join(filter(None, (message or f"It says {status}.", advice)))
    return ServerError(f"{url} does not answer. {said}", reason, wait)
