"""Plain text, Markdown and tables of text."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from ..pieces import LibraryLimits, Piece
from .encodings import SAMPLE, decode

PARAGRAPH = re.compile(r"\S.*?(?=\n[ \t\r]*\n|\Z)", re.DOTALL)
HEADING = re.compile(r"(#{1,6})[ \t]+(?![ \t])(.+)\Z")
FENCE = re.compile(r"[ \t]*(```|~~~)")
MAX_FIELD = 2**20  # characters of one cell
SEPARATOR = re.compile(r"sep=(.)\n", re.IGNORECASE)
FIRST_ROWS = 20


def read_text(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """Paragraphs are what blank lines part."""
    for match in PARAGRAPH.finditer(decode(data)):
        yield Piece(match[0].rstrip(), start=match.start())


def read_markdown(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """As text, with its headings; those inside of fenced code are none."""
    yield from by_headings(decode(data))


def by_headings(text: str) -> Iterator[Piece]:
    """The paragraphs of Markdown."""
    headings: list[str] = []
    place, block, begun, fence = 0, "", 0, ""
    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line)
        fence = "" if mark and mark[1] == fence else mark[1] if mark and not fence else fence
        heading = None if fence or mark else HEADING.match(line.rstrip("\n"))
        if (heading or not line.strip()) and not (fence and block):
            if block.strip():
                yield Piece(block.rstrip(), heading=" › ".join(headings), start=begun)
            block = ""
        if heading:
            title = heading[2].rstrip(" \t#") or heading[2][0]
            headings = [*headings[: len(heading[1]) - 1], title]
        elif block or line.strip():
            begun = begun if block else place
            block += line
        place += len(line)
    if block.strip():
        yield Piece(block.rstrip(), heading=" › ".join(headings), start=begun)


def read_csv(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """A row is a piece; the first row, where it has words only, is the heading of the others."""
    text = decode(data)
    csv.field_size_limit(MAX_FIELD)
    told = SEPARATOR.match(text)  # as Excel writes it
    if told:
        text = text[told.end() :]
    delimiter = "\t" if name.lower().endswith(".tsv") else told[1] if told else _delimiter(text)
    yield from table(list(row) for row in csv.reader(io.StringIO(text), delimiter=delimiter))


def _delimiter(text: str) -> str:
    """What parts the first rows into most alike numbers of cells; commas and semicolons stand in sentences, too."""

    def alike(delimiter: str) -> tuple[int, int]:
        rows = itertools.islice(csv.reader(io.StringIO(text[:SAMPLE]), delimiter=delimiter), FIRST_ROWS)
        counts = Counter(len(row) for row in rows if row)
        cells, rows_alike = max(counts.items(), key=lambda pair: (pair[0] > 1, pair[1]), default=(1, 0))
        return (rows_alike if cells > 1 else 0, cells)

    return max(",;\t|", key=alike)


def table(rows: Iterable[list[str]], page: int | None = None, title: str = "") -> Iterator[Piece]:
    """Rows of cells as pieces: `name | number`, under a heading that holds the title and the names of the columns.
    Under such names an empty cell keeps its place."""
    heading, is_first, has_names = title, True, False
    for row in rows:
        cells = [" ".join(cell.split()) for cell in row]
        if not any(cells):
            continue
        if is_first and not any(re.fullmatch(r"[-+\d.,%\s]+", cell) for cell in cells) and sum(map(bool, cells)) > 1:
            has_names = True
            heading = ": ".join(filter(None, (title, " | ".join(filter(None, cells)))))
        while has_names and cells and not cells[-1]:
            cells.pop()
        yield Piece(
            " | ".join(cells if has_names and not is_first else filter(None, cells)), page=page, heading=heading
        )
        is_first = False
