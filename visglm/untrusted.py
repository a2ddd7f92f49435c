"""Other people's files: read within bounds, and libraries over them run no code and have errors with a name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import CheckpointError, VisGLMError

NEXT_STEP = "Nothing was loaded. Download the folder again, whole."
BLOCK = 2**20  # bytes that are read at a time
MAX_TEXT_BYTES = 2**26  # of settings, indices and vocabularies; the largest are some 20 million
# What transformers reads beside `tokenizer_config.json` where it makes a tokenizer of its own.
TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "*.jinja", "*/*.jinja")


class DamagedFile(Exception):
    """A file is not what its name says; the message is one line for a `CheckpointError`."""


def hash_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, however large it is."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_file(path: Path) -> None:
    """Whether a file is one, and no larger than such files are, before somebody else's code reads it whole.

    Raises:
        DamagedFile: it is missing or too large.
    """
    if not path.is_file():  # a device or a pipe would be read for ever
        raise DamagedFile(f"file {path.name}: missing")
    if (size := path.stat().st_size) > MAX_TEXT_BYTES:
        raise DamagedFile(f"file {path.name}: {size:,} bytes, expected at most {MAX_TEXT_BYTES:,}")


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        DamagedFile: it is missing, too large, or no UTF-8.
    """
    try:
        check_file(path)
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise DamagedFile(f"file {path.name}: no text ({str(error)[:200]})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DamagedFile: it is none.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"file {path.name}: no JSON ({str(error)[:200]})") from error
    if not isinstance(content, dict):
        raise DamagedFile(f"file {path.name}: no JSON object")
    return content


@contextmanager
def told(where: object, what: str, next_step: str = NEXT_STEP) -> Iterator[None]:
    """Turn whatever a library raises over a file into a `CheckpointError` that names it.

    Libraries meet a damaged file with any error there is, tokenizers' Rust with one that is no `Exception` even.

    Args:
        where: the folder. what: the file or the part that is being read.
    """
    try:
        yield
    except (VisGLMError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except DamagedFile as error:
        raise CheckpointError(where, [str(error)], next_step) from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        reason = f"{type(error).__name__}: {line[:200]}" if line else type(error).__name__
        raise CheckpointError(where, [f"{what} cannot be used ({reason})"], next_step) from error


def from_pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    """`kind.from_pretrained` over a folder, without the code that may lie in it, and without network.

    Left alone, transformers asks on the terminal whether to run the code, and takes a `y` from a pipe.

    Raises:
        CheckpointError: it cannot be read.
    """
    with told(folder, kind.__name__):
        for path in (path for name in TOKENIZER_FILES for path in folder.glob(name) if path.is_file()):
            check_file(path)
        return kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **options)
