"""Files → rows of the store: read, parted, looked at, and their meaning as numbers. Nothing here writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DocumentError
from ..prompt import detect_language
from .chunks import Chunk, chunks
from .embed import Embedder, as_list
from .eyes import Eyes, embedded_eyes
from .files import open_file
from .ocr import Ocr, RapidOcr
from .pieces import LibraryLimits
from .readers import READERS, read, reader_of
from .store import HEAD
from .words import name_in_words, running

# How files are read. It goes up when the same file would be found by other words: what was read before is read again.
READING = 4
UNREAD = "-"  # in a recipe: nobody looked at a picture, since there was none
Row = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """A file that is new, or may have changed.

    Args:
        digest: of the content that the library has, and would read as the same today; "" for none.
        is_new: the library has nothing of this name.
    """

    source: str
    digest: str = ""
    is_new: bool = True


@dataclass(frozen=True)
class Reading:
    """What came of a file.

    Args:
        source: the file.
        digest: of its content.
        stamp: its size and times.
        modified: when it was, in seconds of the epoch.
        rows: of the store; [] where its content is known and was not read.
        refused: why it could not even be opened.
    """

    source: str
    digest: str = ""
    stamp: str = ""
    modified: float = 0.0
    rows: list[Row] = field(default_factory=list)
    refused: str = ""


# What reads files: this process, or others. The second says which content was elsewhere: digest → kind of reader.
Read = Callable[[Iterator[Wanted], Mapping[str, str]], Iterable[Reading]]


class Indexer:
    """Reads files.

    Args:
        embedder: of texts.
        eyes: look at pictures; None for the embedded ones, once there is a picture.
        limits: what one document may cost.
        ocr: reads scans and what is written in pictures; by default RapidOCR, where it is installed.
    """

    def __init__(self, embedder: Embedder, eyes: Eyes | None, limits: LibraryLimits, ocr: Ocr | None = None):
        self.embedder, self.chosen_eyes, self.limits, self.ocr = embedder, eyes, limits, ocr or RapidOcr()

    @property
    def eyes(self) -> Eyes:
        """What looks at pictures."""
        if self.chosen_eyes is None:
            self.chosen_eyes = embedded_eyes()
        return self.chosen_eyes

    def is_stale(self, head: Mapping[str, Any]) -> bool:
        """Whether the same file would be read as something else now: by this version, with vectors, by other eyes or
        another reader.

        Args:
            head: what the library has of it.
        """
        form, vectors, looker, reader = (head["recipe"].split("\t") + [""] * 3)[:4]
        if form != str(READING) or (vectors != self.embedder.name and bool(self.embedder.name)):
            return True
        row = READERS.get(head["kind"])  # none for what nobody reads
        if self.ocr.name and reader != self.ocr.name and row is not None and row.meets_text:
            return True
        return looker != UNREAD and self.chosen_eyes is not None and looker != self.chosen_eyes.name

    def read_all(self, wanted: Iterable[Wanted], moved: Mapping[str, str]) -> Iterator[Reading]:
        """One file after the other."""
        return (self.read(each, moved) for each in wanted)

    def read(self, wanted: Wanted, moved: Mapping[str, str]) -> Reading:
        """Open a file, and read it unless its content is known."""
        source = wanted.source
        try:
            file = open_file(Path(source), self.limits)
        except DocumentError as error:
            return Reading(source, refused=str(error))
        known = Reading(source, file.digest, file.stamp, file.modified)
        if file.digest == wanted.digest or (wanted.is_new and stays(source, moved.get(file.digest))):
            return known
        try:
            found, problem = list(chunks(read(file.data, source, self.limits, self.ocr))), ""
        except DocumentError as error:
            found, problem = [], str(error)
        problem = problem or ("" if found else "there is no text and no picture in it.")
        rows = self.rows(source, found, problem, file.digest, file.stamp, file.modified)
        return Reading(source, file.digest, file.stamp, file.modified, rows)

    def rows(
        self, source: str, found: list[Chunk], problem: str, digest: str, stamp: str, modified: float
    ) -> list[Row]:
        """A document's head and parts, as rows of the store."""
        pictures = [chunk for chunk in found if chunk.image is not None]
        looker = self.eyes.name if pictures else UNREAD
        looks, said = self._look(pictures)
        descriptions: Iterator[str] = iter(said)
        parts = []
        for number, chunk in enumerate(found):
            text = chunk.text if chunk.image is None else next(descriptions)
            parts.append(part_of(source, number, chunk, text, modified))
        for part, look in zip((part for part in parts if part["kind"] == "picture"), looks, strict=True):
            part["look"], part["looker"] = as_list(look), looker
        texts = [part["words"] for part in parts]
        for part, vector in zip(parts, self.embedder.passages(texts), strict=True):
            part["vector"] = as_list(vector)
        head = {
            "source": source, "part": HEAD, "kind": reader_of(source) or "", "language": "", "heading": "", "text": "",
            "words": "", "modified": modified, "stamp": stamp, "hash": digest, "problem": problem,
            "recipe": "\t".join((str(READING), self.embedder.name, looker, self.ocr.name)), "num_parts": len(parts),
        }  # fmt: skip
        return [head, *parts]

    def _look(self, pictures: list[Chunk]) -> tuple[Any, list[str]]:
        images: list[Image.Image] = [chunk.image for chunk in pictures if chunk.image is not None]
        return (self.eyes.look(images), self.eyes.describe(images)) if images else ([], [])


def stays(source: str, kind: str | None) -> bool:
    """Whether what was read of this content in another place holds here, too; a picture's name is a part of what is
    found.

    Args:
        kind: of reader, there; None where the content is new.
    """
    return kind is not None and reader_of(source) == kind and kind not in ("picture", "tiff")


def part_of(source: str, number: int, chunk: Chunk, text: str, modified: float) -> dict[str, Any]:
    """A part as a row of the store."""
    is_picture = chunk.image is not None
    around = [name_in_words(source), chunk.heading, chunk.text] if is_picture else [chunk.heading]
    text = text.encode("utf-8", "replace").decode()
    words = "\n".join(filter(None, (*around, running(text)))).encode("utf-8", "replace").decode()
    return {
        "source": source, "part": number, "kind": "picture" if is_picture else "text",
        "language": "" if is_picture else detect_language(text), "heading": chunk.heading, "text": text,
        "words": words, "page": chunk.page, "start": chunk.start, "end": chunk.end, "modified": modified,
        "lines": [number for start, end, box in chunk.lines for number in (start, end, *box)],
    }  # fmt: skip
