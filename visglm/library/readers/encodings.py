"""Bytes → text: by their mark, by what they declare, as UTF-8, else by what they look like."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress

from ...errors import DocumentError, require
from .alphabets import latin_encoding

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
CYRILLIC = ("cp1251", "koi8_r")  # letters with accents here and there look like theirs
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
BROKEN = 8  # characters of UTF-8 for each byte that is none, from where on a text is broken UTF-8 and nothing else
MOST_ODD = 0.02  # of the characters of a text that may be none, such as control characters
SAMPLE = 200_000  # bytes or characters by which it is judged


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
    if mark:
        return data.decode(mark, errors="replace"), False
    if not has_nulls and (text := _broken_utf_8(data)):
        return text, True
    guess = _guess(data, WIDE if nulls else GUESSES)
    if guess is None and has_nulls:
        raise DocumentError("it is no text: it holds null bytes.")
    return data.decode(guess or "cp1252", errors="replace"), False


def _broken_utf_8(data: bytes) -> str:
    """The text, where it is UTF-8 but for few bytes: cut inside of a character, or with a line of another program's.
    In other encodings hardly any bytes beyond ASCII are UTF-8 by chance. "" where it is something else."""
    text = data.decode("utf-8", errors="replace")
    num_broken = text.count("\ufffd")
    return text if sum(letter > "\x7f" for letter in text) > (BROKEN + 1) * num_broken else ""


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
    latin, is_latin = latin_encoding(cut) if encodings is GUESSES and not _is_foreign(cut) else ("", False)
    if is_latin:
        return latin
    found = _likeliest(cut, encodings)
    if found == "cp932" and _is_narrow(cut):
        found = _likeliest(cut, [name for name in encodings if name != "cp932"]) or found
    return latin if latin and found in (None, "cp1252", *CYRILLIC) else found


def _likeliest(data: bytes, encodings: Sequence[str]) -> str | None:
    found = require("library", "charset_normalizer").from_bytes(data, cp_isolation=list(encodings)).best()
    return None if found is None else str(found.encoding)


def _is_narrow(data: bytes) -> bool:
    """Whether its Japanese is mostly katakana of half the width: few people write it, and Cyrillic looks like it."""
    beyond = [letter for letter in data.decode("cp932", "replace") if letter > "\x7f"]
    return 2 * sum("\uff61" <= letter <= "\uff9f" for letter in beyond) > len(beyond)


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
