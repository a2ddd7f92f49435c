"""WebDataset: tar files whose members are samples, read where they lie. Nothing is ever unpacked onto the disk."""

from __future__ import annotations

import glob
import os
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, printable, shorten
from .folder import Folder
from .rows import check_num_bytes, decode, parse_json

TEXTS = ("txt", "text", "caption")  # extensions of members that hold a caption


class ShardRows:
    """Samples of shards: members in a row whose names agree up to the first dot."""

    def __init__(self, paths: Sequence[Path], folder: Folder):
        self.paths, self.folder = paths, folder
        self.shards, self.starts, self.ends = array("i"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {}
        seen = set()
        with self.paths[self.shards[index]].open("rb") as file:
            file.seek(self.starts[index])
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in members(archive, self.ends[index]):
                    extension = split_key(member.name)[1]
                    if extension in seen:
                        raise DataError(f"the sample holds {extension} twice. Give every sample a name of its own.")
                    seen.add(extension)
                    content = read_member(archive, member)
                    row |= self.values(extension, content, member.name)
        return row

    @staticmethod
    def values(extension: str, content: bytes, name: str) -> dict[str, Any]:
        """What one member adds to the row."""
        try:
            if extension == "json":
                value = parse_json(content)
                if not isinstance(value, dict):
                    raise DataError(f"it holds a {type(value).__name__}. Expected an object with keys.")
                return value
            return {extension: decode(content) if extension in TEXTS else content}
        except DataError as error:
            raise DataError(f"{shorten(name)}: {error}") from None

    def where(self, index: int) -> str:
        path = self.paths[self.shards[index]]
        with path.open("rb") as file:
            file.seek(self.starts[index])
            with tarfile.open(fileobj=file, mode="r:") as archive:
                key = next((split_key(member.name)[0] for member in members(archive, self.ends[index])), "")
        return f"{printable(str(path))}:{shorten(key)}"


def members(archive: tarfile.TarFile, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """The members of an archive that can be part of samples, up to the byte `end`.

    Raises:
        tarfile.ReadError: the archive is cut short, or a member claims a size that no member has.
    """
    last = -1
    while True:
        try:
            member = archive.next()
        except tarfile.TarError:
            raise
        except (ValueError, OverflowError, RecursionError, MemoryError) as error:  # of headers that lie
            raise tarfile.ReadError(f"a broken header, {type(error).__name__}") from None
        if member is None or (end is not None and member.offset >= end):
            return
        if member.size < 0 or member.offset <= last or archive.offset <= member.offset:
            raise tarfile.ReadError("a member of negative size")
        archive.members = []  # type: ignore[attr-defined] # it would keep every member it has seen
        last = member.offset
        is_hidden = member.name.rpartition("/")[2].startswith(".")  # what macOS puts beside every file, and its kind
        if not member.isdir() and not is_hidden:
            yield member


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The content of a member.

    Raises:
        DataError: it is a link, a device or sparse, or too large.
    """
    kind = (
        "a link (tar --hard-dereference -h packs files in its place)"
        if member.issym() or member.islnk()
        else "a device or pipe"
        if not member.isreg()
        else "a sparse file (tar without --sparse packs it whole)"
        if member.issparse()
        else None
    )
    if kind is not None:
        raise DataError(f"{shorten(member.name)} is {kind}. Expected a plain file.")
    try:
        check_num_bytes(member.size)
        file = archive.extractfile(member)
        return file.read() if file is not None else b""
    except (DataError, tarfile.TarError) as error:
        raise DataError(f"{shorten(member.name)}: {error}") from None


def split_key(name: str) -> tuple[str, str]:
    """Key and extension of a member: everything up to the first dot of its file name, and the rest."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def find_shards(source: Any) -> list[Path]:
    """The tar files that a path, a folder or a pattern names, in order. A name that exists is no pattern."""
    if not isinstance(source, str | Path):
        return []
    text = os.fspath(source)
    if os.path.isdir(text):
        return sorted(Path(text).glob("*.tar"))
    if os.path.isfile(text):
        return [Path(text)] if text.endswith(".tar") else []
    folder, name = os.path.split(text)
    pattern = os.path.join(glob.escape(folder) if os.path.isdir(folder) else folder, name)
    try:
        return sorted(Path(path) for path in glob.glob(pattern) if path.endswith(".tar"))
    except (OSError, ValueError):  # a null character
        return []


def open_shards(source: str | Path, allow_outside: bool) -> ShardRows:
    """The samples of all shards.

    Raises:
        DataError: a file is no tar file, is cut short, or lies about the sizes of its members.
    """
    paths = find_shards(source)
    rows = ShardRows(paths, Folder(paths[0].parent, not allow_outside))
    for number, path in enumerate(paths):
        try:
            with tarfile.open(path, "r:") as archive:
                key = None
                for member in members(archive):
                    if split_key(member.name)[0] != key:
                        key = split_key(member.name)[0]
                        rows.shards.append(number)
                        rows.starts.append(member.offset)
                        rows.ends.append(0)
                    rows.ends[-1] = archive.offset
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            what = printable(f"{error!s:.200}")
            raise DataError(f"{printable(str(path))} is no tar file, or is cut short ({what}).") from None
    return rows
