"""Pieces of a document → the parts that are searched: neighbours of one section and page together, long ones apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from PIL import Image

from ..prompt import CHINESE
from .pieces import MAX_HEADING, Box, Line, Piece, union

# Of a part; a Chinese character counts as two. What reads them has 512 tokens.
MAX_WEIGHT = 1_000
WIDEST_GLUE = 8  # characters between two paragraphs that are joined
GLUE = "\n\n"  # between paragraphs; a single line break is the document's own, and ends no sentence
ABBREVIATIONS = r"(?<!\b[A-Z])(?<!\b(?:Mr|Dr|St|vs|No|cf|al))(?<!\b(?:Mrs|etc|Fig|e\.g|i\.e|Inc|Ltd))"
CAPITALS = "A-Z" + "".join(chr(code) for code in range(0xC0, 0x530) if chr(code).isupper())
# Runs are bounded, or a line of dots would be gone through once for each dot; of a longer one the rest ends it as well.
SENTENCE_END = re.compile(
    rf"[。！？…]+[”’」』）\"]*|[!?]{{1,9}}[\"')\]”’]*(?=\s|{CHINESE}|\Z)|;(?=\n)|；(?=\n)"
    rf"|{ABBREVIATIONS}\.{{1,9}}[\"')\]”’]*(?=\s+[\"'(\[“{CAPITALS}0-9]|\s*{CHINESE}|\s*\Z)"
    r"|\n[ \t]*\n|\n(?=[ \t]*(?:[-*•·]|\d+[.)、])[ \t]|\||```)"
    r"|(?<=```)\n"
)
LEADERS = re.compile(r"(?:[.·…] ?){5}")  # from a title to its page, in a table of contents
WIDE = re.compile(CHINESE + r"|[\u3000-\u303f\uff00-\uffef\u3040-\u30ff\uac00-\ud7af]")
JOINED = re.compile(rf"(?<={CHINESE})\s*\n\s*(?={CHINESE})|(?<=[，。、；：！？])\s*\n\s*|\s*\n\s*(?=[，。、；：！？])")
MAX_SENTENCE = 400  # weight above which a sentence without an end is cut at a comma or a space


@dataclass(frozen=True)
class Chunk:
    """A part of a document that is found as one.

    Args:
        text: as it stands there; paragraphs are parted by an empty line.
        page, heading: as of `Piece`.
        start, end: in the text of the document, in characters.
        lines: where its lines stand on the page.
        image: of a picture.
    """

    text: str
    page: int | None = None
    heading: str = ""
    start: int = 0
    end: int = 0
    lines: tuple[Line, ...] = ()
    image: Image.Image | None = field(default=None, compare=False)

    @property
    def box(self) -> Box | None:
        """Around all of it."""
        return union([box for *_, box in self.lines])


def weight(text: str) -> int:
    """Length in which a Chinese character counts as two."""
    return len(text) + len(WIDE.findall(text))


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Where the sentences of a text begin and end, in both languages; blanks around them belong to none."""
    begun = 0
    for end in [*(match.end() for match in SENTENCE_END.finditer(text)), len(text)]:
        part = text[begun:end]
        if part.strip():
            start = begun + len(part) - len(part.lstrip())
            yield from _short(text, start, begun + len(part.rstrip()))
        begun = end


def _short(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A sentence of reasonable length; what has no end (a list, a table) is cut where it may be."""
    # Of a text without any end there are megabytes: no more of it is looked at than can fit.
    while weight(first := text[start : min(end, start + MAX_SENTENCE + 1)]) > MAX_SENTENCE:
        places = [match.end() for match in re.finditer(r"[，,;；、\n ]", first)]
        fitting = [place for place in places if weight(first[:place]) <= MAX_SENTENCE]
        cut = start + (fitting[-1] if fitting else MAX_SENTENCE // 2)
        if text[start:cut].strip():
            yield start, start + len(text[start:cut].rstrip())
        start = cut
    if text[start:end].strip():
        yield start, end


def in_one_line(text: str) -> str:
    """Text as a person would write it in one line: breaks inside of Chinese vanish, others become a space."""
    return " ".join(JOINED.sub("", text).split())


def chunks(pieces: Iterable[Piece]) -> Iterator[Chunk]:
    """Join neighbours of one section and one page up to the size that is read well, and part what is longer."""
    waiting: list[tuple[int, Piece]] = []
    place = heavy = 0
    for piece in pieces:
        if piece.image is None and not piece.text.strip():
            continue
        if len(piece.heading) > MAX_HEADING:  # it stands with each part
            piece = replace(piece, heading=piece.heading[: MAX_HEADING - 1] + "…")
        start = place if piece.start is None else piece.start
        place = start + len(piece.text) + len(GLUE)
        if piece.image is not None:
            yield Chunk(piece.text, piece.page, piece.heading, start, start + len(piece.text), piece.lines, piece.image)
            continue
        added = weight(piece.text)
        if waiting and not (heavy + added <= MAX_WEIGHT and _goes_on(*waiting[-1], start, piece)):
            yield _join(waiting)
            waiting, heavy = [], 0
        if added > MAX_WEIGHT:
            yield from _part(piece, start)
        else:
            waiting.append((start, piece))
            heavy += added
    if waiting:
        yield _join(waiting)


def _goes_on(start: int, last: Piece, begun: int, piece: Piece) -> bool:
    if (last.page, last.heading) != (piece.page, piece.heading):
        return False
    return len(GLUE) <= begun - start - len(last.text) <= WIDEST_GLUE


def _join(waiting: list[tuple[int, Piece]]) -> Chunk:
    text, lines = "", []
    for begun, piece in waiting:
        # As long as what stands between them in the document, so that places in one are places in the other.
        text += GLUE[0] * (begun - waiting[0][0] - len(text)) if text else ""
        lines += [(start + len(text), end + len(text), box) for start, end, box in piece.lines]
        text += piece.text
    (start, first), (last_start, last) = waiting[0], waiting[-1]
    return Chunk(text, first.page, first.heading, start, last_start + len(last.text), tuple(lines))


def _part(piece: Piece, place: int) -> Iterator[Chunk]:
    """Groups of whole sentences."""
    group: tuple[int, int] | None = None
    for start, end in sentences(piece.text):
        if group is not None and weight(piece.text[group[0] : end]) > MAX_WEIGHT:
            yield _cut(piece, place, *group)
            group = None
        group = (start if group is None else group[0], end)
    if group is not None:
        yield _cut(piece, place, *group)


def _cut(piece: Piece, place: int, begun: int, ended: int) -> Chunk:
    lines = tuple(
        (max(first, begun) - begun, min(last, ended) - begun, box)
        for first, last, box in piece.lines
        if first < ended and last > begun
    )
    return Chunk(piece.text[begun:ended], piece.page, piece.heading, place + begun, place + ended, lines)
