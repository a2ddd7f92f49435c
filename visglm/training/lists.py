"""A JSON list: where its rows begin and end, found in one pass that holds none of them."""

from __future__ import annotations

import mmap
import re
from array import array
from pathlib import Path
from typing import Any

from ..errors import DataError, printable
from .folder import Folder
from .rows import FileRows

# What says where rows of the list end, and what matters within one of them.
BETWEEN, WITHIN = re.compile(rb'["\[\]{},]'), re.compile(rb'["\[\]{}]')
NO_SPACE = re.compile(rb"[^ \t\r\n]")
MAX_OPEN = 100_000  # brackets at once: more are no data, and each takes memory


def open_json_list(path: Path, folder: Folder) -> FileRows:
    """The rows of a file that holds one list. Each is read by itself later, and may be broken by itself.

    Raises:
        DataError: the list does not end, or is not the last thing in the file.
    """
    starts, ends = array("q"), array("q")
    rows = FileRows(path, starts, ends, folder)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position = data.find(b"[") + 1
        start, closing = position, [b"]"]
        while closing:
            token = (BETWEEN if len(closing) == 1 else WITHIN).search(data, position)
            if token is None:
                raise unfinished(rows, skip_space(data, start), "a bracket is never closed")
            mark, position = token[0], token.end()
            if mark == b'"':
                position = end_of_string(data, position)
                if position < 0:
                    raise unfinished(rows, skip_space(data, start), "a string is never closed")
            elif mark in b"[{":
                closing.append(b"]" if mark == b"[" else b"}")
                if len(closing) > MAX_OPEN:
                    raise unfinished(rows, skip_space(data, start), f"{MAX_OPEN} brackets are open at once")
            elif mark == b",":
                add(rows, data, start, token.start())
                start = position
            elif mark == closing.pop():
                if not closing and skip_space(data, start) < token.start():  # a comma behind the last row is forgiven
                    add(rows, data, start, token.start())
            else:
                raise unfinished(rows, skip_space(data, start), "its brackets do not match")
        rest = skip_space(data, position)
        if rest < len(data):
            line = rows.line_at(rest)
            raise DataError(f"{printable(str(path))}: something follows the list in line {line}. Expected one list.")
    return rows


def add(rows: FileRows, data: Any, start: int, end: int) -> None:
    start = skip_space(data, start)
    rows.starts.append(min(start, end))
    rows.ends.append(end)


def skip_space(data: Any, position: int) -> int:
    found = NO_SPACE.search(data, position)
    return found.start() if found else len(data)


def end_of_string(data: Any, position: int) -> int:
    """The place behind the quote that ends a string begun before `position`; -1 if none does."""
    while (quote := data.find(b'"', position)) >= 0:
        first = quote
        while first > position and data[first - 1] == 0x5C:
            first -= 1
        if (quote - first) % 2 == 0:  # every backslash is one pair's half
            return quote + 1
        position = quote + 1
    return -1


def unfinished(rows: FileRows, position: int, what: str) -> DataError:
    path, line = printable(str(rows.path)), rows.line_at(position)
    return DataError(f"{path} is cut short or broken: in the row that begins in line {line}, {what}. Mend that row.")
