"""Where rows are kept: files read row by row, wherever the row lies, so that memory does not grow with the file.

`open_rows` finds the kind by content. A newcomer is one class and one row of `CONTAINERS`.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import mmap
import re
import tarfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..errors import DataError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
LINE_BLOCK = 1 << 16  # bytes of a file whose lines are counted together
# The structure of JSON: a whole string, or a bracket outside of strings.
JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class Rows(Protocol):
    """A sequence of rows that are read when they are asked for; cheap to send to another process."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """The row, unchecked. Raises DataError where it cannot be parsed."""

    def where(self, index: int) -> str:
        """File and line of a row, for people."""

    @property
    def folder(self) -> Path:
        """What relative paths in the rows start from."""


class FileRows:
    """Rows that are stretches of one file, `starts[i]` to `ends[i]` in bytes."""

    def __init__(self, path: Path, starts: array, ends: array):
        self.path, self.starts, self.ends = path, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def folder(self) -> Path:
        return self.path.parent

    def read(self, index: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            return file.read(self.ends[index] - self.starts[index])

    @cached_property
    def lines_before(self) -> array:
        """Lines that end before each block of the file: a number per row would cost memory, none would cost time."""
        counts = array("q", [0])
        with self.path.open("rb") as file:
            while block := file.read(LINE_BLOCK):
                counts.append(counts[-1] + block.count(b"\n"))
        return counts

    def where(self, index: int) -> str:
        block, left = divmod(self.starts[index], LINE_BLOCK)
        with self.path.open("rb") as file:
            file.seek(block * LINE_BLOCK)
            line = 1 + self.lines_before[block] + file.read(left).count(b"\n")
        return f"{self.path}:{line}"

    def __getitem__(self, index: int) -> Any:
        return parse_json(self.read(index))


class CsvRows(FileRows):
    """Rows of a CSV or TSV file whose first line names the columns."""

    def __init__(self, path: Path, starts: array, ends: array, header: list[str], delimiter: str):
        super().__init__(path, starts, ends)
        self.header, self.delimiter = header, delimiter

    def __getitem__(self, index: int) -> dict[str, str]:
        values = next(csv.reader(io.StringIO(decode(self.read(index)), newline=""), delimiter=self.delimiter))
        if len(values) != len(self.header):
            raise DataError(f"{len(values)} columns, but the first line names {len(self.header)}.")
        return dict(zip(self.header, values, strict=True))


class TarRows:
    """Samples of WebDataset shards: members in a row whose names agree up to the first dot."""

    def __init__(self, paths: Sequence[Path], shards: array, starts: array, ends: array):
        self.paths, self.shards, self.starts, self.ends = paths, shards, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def folder(self) -> Path:
        return self.paths[0].parent

    def _members(self, index: int) -> Iterator[tuple[str, str, bytes]]:
        with self.paths[self.shards[index]].open("rb") as file:
            file.seek(self.starts[index])
            data = file.read(self.ends[index] - self.starts[index])
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                if member.isfile() and (content := archive.extractfile(member)):
                    yield *split_key(member.name), content.read()

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for _, extension, content in self._members(index):
            if extension == "json":
                row |= parse_json(content)
            else:
                row[extension] = decode(content) if extension == "txt" else content
        return row

    def where(self, index: int) -> str:
        return f"{self.paths[self.shards[index]]}:{next(self._members(index))[0]}"


class ObjectRows:
    """Rows of a list, or of a `datasets.Dataset`, whose pictures stay encoded until they are needed."""

    folder = Path()

    def __init__(self, rows: Any):
        self.rows = undecoded(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[int(index)]

    def where(self, index: int) -> str:
        return f"row {index}"


def open_rows(source: Any) -> Rows:
    """The rows of a file, a folder, a pattern of shards, a list or a `datasets.Dataset`.

    Raises:
        DataError: there is nothing of the kind, or it is empty.
    """
    kind = next((kind for kind in CONTAINERS.values() if kind.accepts(source)), None)
    if kind is None:
        exists = not isinstance(source, str | Path) or Path(source).exists()
        problem = "is none of these" if exists else "does not exist"
        raise DataError(f"{source!s:.200} {problem}. Expected {'; '.join(CONTAINERS)}.")
    try:
        rows = kind.open(source)
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror}).") from error
    if not len(rows):
        raise DataError(f"{source!s:.200} holds no rows.")
    return rows


def is_stream(source: Any) -> bool:
    """Whether rows come one after the other only, as from `datasets` with streaming."""
    return not isinstance(source, str | Path) and hasattr(source, "__iter__") and not hasattr(source, "__len__")


def undecoded(rows: Any) -> Any:
    """A `datasets` object with its pictures as bytes or paths: decoding is for workers, and for rows that are used."""
    for name, feature in (getattr(rows, "features", None) or {}).items():
        if type(feature).__name__ == "Image":
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


def parse_json(data: bytes) -> Any:
    try:
        return json.loads(decode(data))
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")  # some of Python's messages end so, some do not
        raise DataError(f"no JSON: {what} at character {error.pos + 1}.") from None


def decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"byte {error.start + 1} is not UTF-8. Save the file as UTF-8.") from None


def split_key(name: str) -> tuple[str, str]:
    """Key and extension of a member: everything up to the first dot of its file name, and the rest."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def _open_json_lines(path: str | Path) -> FileRows:
    starts, ends, position = array("q"), array("q"), 0
    with Path(path).open("rb") as file:
        for line in file:
            if line.strip():
                starts.append(position)
                ends.append(position + len(line))
            position += len(line)
    return FileRows(Path(path), starts, ends)


def _open_json_array(path: str | Path) -> FileRows:
    starts, ends, depth = array("q"), array("q"), 0
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for token in JSON_TOKEN.finditer(data):
            if token[0] in (b"[", b"{"):
                depth += 1
                if depth == 2:
                    starts.append(token.start())
            elif token[0] in (b"]", b"}"):
                if depth == 2:
                    ends.append(token.end())
                depth -= 1
    if depth:
        raise DataError(f"{path} is cut short: {depth} brackets are never closed. Get a complete copy of it.")
    return FileRows(Path(path), starts, ends)


def _open_csv(path: str | Path) -> CsvRows:
    path, starts, ends = Path(path), array("q"), array("q")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open("rb") as file:
        position = 0

        def lines() -> Iterator[str]:
            nonlocal position
            for line in file:
                position += len(line)
                yield decode(line)

        reader = csv.reader(lines(), delimiter=delimiter)
        header, start = next(reader, []), position
        for row in reader:
            if row:
                starts.append(start)
                ends.append(position)
            start = position
    return CsvRows(path, starts, ends, [name.strip() for name in header], delimiter)


def _shards(source: Any) -> list[Path]:
    if not isinstance(source, str | Path):
        return []
    if Path(source).is_dir():
        return sorted(Path(source).glob("*.tar"))
    return [Path(path) for path in sorted(glob.glob(str(source))) if path.endswith(".tar")]


def _open_shards(source: str | Path) -> TarRows:
    paths, shards, starts, ends = _shards(source), array("i"), array("q"), array("q")
    for number, path in enumerate(paths):
        try:
            with tarfile.open(path, "r:") as archive:
                key = None
                for member in archive:
                    end = member.offset_data + -(-member.size // 512) * 512
                    if not member.isfile():
                        continue
                    if split_key(member.name)[0] != key:
                        key = split_key(member.name)[0]
                        shards.append(number)
                        starts.append(member.offset)
                        ends.append(end)
                    ends[-1] = end
                    archive.members = []  # type: ignore[attr-defined] # it would keep every member it has seen
        except tarfile.TarError as error:
            raise DataError(f"{path} is no tar file, or is cut short ({error}).") from None
    return TarRows(paths, shards, starts, ends)


def _metadata(source: Any) -> Path | None:
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        return None
    return next((path for name in METADATA_NAMES if (path := Path(source) / name).is_file()), None)


def _open_imagefolder(source: str | Path) -> Rows:
    path = _metadata(source)
    return open_rows(path)


def _starts_with(source: Any, first: bytes) -> bool:
    if not isinstance(source, str | Path) or not Path(source).is_file():
        return False
    with Path(source).open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == first


def _has_suffix(source: Any, *suffixes: str) -> bool:
    return isinstance(source, str | Path) and Path(source).suffix.lower() in suffixes and Path(source).is_file()


class Container(NamedTuple):
    """A row of `CONTAINERS`."""

    accepts: Callable[[Any], bool]
    open: Callable[[Any], Rows]


# What error messages call it → how it is recognised and read. Tried from top to bottom.
CONTAINERS: Mapping[str, Container] = {
    "a folder with metadata.jsonl or metadata.csv": Container(
        lambda source: _metadata(source) is not None, _open_imagefolder
    ),
    "WebDataset shards (a .tar file, a folder of them, or a pattern)": Container(
        lambda source: bool(_shards(source)), _open_shards
    ),
    "a JSONL file": Container(
        lambda source: _has_suffix(source, ".jsonl", ".ndjson") or _starts_with(source, b"{"), _open_json_lines
    ),
    "a JSON file holding a list": Container(lambda source: _starts_with(source, b"["), _open_json_array),
    "a CSV or TSV file": Container(lambda source: _has_suffix(source, ".csv", ".tsv"), _open_csv),
    "a list of rows or a datasets.Dataset": Container(
        lambda source: (
            not isinstance(source, str | Path | Mapping)
            and hasattr(source, "__len__")
            and hasattr(source, "__getitem__")
        ),
        ObjectRows,
    ),
}
