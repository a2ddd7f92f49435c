"""Other people's libraries over other people's files: no code of theirs runs, and their errors get a name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import CheckpointError, VisGLMError

NEXT_STEP = "Nothing was loaded. Download the folder again, whole."


class DamagedFile(Exception):
    """A file is not what its name says; the message is one line for a `CheckpointError`."""


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
        return kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **options)
