"""API keys: who may ask, and by whom something was left in memory."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import ConfigError, printable

VARIABLE = "VISGLM_API_KEYS"
SHORTEST = 16  # characters: what is shorter can be guessed
LARGEST_FILE = 2**20


class Keys:
    """API keys; without any, everybody may ask.

    Kept as digests under a salt of this process, so that comparing two takes as long wherever they differ, and nothing
    that is printed or dumped shows one.
    """

    def __init__(self, keys: Iterable[str] = ()):
        self._salt = secrets.token_bytes(32)
        self._digests = [self._digest(check_key(key)) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, key: str | None) -> str | None:
        """Who has this key, as a name for what is remembered; None where nobody has. Without keys all are one owner."""
        if not self._digests:
            return ""
        asked = self._digest(key or "")
        matches = [hmac.compare_digest(asked, own) for own in self._digests]  # all of them, whichever fits
        return asked.hex()[:32] if any(matches) else None

    def _digest(self, key: str) -> bytes:
        return hmac.digest(self._salt, key.encode("utf-8", "surrogateescape"), hashlib.sha256)


def check_key(key: str) -> str:
    if not re.fullmatch(rf"[!-~]{{{SHORTEST},512}}", key):
        raise ConfigError(
            f"an API key has {SHORTEST} to 512 printable ASCII characters and no spaces; one of {len(key)} characters "
            "does not. Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return key


def read_keys(given: Iterable[str], file: str | None, environment: Mapping[str, str]) -> Keys:
    """Keys from the command line, a file with one a line, and the environment, where commas or spaces are between.

    Raises:
        ConfigError: the file cannot be read, or a key is too short.
    """
    keys = [*given, *re.split(r"[,\s]+", environment.get(VARIABLE, "").strip())]
    if file is not None:
        keys += keys_in(file)
    return Keys(key for key in keys if key)


def keys_in(file: str) -> list[str]:
    """The keys in a file, one a line; `#` begins a remark.

    Raises:
        ConfigError: it cannot be read, or there is none in it.
    """
    try:
        with Path(file).open("rb") as opened:
            text = opened.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"the file of API keys {printable(file)} cannot be read ({error.strerror}).") from None
    if len(text) > LARGEST_FILE:
        raise ConfigError(f"the file of API keys {printable(file)} has over {LARGEST_FILE:,} bytes.")
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ConfigError(f"there is no API key in {printable(file)}. Put one on each line.")
    return found
