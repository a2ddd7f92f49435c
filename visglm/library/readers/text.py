"""Plain text, Markdown and tables of text."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator

from ...errors import DocumentError
from ..pieces import LibraryLimits, Piece

# That of UTF-32 begins as that of UTF-16 does.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]{2,40})""", re.IGNORECASE)
# GB18030 has GBK and GB2312 in it, and takes most bytes: where it fails, too, each byte is a letter.
GUESSES = ("utf-8", "gb18030", "cp1252")
PARAGRAPH = re.compile(r"\S.*?(?=\n[ \t\r]*\n|\Z)", re.DOTALL)
HEADING = re.compile(r"(#{1,6})[ \t]+(?![ \t])(.+)\Z")
FENCE = re.compile(r"[ \t]*(```|~~~)")
MAX_FIELD = 2**20  # characters of one cell


def decode(data: bytes, declared: str | None = None) -> str:
    """Bytes as text with `\\n` line ends: by their mark, by what is declared, else by what fits.

    Raises:
        DocumentError: they are no text.
    """
    mark = next((encoding for start, encoding in MARKS.items() if data.startswith(start)), None)
    if mark is None and data.count(0) > len(data) // 100:
        raise DocumentError("it is no text: it holds null bytes.")
    for encoding in filter(None, (mark, declared, *GUESSES)):
        try:
            text = data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        return text.replace("\r\n", "\n").replace("\r", "\n")
    return data.decode("cp1252", errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def declared_encoding(data: bytes) -> str | None:
    """What the head of an HTML or XML file says that it is written in."""
    found = DECLARED.search(data[:4096])
    return found[1].decode("ascii") if found else None


def read_text(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """Paragraphs are what blank lines part."""
    for match in PARAGRAPH.finditer(decode(data)):
        yield Piece(match[0].rstrip(), start=match.start())


def read_markdown(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """As text, with its headings; those inside of fenced code are none."""
    headings: list[str] = []
    place, block, begun, fence = 0, "", 0, ""
    for line in decode(data).splitlines(keepends=True):
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
    delimiter = "\t" if name.lower().endswith(".tsv") else max(",;\t", key=text[:4096].count)
    rows = csv.reader(io.StringIO(text), delimiter=delimiter)
    yield from table(list(row) for row in rows)


def table(rows: Iterator[list[str]], page: int | None = None, title: str = "") -> Iterator[Piece]:
    """Rows of cells as pieces: `name | number`, under a heading that holds the title and the names of the columns."""
    heading, is_first = title, True
    for row in rows:
        cells = [" ".join(cell.split()) for cell in row]
        if not any(cells):
            continue
        if is_first and not any(re.fullmatch(r"[-+\d.,%\s]+", cell) for cell in cells) and sum(map(bool, cells)) > 1:
            heading = ": ".join(filter(None, (title, " | ".join(filter(None, cells)))))
        is_first = False
        yield Piece(" | ".join(filter(None, cells)), page=page, heading=heading)
