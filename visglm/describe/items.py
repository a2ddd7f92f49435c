"""Where pictures lie: folders, WebDataset shards and Parquet files, on this machine or at an address of fsspec.

They are listed one by one, so that memory does not grow with their number, and each is told by plain data, so that any
process can read it. A newcomer among the kinds of files is one function and one row of `KINDS`.
"""

from __future__ import annotations

import glob
import os
import re
import stat
import tarfile
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

from ..errors import ConfigError, DataError, MissingDependencyError, printable, require, shorten
from ..training.shards import members

# Those that are refused, too: a row that says why is better than a picture that is not there.
PICTURES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".avif", ".heic", ".heif", ".tif", ".tiff",
)  # fmt: skip
COLUMNS = ("image", "picture", "img", "photo", "jpg", "jpeg", "png", "webp", "bytes", "content")  # the likeliest first
ADDRESS = re.compile(r"[a-z][a-z0-9+.:-]*://", re.IGNORECASE)
# What an address says of a file's version, the likeliest first.
VERSIONS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "modified", "updated", "created")


class Item(NamedTuple):
    """One picture.

    Args:
        name: path or key from the source on; no two of one source share it.
        stamp: size and version of what holds it, so that a change is noticed without reading it.
        path: of the file that holds it.
        kind: how it is read, a key of `READERS`.
        start: of a member in its archive, in bytes; of a row in its table.
        size: of a member, in bytes.
    """

    name: str
    stamp: str
    path: str
    kind: str = "file"
    start: int = 0
    size: int = 0


class Unreadable(Exception):
    """There is no content; the message says why."""


def is_address(source: str) -> bool:
    """Whether fsspec is asked; http and https name single pictures."""
    return ADDRESS.match(source) is not None and not source.lower().startswith(("http://", "https://"))


def is_collection(source: str) -> bool:
    """Whether there are pictures in it, rather than being one."""
    named = source.lower().endswith(tuple(KINDS))
    return is_address(source) or os.path.isdir(source) or named or is_pattern(source)


def is_pattern(source: str) -> bool:
    return glob.has_magic(source) and not os.path.lexists(source)


# --- listing -------------------------------------------------------------------------------------------------------


def find(source: str, leave_out: str = "") -> Iterator[Item]:
    """Every picture of a folder, of a file or of what a pattern names.

    Args:
        leave_out: a folder that is not looked into: that of the results.

    Raises:
        ConfigError: there is no such thing, or nothing in it is a picture.
    """
    found = False
    for name, path, stamp in (remote_files if is_address(source) else local_files)(source, leave_out):
        if path.endswith(os.sep):
            found = True
            yield Item(name, stamp, path, "folder")
            continue
        kind = next((kind for suffix, kind in KINDS.items() if path.lower().endswith(suffix)), None)
        if kind is not None:
            for item in kind(name, path, stamp):
                found = True
                yield item
        elif path.lower().endswith(PICTURES):
            found = True
            yield Item(name, stamp, path)
    if not found:
        raise ConfigError(
            f"there is no picture in {printable(source)}. Looked for: names that end in {', '.join(PICTURES)}, and "
            f"what {' and '.join(KINDS)} files hold (of these, in a column of bytes)."
        )


def local_files(source: str, leave_out: str) -> Iterator[tuple[str, str, str]]:
    """Name, path and stamp of each file."""
    if os.path.isdir(source):
        seen = {os.path.realpath(leave_out)} if leave_out else set()
        links = [(source, "")]
        while links:
            further: list[tuple[str, str]] = []
            for folder, name in sorted(links):
                yield from walk(folder, name, seen, further)
            links = further
        return
    paths = glob.iglob(source, recursive=True) if is_pattern(source) else iter([source])
    start = len(fixed_part(source))
    for path in paths:
        if not os.path.isdir(path):
            if not os.path.lexists(path):
                raise ConfigError(f"there is no {printable(source)}, starting from {os.getcwd()}.")
            yield path[start:].replace(os.sep, "/"), path, local_stamp(path)


def walk(
    folder: str, name: str, seen: set[str], links: list[tuple[str, str]]
) -> Iterator[tuple[str, str, str]]:  # fmt: skip
    """What is in a folder and below. Hidden files are none.

    Args:
        seen: folders that are looked through already, as `os.path.realpath` calls them. Each is once, by its own place
            rather than by a link: those lead in circles, and by thousands of ways to the same pictures.
        links: gets the links to folders that were found, with their names.
    """
    waiting = [(folder, name)]
    while waiting:
        folder, name = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = os.scandir(folder)
        except OSError as error:
            if not name:
                raise ConfigError(
                    f"the folder {printable(folder)} cannot be read ({error.strerror})."
                ) from None  # fmt: skip
            yield name, os.path.join(folder, ""), ""
            continue
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if is_folder(entry):
                    (links if entry.is_symlink() else waiting).append((entry.path, f"{name}{entry.name}/"))
                else:
                    yield name + entry.name, entry.path, local_stamp(entry.path)


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def local_stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:  # a link to nothing
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def fixed_part(source: str) -> str:
    """The folder that every path of a pattern begins with."""
    fixed = re.split(r"[*?\[]", source)[0] if glob.has_magic(source) else source
    return fixed[: fixed.rfind("/") + 1] if "/" in fixed else fixed[: fixed.rfind(os.sep) + 1]


def remote_files(source: str, leave_out: str) -> Iterator[tuple[str, str, str]]:
    system, root = open_address(source)
    without = open_address(leave_out)[1] if is_address(leave_out) else None
    try:
        if glob.has_magic(root):
            start, infos = fixed_part(root), iter(system.glob(root, detail=True).items())
        elif system.isdir(root):
            start, infos = root.rstrip("/") + "/", remote_walk(system, root, without)
        else:
            start, infos = root[: root.rfind("/") + 1], iter([(root, system.info(root))])
        for path, info in infos:
            if info["type"] == "file" and not any(part.startswith(".") for part in path[len(start) :].split("/")):
                version = next((str(info[name]) for name in VERSIONS if info.get(name)), "")
                yield path[len(start) :], system.unstrip_protocol(path), f"{info['size']} {version}"
    except FileNotFoundError:
        raise ConfigError(f"there is no {printable(source)}.") from None
    except Exception as error:  # each kind of store has its own
        raise ConfigError(
            f"{printable(source)} cannot be listed ({type(error).__name__}: {printable(f'{error!s:.200}')}). See that "
            "the address is right, and that this machine may read there."
        ) from None


def remote_walk(system: Any, root: str, without: str | None) -> Iterator[tuple[str, Any]]:
    for folder, _, files in system.walk(root, detail=True):
        if without is None or not f"{folder}/".startswith(f"{without.rstrip('/')}/"):
            for info in files.values():
                yield info["name"], info


def open_address(address: str) -> tuple[Any, str]:
    """fsspec's file system, and the path in it.

    Raises:
        ConfigError, MissingDependencyError: nothing knows this kind of address.
    """
    fsspec = require("describe", "fsspec")
    try:
        return fsspec.url_to_fs(address)
    except ImportError as error:  # names the package that it needs
        raise MissingDependencyError(f"{printable(address)} needs another package: {error}.") from None
    except ValueError as error:
        raise ConfigError(f"{printable(address)} is no address that fsspec knows ({error}).") from None


# --- files that hold pictures ----------------------------------------------------------------------------------------


def in_archive(name: str, path: str, stamp: str) -> Iterator[Item]:
    """The pictures of a WebDataset shard. Where it is damaged, an item that says so is the last."""
    seen: set[str] = set()
    try:
        with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in members(archive):
                if member.name.lower().endswith(PICTURES):
                    # A second one of a name is another picture.
                    key = member.name if member.name not in seen else f"{member.name}@{member.offset}"
                    seen.add(member.name)
                    kind = "member" if member.isreg() and not member.issparse() else "no file"
                    yield Item(f"{name}/{key}", stamp, path, kind, member.offset_data, member.size)
    except Exception as error:  # each kind of file has its own
        yield Item(name, stamp, path, f"damaged ({type(error).__name__}: {printable(f'{error!s:.100}')})")


def in_table(name: str, path: str, stamp: str) -> Iterator[Item]:
    """The rows of a Parquet file. One that cannot be read, or not be told from others, is an item that says so."""
    try:
        with open_file(path) as file:
            table = require("describe", "pyarrow.parquet").ParquetFile(file)
            num_rows = 0 if picture_column(table.schema_arrow, path) is None else table.metadata.num_rows
    except MissingDependencyError:
        raise
    except ConfigError as error:
        yield Item(name, stamp, path, f"unclear: {error}")
        return
    except Exception as error:
        yield Item(name, stamp, path, f"damaged ({type(error).__name__})")
        return
    for row in range(num_rows):
        yield Item(f"{name}/{row}", stamp, path, "row", row)


def picture_column(schema: Any, path: str) -> tuple[str, bool] | None:
    """Which column has the pictures, and whether they are the field `bytes` of it, as `datasets` writes them; None for
    a table of something else.

    Raises:
        ConfigError: it cannot be told which.
    """
    types = require("describe", "pyarrow").types

    def is_binary(kind: Any) -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)

    found = {
        field.name: types.is_struct(field.type)
        for field in schema
        if is_binary(field.type)
        or (types.is_struct(field.type) and any(each.name == "bytes" and is_binary(each.type) for each in field.type))
    }
    likely = [name for each in COLUMNS for name in found if name.lower() == each]
    name = next(iter(likely or found), None)
    if not likely and len(found) > 1:
        raise ConfigError(
            f"{shorten(os.path.basename(path))} must have one column of bytes, or call that of the pictures "
            f"{COLUMNS[0]}; got {', '.join(map(shorten, found))}."
        )
    return None if name is None else (name, found[name])


# --- reading ---------------------------------------------------------------------------------------------------------


def read(item: Item, most: int) -> bytes:
    """The content, of which no more than one byte over `most` is read.

    Raises:
        Unreadable: there is none.
    """
    try:
        if item.kind in READERS:
            return READERS[item.kind](item, most + 1)
    except Unreadable:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise Unreadable(f"{shorten(item.name)} cannot be read ({reason}).") from None
    raise Unreadable(f"{shorten(item.name)} cannot be read: it is {item.kind}.")


def open_file(path: str) -> Any:
    if is_address(path):
        system, inside = open_address(path)
        return system.open(inside, "rb")
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device, which might never end
        raise Unreadable(f"{shorten(path)} is not a regular file.")
    return open(path, "rb")


def read_folder(item: Item, most: int) -> bytes:
    """Why a folder could not be looked into."""
    os.scandir(item.path).close()
    raise Unreadable(f"{shorten(item.name)} could not be read a moment ago. Start again.")


def read_file(item: Item, most: int) -> bytes:
    with open_file(item.path) as file:
        return file.read(most)


def read_member(item: Item, most: int) -> bytes:
    with open_file(item.path) as file:
        file.seek(item.start)
        content = file.read(min(item.size, most))
    if len(content) < min(item.size, most):
        raise DataError("cut short")
    return content


def read_row(item: Item, most: int) -> bytes:
    with GROUPS:
        starts = group_starts(item.path, item.stamp)
        number = bisect_right(starts, item.start) - 1
        content = row_group(item.path, item.stamp, number)[item.start - starts[number]].as_py()
    content = content.get("bytes") if isinstance(content, dict) else content
    if content is None:
        raise Unreadable(f"{shorten(item.name)} holds no picture: its bytes are null.")
    return content[:most]


@lru_cache(maxsize=8)
def group_starts(path: str, stamp: str) -> tuple[int, ...]:
    """The first row of each group of rows, and how many there are."""
    with open_file(path) as file:
        metadata = require("describe", "pyarrow.parquet").ParquetFile(file).metadata
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return tuple(accumulate(sizes, initial=0))


@lru_cache(maxsize=1)  # rows are asked for in order, and a group may be large
def row_group(path: str, stamp: str, number: int) -> Any:
    """The pictures of a group of rows."""
    with open_file(path) as file:
        table = require("describe", "pyarrow.parquet").ParquetFile(file)
        name, is_struct = picture_column(table.schema_arrow, path) or ("", False)
        return table.read_row_group(number, columns=[f"{name}.bytes" if is_struct else name]).column(name)


# End of a file's name → what lists the pictures in it.
KINDS: dict[str, Callable[[str, str, str], Iterator[Item]]] = {".tar": in_archive, ".parquet": in_table}
GROUPS = threading.Lock()  # one group is read at a time, and once
READERS: dict[str, Callable[[Item, int], bytes]] = {
    "file": read_file, "member": read_member, "row": read_row, "folder": read_folder,
}  # fmt: skip
