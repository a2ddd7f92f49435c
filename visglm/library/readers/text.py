"""Plain text, Markdown and tables of text."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from ...errors import DocumentError, require
from ..pieces import LibraryLimits, Piece

# That of UTF-32 begins as that of UTF-16 does.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]{2,40})""", re.IGNORECASE)
# What text without a declaration may be in, where it is not UTF-8. Each further one makes the others less sure.
GUESSES = ("gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1251", "koi8_r", "cp1252")
CYRILLIC = ("cp1251", "koi8_r")  # a letter with an accent here and there looks like theirs
WIDE = ("utf_16_le", "utf_16_be", "utf_32_le", "utf_32_be")  # without a mark: they hold null bytes
ESCAPED = {b"\x1b$": "iso2022_jp", b"\x1b(": "iso2022_jp"}  # Japanese mail, whose bytes are all ASCII
# Bytes beyond ASCII up to which statistics mislead: what may be plain Chinese, is.
FEW = 32
# Decodes any bytes: that they are in this is a weak claim, and UTF-8 that fits is none.
WEAK = ("ascii", "cp1252")
# What is declared → what is written by those who declare it, as browsers take it (https://encoding.spec.whatwg.org).
MEANT = {
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "iso8859-1": "cp1252",
    "big5": "big5hkscs",
}  # fmt: skip
# Named by a file that was read as ASCII up to there, it is in none of these; and some take hours.
NEVER = ("utf-16", "utf-32", "utf-7", "punycode", "idna", "unicode-escape", "unicode_escape", "raw-unicode-escape")
MOST_ODD = 0.02  # of the characters of a text that may be none, such as control characters
SAMPLE = 200_000  # bytes or characters by which it is judged
PARAGRAPH = re.compile(r"\S.*?(?=\n[ \t\r]*\n|\Z)", re.DOTALL)
HEADING = re.compile(r"(#{1,6})[ \t]+(?![ \t])(.+)\Z")
FENCE = re.compile(r"[ \t]*(```|~~~)")
MAX_FIELD = 2**20  # characters of one cell
SEPARATOR = re.compile(r"sep=(.)\n", re.IGNORECASE)
FIRST_ROWS = 20


def decode(data: bytes, declared: str | None = None) -> str:
    """Bytes as text with `\\n` line ends: by their mark, by what is declared, as UTF-8, else by what they look like.

    Raises:
        DocumentError: they are no text, or in an encoding that is not recognised.
    """
    text, is_sure = _decoded(data, declared)
    head = text[:SAMPLE]
    if sum(_is_odd(letter, is_sure) for letter in head) > max(1, MOST_ODD * len(head)):
        raise DocumentError("it is no text, or in an encoding that is not recognised. Save it as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes, declared: str | None) -> tuple[str, bool]:
    """The text, and whether its encoding was more than a guess."""
    mark = next((encoding for start, encoding in MARKS.items() if data.startswith(start)), None)
    name = _known(declared)
    strong, weak = (None, name) if name in WEAK else (name, None)
    nulls = data.count(0) if mark is None and strong is None else 0
    has_nulls = nulls > len(data) // 100
    escaped = next((encoding for start, encoding in ESCAPED.items() if start in data[:SAMPLE]), None)
    first = (mark, strong, escaped, *(() if has_nulls else ("utf-8-sig", weak)))
    for encoding in filter(None, first):
        with suppress(UnicodeDecodeError, LookupError):
            return data.decode(encoding), encoding != weak
    guess = _guess(data, WIDE if nulls else GUESSES)
    if guess is None and has_nulls:
        raise DocumentError("it is no text: it holds null bytes.")
    return data.decode(guess or "cp1252", errors="replace"), False


def _known(declared: str | None) -> str | None:
    """What Python decodes it by; None where it knows no such encoding."""
    with suppress(LookupError):
        name = codecs.lookup(declared).name if declared else None
        return None if name is None else MEANT.get(name, name)
    return None


def _guess(data: bytes, encodings: Sequence[str]) -> str | None:
    """The likeliest of some encodings; None where it looks like none of them."""
    cut = data[: SAMPLE - SAMPLE % 4]
    if len(data) > len(cut) and encodings is GUESSES:  # no character is parted
        cut = cut[: cut.rfind(b"\n") + 1] or cut[: cut.rfind(b" ") + 1] or data
    if sum(byte > 127 for byte in cut) <= FEW and encodings is GUESSES and _is_plain_chinese(cut):
        return "gb18030"
    found = require("library", "charset_normalizer").from_bytes(cut, cp_isolation=list(encodings)).best()
    if found is not None and found.encoding in CYRILLIC and not _is_foreign(cut):
        return "cp1252"
    return None if found is None else str(found.encoding)


def _is_foreign(data: bytes) -> bool:
    """Whether a good part of its letters is not Latin."""
    return 2 * sum(byte > 127 for byte in data) > sum(byte < 128 and chr(byte).isalpha() for byte in data)


def _is_plain_chinese(data: bytes) -> bool:
    """Whether all of it is common characters and signs of GB 2312."""
    try:
        pairs = [letter.encode("gb18030") for letter in data.decode("gb18030") if not letter.isascii()]
    except UnicodeDecodeError:
        return False
    return all(
        len(pair) == 2 and pair[1] > 0xA0 and (pair[0] in (0xA1, 0xA3) or 0xB0 <= pair[0] < 0xD8) for pair in pairs
    )


def _is_odd(letter: str, is_sure: bool) -> bool:
    """Whether it stands in no text: a control character; and of a guess, a letter of nobody's or that could not be
    decoded."""
    if letter < " ":
        return letter not in "\t\n\r\f\v\x1b\b"
    return not is_sure and (letter == "\ufffd" or unicodedata.category(letter) in ("Co", "Cn"))


def declared_encoding(data: bytes) -> str | None:
    """What the head of an HTML or XML file says that it is written in."""
    found = DECLARED.search(data[:4096])
    name = _known(found[1].decode("ascii")) if found else None
    return None if name is None or name.startswith(NEVER) else name


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
