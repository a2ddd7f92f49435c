"""CSV and TSV files: one row per record, wherever a quoted field has line ends of its own."""

from __future__ import annotations

import codecs
import csv
import io
import re
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import DataError, printable, shorten
from .folder import Folder
from .rows import LINE_BLOCK, FileRows, decode

MAX_LINE = 1 << 20  # bytes of a line that are looked at for quotes
DELIMITERS = (",", ";", "\t", "|")  # of spreadsheets, by the country that they are set to, and of data sets
QUOTED = re.compile('"[^"]*"')
SEP = re.compile(rb"sep=([,;\t|])\r?\n?")  # the first line, by which Excel is told

# What is in an error of the csv module → what that means.
PROBLEMS = {
    "unexpected end": "a quote is opened and never closed",
    "expected after": "a quote stands within a field in quotes. Write it twice there",
}


class Dialect(NamedTuple):
    """How the fields of a table are parted.

    Args:
        delimiter: what stands between two.
        skips_spaces: whether spaces behind it are no part of the field, which may be in quotes behind them.
    """

    delimiter: str
    skips_spaces: bool = False

    def records(self, lines: Iterable[str]) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self.delimiter, skipinitialspace=self.skips_spaces, strict=True)


class TableRows(FileRows):
    """Rows of a CSV or TSV file whose first line names the columns. A column without a name is none."""

    def __init__(self, path: Path, folder: Folder, header: list[str], dialect: Dialect):
        super().__init__(path, array("q"), array("q"), folder)
        self.header, self.dialect = header, dialect

    def __getitem__(self, index: int) -> dict[str, str]:
        values = parse_record(decode(self.read(index)), self.dialect)
        if len(values) != len(self.header):
            raise DataError(f"{len(values)} columns, but the first line names {len(self.header)}.")
        return {name: value for name, value in zip(self.header, values, strict=True) if name}


def parse_record(text: str, dialect: Dialect) -> list[str]:
    """The fields of one record.

    Raises:
        DataError: quotes do not match, or a field is longer than the csv module takes.
    """
    try:
        return next(dialect.records(io.StringIO(text, newline="")), [])
    except csv.Error as error:
        what = next((told for sign, told in PROBLEMS.items() if sign in str(error)), str(error))
        raise DataError(f"no row of a table: {what}.") from None


def open_table(path: Path, folder: Folder) -> TableRows:
    """The records behind the first line. One whose quotes do not match is a bad row of one line: read on to where the
    quote happens to be closed, it would take good rows along.

    Raises:
        DataError: the first line cannot be read, or names a column twice.
    """
    with path.open("rb") as file:
        dialect = find_dialect(file, "\t" if path.suffix.lower() == ".tsv" else None)
        records = find_records(file, dialect)
        start, end = next(records, (0, 0))
        rows = TableRows(path, folder, read_header(file, path, start, end, dialect), dialect)
        for start, end in records:
            rows.starts.append(start)
            rows.ends.append(end)
    return rows


def find_dialect(file: BinaryIO, delimiter: str | None) -> Dialect:
    """How the columns are parted: as a line in front of the table says, else by what parts most names; and with spaces
    behind, if they are behind every one of these. The file is read on from where the table begins.

    Args:
        delimiter: where the file's name says it.
    """
    told = None if delimiter else SEP.fullmatch(file.readline(MAX_LINE).removeprefix(codecs.BOM_UTF8))
    start = 0 if told is None else file.tell()
    file.seek(start)
    line = next((content for _, _, content in split_lines(file) if content.strip(codecs.BOM_UTF8 + b" \r\n")), b"")
    file.seek(start)
    names = QUOTED.sub("", line.decode("utf-8", "replace")).rstrip("\r\n")
    if delimiter is None:  # the first of them where there is none
        delimiter = max(DELIMITERS, key=names.count) if told is None else told[1].decode()
    others = [name for name in names.split(delimiter)[1:] if name]
    return Dialect(delimiter, bool(others) and all(name.startswith(" ") for name in others))


def read_header(file: BinaryIO, path: Path, start: int, end: int, dialect: Dialect) -> list[str]:
    position = file.tell()
    file.seek(start)
    try:
        names = [name.strip() for name in parse_record(decode(file.read(end - start)), dialect)]
    except DataError as error:
        raise DataError(f"{printable(str(path))}: the first line, which names the columns: {error}") from None
    file.seek(position)
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise DataError(
            f"{printable(str(path))}: the first line names the column '{shorten(twice[0])}' twice. Rename one."
        )
    return names


def find_records(file: BinaryIO, dialect: Dialect) -> Iterator[tuple[int, int]]:
    """Where the records of a table begin and end, in bytes; those of nothing but empty fields are none."""
    lines: Iterator[tuple[int, int, bytes]] = split_lines(file)
    again: deque[tuple[int, int, bytes]] = deque()  # lines that were read in search of a quote that never came
    while (line := again.popleft() if again else next(lines, None)) is not None:
        start, end, content = line
        taken = [line]

        def text(first: bytes = content, taken: list[tuple[int, int, bytes]] = taken) -> Iterator[str]:
            yield first.decode("utf-8-sig", "surrogateescape")
            while (line := again.popleft() if again else next(lines, None)) is not None:
                taken.append(line)
                yield line[2].decode("utf-8", "surrogateescape")

        try:
            fields = next(dialect.records(text()), [])
            is_blank = not "".join(fields).strip()
            end = taken[-1][1]
        except csv.Error:
            again.extendleft(reversed(taken[1:]))
            is_blank = False
        if not is_blank:
            yield start, end


def split_lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """`(start, end, content)` of lines that end by \\n, \\r\\n or \\r. Of one that is too long to be a row, only the
    start is content."""
    position, length = file.tell(), 0
    content = carry = b""
    while True:
        block = file.read(LINE_BLOCK)
        data, carry = carry + block, b""
        if block and data.endswith(b"\r"):  # perhaps half of a line end
            data, carry = data[:-1], b"\r"
        for piece in data.splitlines(keepends=True):
            content += piece if len(content) < MAX_LINE else b""
            length += len(piece)
            if piece.endswith((b"\n", b"\r")):
                yield position, position + length, content
                position, length, content = position + length, 0, b""
        if not block:
            if length:
                yield position, position + length, content
            return
