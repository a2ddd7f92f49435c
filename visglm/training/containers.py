"""Where rows are kept: files read row by row, wherever the row lies, so that memory does not grow with the file.

`open_rows` finds the kind by content. A newcomer is one function and one row of `CONTAINERS`.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError, shorten
from .folder import Folder
from .lists import open_json_list
from .rows import LINE_BLOCK, ObjectRows, Rows, as_row, open_json_lines, undecoded
from .shards import find_shards, open_shards
from .tables import open_table

__all__ = ["CONTAINERS", "LINE_BLOCK", "ObjectRows", "Rows", "as_row", "is_stream", "open_rows", "undecoded"]

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".et", ".numbers")  # as their programs save them


def open_rows(source: Any, allow_outside: bool = False) -> Rows:
    """The rows of a file, a folder, a pattern of shards, a list or a `datasets.Dataset`.

    Args:
        source: what holds them.
        allow_outside: whether rows of a file may name pictures outside of its folder. Paths in rows that are Python
            objects are the caller's own, and may always lead anywhere.

    Raises:
        DataError: there is nothing of the kind, or it is empty.
    """
    name = shorten(f"{source!s:.5000}") if isinstance(source, str | Path) else f"a {type(source).__name__}"
    try:
        if _head(source).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{name} is UTF-16. Save it as UTF-8.")
        kind = next((kind for kind in CONTAINERS.values() if kind.accepts(source)), None)
        if kind is None:
            if _has_suffix(source, *SPREADSHEETS):
                raise DataError(f"{name} is a spreadsheet. Save it as CSV in UTF-8 beside the pictures, and name that.")
            exists = not isinstance(source, str | Path) or os.path.exists(source)
            problem = "is none of these" if exists else "does not exist"
            raise DataError(f"{name} {problem}. Expected {'; '.join(CONTAINERS)}.")
        rows = kind.open(source, allow_outside)
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror or error}).") from error
    if not len(rows):
        raise DataError(f"{name} holds no rows.")
    return rows


def is_stream(source: Any) -> bool:
    """Whether rows come one after the other only, as from `datasets` with streaming."""
    return not isinstance(source, str | Path) and hasattr(source, "__iter__") and not hasattr(source, "__len__")


def _metadata(source: Any) -> Path | None:
    if not isinstance(source, str | Path) or not os.path.isdir(source):
        return None
    return next((path for name in METADATA_NAMES if (path := Path(source) / name).is_file()), None)


def _open_imagefolder(source: Any, allow_outside: bool) -> Rows:
    return open_rows(_metadata(source), allow_outside)


def _head(source: Any) -> bytes:
    """The first bytes of a file; none of what is no file."""
    if not isinstance(source, str | Path) or not os.path.isfile(source):
        return b""
    with Path(source).open("rb") as file:
        return file.read(4096)


def _starts_with(source: Any, first: bytes) -> bool:
    return _head(source).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == first


def _has_suffix(source: Any, *suffixes: str) -> bool:
    return isinstance(source, str | Path) and Path(source).suffix.lower() in suffixes and os.path.isfile(source)


def _in_file(open_file: Callable[[Path, Folder], Rows]) -> Callable[[Any, bool], Rows]:
    def open_path(source: Any, allow_outside: bool) -> Rows:
        path = Path(source)
        return open_file(path, Folder(path.parent, not allow_outside))

    return open_path


class Container(NamedTuple):
    """A row of `CONTAINERS`."""

    accepts: Callable[[Any], bool]
    open: Callable[[Any, bool], Rows]  # the source, and whether its rows may name pictures outside of its folder


# What error messages call it → how it is recognised and read. Tried from top to bottom.
CONTAINERS: Mapping[str, Container] = {
    "a folder with metadata.jsonl or metadata.csv": Container(
        lambda source: _metadata(source) is not None, _open_imagefolder
    ),
    "WebDataset shards (a .tar file, a folder of them, or a pattern)": Container(
        lambda source: bool(find_shards(source)), open_shards
    ),
    "a JSONL file": Container(
        lambda source: _has_suffix(source, ".jsonl", ".ndjson") or _starts_with(source, b"{"), _in_file(open_json_lines)
    ),
    "a JSON file holding a list": Container(lambda source: _starts_with(source, b"["), _in_file(open_json_list)),
    "a CSV or TSV file": Container(lambda source: _has_suffix(source, ".csv", ".tsv", ".txt"), _in_file(open_table)),
    "a list of rows or a datasets.Dataset": Container(
        lambda source: (
            not isinstance(source, str | Path | bytes | bytearray | Mapping)
            and hasattr(source, "__len__")
            and hasattr(source, "__getitem__")
        ),
        lambda source, allow_outside: ObjectRows(source),
    ),
}
