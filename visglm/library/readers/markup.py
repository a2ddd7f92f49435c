"""HTML: what a reader would see of it, by headings. Scripts are not run, and nothing that it names is fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from ...errors import DocumentError, ImageError
from ...pictures import load_image
from ..pieces import MAX_HEADING, LibraryLimits, Piece
from .encodings import declared_encoding, decode
from .text import table

BLOCKS = frozenset(
    re.findall(
        r"\w+",
        """address article aside blockquote body br caption center dd details div dl dt fieldset figcaption figure
        footer form h1 h2 h3 h4 h5 h6 header hr html legend li main nav ol option p pre section summary table tbody td
        tfoot th thead title tr ul""",
    )
)
UNSEEN = frozenset(
    ("script", "style", "noscript", "template", "iframe", "object", "embed", "applet", "svg", "math", "head")
)
# What may stand in a head. Anything else ends it, whether that is said or not.
IN_HEAD = frozenset(re.findall(r"\w+", "head title meta link base basefont bgsound style script noscript template"))
LONGEST_CELL = 400  # characters; longer ones, or a single one in a row, lay out a page
VOID = frozenset(re.findall(r"\w+", "area base br col embed hr img input link meta source track wbr"))
HEADINGS = {f"h{level}": level for level in range(1, 7)}
HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
UNFINISHED = re.compile(r"<[a-zA-Z!?/]")
OF_TABLES = ("table", "tr", "td", "th")
MAX_DEPTH = 1_000


class Page(HTMLParser):
    """Collects paragraphs and their headings."""

    def __init__(self, limits: LibraryLimits, page: int | None = None):
        super().__init__(convert_charrefs=True)
        self.limits, self.page = limits, page
        self.pieces: list[Piece] = []
        self.headings: list[str] = []
        self.title = ""
        self._text: list[str] = []
        self._open: list[str] = []
        self._unseen: list[str] = []
        self._is_title = False
        self._rows: list[list[list[str]]] | None = None  # of a table: rows of cells of paragraphs

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        is_hidden = "hidden" in values or HIDDEN.search(values.get("style") or "") is not None
        if self._unseen[:1] == ["head"] and tag not in IN_HEAD:
            self._unseen.clear()
        if tag == "title":
            self._is_title = True
        if self._unseen or ((tag in UNSEEN or is_hidden) and tag not in VOID):
            if tag not in VOID:
                self._unseen.append(tag)
                self._check_depth(self._unseen)
            return
        if tag in BLOCKS:
            self.flush(soft=tag == "br")
        if tag in OF_TABLES:
            self._table(tag)
        if tag in HEADINGS:
            self.end_table()  # it lays out a page
            self._open.append(tag)
            self._check_depth(self._open)
        if tag == "img":
            self._picture(values.get("src") or "", values.get("alt") or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._is_title = False
        if self._unseen:
            if tag in self._unseen:  # what was left open inside of it ends with it
                del self._unseen[len(self._unseen) - 1 - self._unseen[::-1].index(tag) :]
            return
        if tag in HEADINGS and tag in self._open:
            self._open.clear()
            heading = self._words()
            if len(heading) > MAX_HEADING:
                return self.flush()
            self._text = []
            if heading:
                self.headings = [*(self.headings + [""] * 6)[: HEADINGS[tag] - 1], heading]
        elif tag in BLOCKS:
            self.flush()
            if tag == "table":
                self.end_table()

    def _table(self, tag: str) -> None:
        """Begin a table, a row or a cell."""
        if tag == "table":
            self.end_table()
            self._rows = []
        elif self._rows is not None and tag == "tr":
            self._rows.append([])
        elif self._rows and tag != "tr":
            self._rows[-1].append([])

    def end_table(self) -> None:
        """Its rows, one piece each; of one that lays out a page the paragraphs."""
        rows, self._rows = self._rows or [], None
        texts = [["\n".join(cell) for cell in row] for row in rows]
        if max(map(len, texts), default=0) > 1 and all(len(cell) <= LONGEST_CELL for row in texts for cell in row):
            self.pieces += table(texts, self.page, self.heading)
        else:
            paragraphs = (text for row in rows for cell in row for text in cell)
            self.pieces += [Piece(text, page=self.page, heading=self.heading) for text in paragraphs]

    def handle_data(self, data: str) -> None:
        if self._is_title:
            self.title += data
        elif not self._unseen:
            self._text.append(data)

    def flush(self, soft: bool = False) -> None:
        """End a paragraph; softly, a line of it."""
        if soft:
            self._text.append("\n")
        elif text := self._words():
            if self._rows and self._rows[-1]:
                self._rows[-1][-1].append(text)
            else:
                self.pieces.append(Piece(text, page=self.page, heading=self.heading))
            self._text = []
        elif not soft:
            self._text = []

    @property
    def heading(self) -> str:
        return " › ".join(filter(None, self.headings)) or " ".join(self.title.split())

    def _words(self) -> str:
        lines = "".join(self._text).replace("\xa0", " ")
        return "\n".join(filter(None, (" ".join(line.split()) for line in lines.split("\n")))) if lines.strip() else ""

    def _picture(self, source: str, alternative: str) -> None:
        if alternative.strip():
            self._text.append(f" {alternative.strip()} ")
        if source[:5].lower() == "data:":  # in the file itself; whatever else it names stays where it is
            try:
                image = load_image(source, limits=self.limits.images)
            except ImageError:
                return
            self.pieces.append(Piece(alternative, page=self.page, heading=self.heading, image=image))

    def _check_depth(self, tags: list[str]) -> None:
        if len(tags) > MAX_DEPTH:
            raise DocumentError(f"its tags are nested over {MAX_DEPTH} deep.")


def read_html(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """Paragraphs by headings."""
    yield from parse(decode(data, declared_encoding(data)), limits)


def parse(text: str, limits: LibraryLimits, page: int | None = None) -> list[Piece]:
    """The pieces of HTML text; all of them on one page."""
    parser = Page(limits, page)
    parser.feed(text)
    # What opens a tag or a comment and never ends it hides all behind it, as in a browser. To close() it would be text,
    # and the end looked for again from each "<" in it.
    if not UNFINISHED.match(parser.rawdata):
        parser.close()
    parser.flush()
    parser.end_table()
    return parser.pieces
