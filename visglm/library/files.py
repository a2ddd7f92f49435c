"""Files of a folder: which are read, whether one has changed, and its bytes, within bounds."""

from __future__ import annotations

import hashlib
import os
import stat as modes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DocumentError
from .changes import Changes
from .pieces import LibraryLimits, check_size
from .readers import reader_of

SUFFIX = ".library"
Told = Callable[[int, int], object]  # how many files are done, and of how many


@dataclass(frozen=True)
class File:
    """A file, opened.

    Args:
        stamp: by which it is seen, without opening it, that it has not changed.
        digest: of its content. modified: in seconds of the epoch.
    """

    data: bytes
    digest: str
    stamp: str
    modified: float


def look_at(path: Path) -> os.stat_result:
    """Its size and times.

    Raises:
        DocumentError: it is no file, or cannot be reached.
    """
    try:
        str(path).encode()
        status = path.stat()
    except ValueError:  # half a character, or a null
        raise DocumentError("its name is no text.") from None
    except OSError as error:
        raise DocumentError(f"it cannot be opened ({error.strerror}).") from None
    if not modes.S_ISREG(status.st_mode):
        raise DocumentError("it is not a regular file.")
    return status


def stamp_of(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def open_file(path: Path, limits: LibraryLimits) -> File:
    """All of a file.

    Raises:
        DocumentError: it cannot be opened, or is larger than allowed.
    """
    status = look_at(path)
    check_size(status.st_size, limits.max_bytes, "bytes")
    try:
        with path.open("rb") as file:
            data = file.read(limits.max_bytes + 1)
    except OSError as error:
        raise DocumentError(f"it cannot be opened ({error.strerror}).") from None
    check_size(len(data), limits.max_bytes, "bytes")
    return File(data, hashlib.sha256(data).hexdigest(), stamp_of(status), status.st_mtime)


def readable(folder: Path, changes: Changes) -> list[Path]:
    """Files in a folder and those below that somebody reads; hidden ones, libraries and links to folders are left
    out."""
    found: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(SUFFIX))
        for name in sorted(names):
            if name.startswith("."):
                continue
            if reader_of(name) is None:
                changes.ignored += 1
            else:
                found.append(Path(where, name))
    return found


def shown(files: list[Path], progress: bool | Told) -> Iterator[Path]:
    """The files, with a bar or another reader of how far it is where one is wanted."""
    from tqdm import tqdm

    if callable(progress):
        for number, file in enumerate(files):
            progress(number, len(files))
            yield file
        progress(len(files), len(files))
    else:
        yield from tqdm(files, unit="file", disable=not progress)
