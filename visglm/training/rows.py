"""What all containers of rows share: rows that are stretches of a file, and how their text is read."""

from __future__ import annotations

import codecs
import json
import re
import sys
from array import array
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ..errors import DataError, VisGLMError, printable
from .folder import HERE, Folder

LINE_BLOCK = 1 << 16  # bytes of a file whose lines are counted together
MAX_ROW_BYTES = 1 << 27  # of one row: more is no row but a file that lacks its line ends
# How a file begins whose first object goes on in the next line.
OPENED = re.compile(rb'\{\s*\n\s*"|\{\s*"[^"\n]*"\s*:\s*[\[{]\s*\n')
MAX_NESTING = 64  # brackets within brackets; conversations need a handful


class Rows(Protocol):
    """A sequence of rows that are read when they are asked for; cheap to send to another process."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """The row, unchecked. Raises DataError where it cannot be parsed."""

    def where(self, index: int) -> str:
        """File and line of a row, for people."""

    @property
    def folder(self) -> Folder:
        """What relative paths in the rows start from."""


class FileRows:
    """Rows that are stretches of one file, `starts[i]` to `ends[i]` in bytes."""

    def __init__(self, path: Path, starts: array, ends: array, folder: Folder):
        self.path, self.starts, self.ends, self.folder = path, starts, ends, folder

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, index: int) -> bytes:
        num_bytes = self.ends[index] - self.starts[index]
        check_num_bytes(num_bytes)
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            return file.read(num_bytes)

    @cached_property
    def lines_before(self) -> array:
        """Lines that end before each block of the file: a number per row would cost memory, none would cost time."""
        counts, last = array("q", [0]), b""
        with self.path.open("rb") as file:
            while block := file.read(LINE_BLOCK):
                counts.append(counts[-1] + count_lines(block) - (last == b"\r" and block[:1] == b"\n"))
                last = block[-1:]
        return counts

    def line_at(self, position: int) -> int:
        """The number of the line that holds the byte at `position`, from 1."""
        block, left = divmod(position, LINE_BLOCK)
        with self.path.open("rb") as file:
            file.seek(max(block * LINE_BLOCK - 1, 0))
            before = file.read(1) if block else b""
            part = file.read(left)
        return 1 + self.lines_before[block] + count_lines(part) - (before == b"\r" and part[:1] == b"\n")

    def where(self, index: int) -> str:
        return f"{printable(str(self.path))}:{self.line_at(self.starts[index])}"

    def __getitem__(self, index: int) -> Any:
        return parse_json(self.read(index))


class ObjectRows:
    """Rows of a list, or of a `datasets.Dataset`, whose pictures stay encoded until they are needed.

    Paths in them are the caller's own: they start from the working directory, and may lead anywhere.
    """

    folder: Folder = HERE

    def __init__(self, rows: Any):
        self.rows = undecoded(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        try:
            return as_row(self.rows[int(index)])
        except VisGLMError:
            raise
        except Exception as error:  # of whoever wrote the data set: a decoder, a transform
            what = printable(f"{type(error).__name__}: {error!s:.200}")
            raise DataError(f"the data set cannot give the row ({what}).") from error

    def where(self, index: int) -> str:
        return f"row {index}"


def undecoded(rows: Any) -> Any:
    """A `datasets` object that keeps its pictures encoded: decoding is for workers, and for rows that are used.

    Its rows are Arrow tables then, for `as_row`: whole columns can be told to stay encoded only where they are
    pictures themselves, not where they hold lists of them or messages with pictures in their parts.
    """
    if (
        holds_pictures(getattr(rows, "features", None))
        and (getattr(rows, "format", None) or {}).get("type") != "custom"
    ):
        return rows.with_format("arrow")
    return rows


def holds_pictures(feature: Any) -> bool:
    """Whether a feature of `datasets` is one of pictures, or has one within."""
    if isinstance(feature, Mapping):
        return any(map(holds_pictures, feature.values()))
    if isinstance(feature, list | tuple):
        return any(map(holds_pictures, feature))
    return type(feature).__name__ == "Image" or holds_pictures(getattr(feature, "feature", ()))


def as_row(row: Any) -> Any:
    return row.to_pylist()[0] if hasattr(row, "to_pylist") else row


def count_lines(data: bytes) -> int:
    """Line ends as editors count them: \\n, \\r\\n, and \\r alone."""
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")


def check_num_bytes(num_bytes: int) -> None:
    """Raise DataError for a row, or a part of one, that is too large to be one."""
    if num_bytes > MAX_ROW_BYTES:
        raise DataError(f"it has {num_bytes:,} bytes, more than {MAX_ROW_BYTES:,}. Does the file have line ends?")


def parse_json(data: bytes) -> Any:
    """The value of a row.

    Raises:
        DataError: it is no JSON, or JSON that no row needs: very deep, or with numbers of very many digits.
    """
    text = decode(data)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")  # some of Python's messages end so, some do not
        raise DataError(f"no JSON: {what} at character {error.pos + 1}.") from None
    except RecursionError:
        raise DataError(f"brackets are nested more than {MAX_NESTING} deep. Expected a flat row.") from None
    except ValueError:  # Python refuses to read them: it would take quadratic time
        limit = sys.get_int_max_str_digits()
        raise DataError(f"a number has more than {limit:,} digits. Write it as text, or leave it out.") from None
    if data.count(b"[") + data.count(b"{") > MAX_NESTING and is_deep(value):
        raise DataError(f"brackets are nested more than {MAX_NESTING} deep. Expected a flat row.")
    return value


def is_deep(value: Any, depth: int = 0) -> bool:
    """Whether lists and objects lie within each other more than `MAX_NESTING` deep."""
    if depth > MAX_NESTING:
        return True
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(is_deep(item, depth + 1) for item in inner)


def decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"byte {error.start + 1} is not UTF-8. Save the file as UTF-8.") from None


def find_lines(file: BinaryIO) -> Iterator[tuple[int, int, bool]]:
    """`(start, end, is_blank)` of the lines of a file, ended by \\n, of which none is held as a whole."""
    start = position = 0
    is_blank = True
    while part := file.readline(LINE_BLOCK):
        position += len(part)
        is_blank = is_blank and not part.removeprefix(codecs.BOM_UTF8).strip()
        if part.endswith(b"\n"):
            yield start, position, is_blank
            start, is_blank = position, True
    if position > start:
        yield start, position, is_blank


def open_json_lines(path: Path, folder: Folder) -> FileRows:
    """One row per line; blank lines are none.

    Raises:
        DataError: it is one object over several lines.
    """
    starts, ends = array("q"), array("q")
    with path.open("rb") as file:
        if OPENED.match(file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()):
            raise DataError(
                f"{printable(str(path))} begins with an object over several lines. Write each row on one line, or all "
                "rows as a list: [{…}, {…}]."
            )
        file.seek(0)
        for start, end, is_blank in find_lines(file):
            if not is_blank:
                starts.append(start)
                ends.append(end)
    return FileRows(path, starts, ends, folder)
