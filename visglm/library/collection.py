"""`Library`: documents and pictures that are found again."""

from __future__ import annotations

import hashlib
import os
import stat as modes
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from ..errors import ConfigError, DocumentError, LibraryError, printable, shorten
from ..pictures import load_image
from ..prompt import detect_language
from ..reply import Citation
from .chunks import Chunk, chunks
from .embed import NoEmbedder, as_list, embedder
from .eyes import Eyes, embedded_eyes, embedded_size
from .ocr import Ocr, RapidOcr
from .pieces import LibraryLimits, Piece, check_size
from .readers import READERS, read, reader_of
from .scans import ModelOcr
from .search import Filter, Found, by_text
from .store import FORMAT, HEAD, Store
from .views import View, view

SUFFIX = ".library"
AT_ONCE = 256  # parts that are committed together
UNREAD = "-"  # in a recipe: nobody looked at a picture, since there was none


@dataclass(frozen=True)
class Entry:
    """A document of a library.

    Args:
        source: the file.
        kind: the reader.
        num_parts: that it was parted into.
        problem: why nothing of it can be found; "" when all is well.
        modified: when the file was, in seconds of the epoch.
    """

    source: str
    kind: str
    num_parts: int
    problem: str
    modified: float


@dataclass
class Changes:
    """What an `add` or `sync` did, file by file.

    Args:
        moved: where they are now.
        moved_from: where they were.
        skipped: file → why it was.
        ignored: files in folders of a kind that nobody reads.
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    moved_from: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: int = 0
    ignored: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = {
            "added": len(self.added), "changed": len(self.changed), "moved": len(self.moved),
            "removed": len(self.removed), "unchanged": self.unchanged, "skipped": len(self.skipped),
        }  # fmt: skip
        return ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "nothing to do"


@dataclass(frozen=True)
class Stats:
    """How large a library is: documents, those of them that could not be read, parts, pictures, and bytes on disk (None
    for an object store)."""

    documents: int
    refused: int
    parts: int
    pictures: int
    num_bytes: int | None


Told = Callable[[int, int], object]  # how many files are done, and of how many
# In signatures of a class whose `list` is a method.
Numbers: TypeAlias = list[float]
Names: TypeAlias = list[str]
Files: TypeAlias = list[Path]
Finds: TypeAlias = list[Found]
Rows: TypeAlias = list[dict[str, Any]]
Entries: TypeAlias = list[Entry]
Chunks: TypeAlias = list[Chunk]


class Library:
    """Documents and pictures, searched by words, by meaning and by looks.

    Use `Library.open`. Any number of processes may read and write one library at a time; writers take turns.
    """

    def __init__(self, store: Store, eyes: Eyes | None, vectors: bool, limits: LibraryLimits, ocr: Ocr | None = None):
        self._store, self._eyes, self.limits, self._ocr = store, eyes, limits, ocr or RapidOcr()
        self._embedder = embedder(vectors)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        create: bool = True,
        vlm: Any = None,
        reader: Any = None,
        vectors: bool = True,
        limits: LibraryLimits | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> Library:
        """Open a library, or make an empty one.

        Args:
            path: its folder, such as `notes.library`; the ending may be left out. Or an address such as
                `s3://bucket/notes.library`, which is LanceDB's own matter and was not tried.
            create: make it where there is none.
            vlm: a `VisGLM` that looks at the pictures; by default the embedded visglm-tiny, which is loaded when the
                first picture comes.
            reader: a `VisGLM` of GLM-OCR's family, which reads scans and what is written in pictures, tables and
                formulas among it, as Markdown; by default RapidOCR, where the extra `ocr` is installed. What somebody
                else has read is read again when it is added or synced.
            vectors: find texts by their meaning, too, which takes most of the time of adding them.
            limits: what one document may cost.
            storage_options: of the object store, such as keys.

        Raises:
            LibraryError: there is none, or what is there is something else.
            ConfigError: `reader` is a model that does not read pages.
        """
        ocr = None if reader is None else ModelOcr(reader)
        eyes = None if vlm is None else Eyes(vlm.model, vlm.processor)
        size = embedded_size() if eyes is None else eyes.size
        store = Store(address_of(path), create, size, storage_options)
        expected = store.notes["look_size"]
        if eyes is not None and eyes.size != expected:
            raise LibraryError(
                f"the pictures of {shorten(str(path))} were looked at by a model with {expected} numbers to a token, "
                f"and this one has {eyes.size}. Open it with that one, or make a new library."
            )
        return cls(store, eyes, vectors, limits or LibraryLimits(), ocr)

    @property
    def path(self) -> str:
        """Its folder or address."""
        return self._store.address

    def __repr__(self) -> str:
        return f"Library({self.path!r})"

    def add(self, paths: str | Path | Iterable[str | Path], *, progress: bool | Told = True) -> Changes:
        """Read files, and what is in folders. One that is there already is read again if it has changed.

        Args:
            progress: show a bar on stderr; or a function that is told before each file, and at the end, how many are
                done and of how many. What it raises ends the reading; what was committed stays.

        Raises:
            LibraryError: a path does not exist.
        """
        changes = Changes()
        files: list[Path] = []
        for path in [paths] if isinstance(paths, str | Path) else list(paths):
            where = Path(os.path.abspath(Path(path).expanduser()))
            if not where.exists():
                raise LibraryError(f"{shorten(str(path))} does not exist. Nothing was added.")
            files += readable(where, changes) if where.is_dir() else [where]
        self._take(files, changes, {}, progress)
        return changes

    def sync(self, folder: str | Path, *, progress: bool | Told = True) -> Changes:
        """Make the library hold what the folder holds now: new, changed, moved and deleted files, by their content.

        Files whose size and times are as they were are not opened.

        Args:
            progress: as in `add`.

        Raises:
            LibraryError: there is no such folder.
        """
        where = Path(os.path.abspath(Path(folder).expanduser()))
        if not where.is_dir():
            raise LibraryError(f"{shorten(str(folder))} is no folder. Nothing was changed.")
        changes = Changes()
        files = readable(where, changes)
        here = {str(file) for file in files}
        inside = str(where) + os.sep
        gone = {
            head["source"]: head
            for head in self._store.heads()
            if head["source"].startswith(inside) and head["source"] not in here
        }
        by_hash = {head["hash"]: source for source, head in gone.items()}
        self._take(files, changes, by_hash, progress)
        self._store.delete(sorted(gone))
        changes.removed = sorted(source for source in gone if source not in changes.moved_from)
        return changes

    def put(self, source: str, pieces: Iterable[Piece]) -> None:
        """Add what somebody else has read, in the place of what there was of this source.

        Args:
            source: what it is cited as: an address, or any other name.
            pieces: what it says, in its order.
        """
        found = list(chunks(pieces))
        digest = hashlib.sha256("\n".join(chunk.text for chunk in found).encode("utf-8", "replace")).hexdigest()
        self._store.replace(self._rows(source, found, "", digest, "", time.time()))
        self._store.tidy()

    def remove(self, sources: str | Path | Iterable[str | Path]) -> Names:
        """Take files, or all in a folder, out of the library; the files stay. They are found no more from now on, and
        `compact` removes what is left of them in the library's files.

        Returns:
            What was taken out.

        Raises:
            LibraryError: one of them is not in the library.
        """
        known = [head["source"] for head in self._store.heads()]
        chosen: list[str] = []
        for source in [sources] if isinstance(sources, str | Path) else list(sources):
            where = os.path.abspath(Path(source).expanduser())
            matching = [name for name in known if name in (where, str(source)) or name.startswith(where + os.sep)]
            if not matching:
                raise LibraryError(f"{shorten(str(source))} is not in the library. Nothing was removed.")
            chosen += matching
        self._store.delete(sorted(set(chosen)))
        return sorted(set(chosen))

    def list(self) -> Entries:
        """All documents by name, those that could not be read among them."""
        heads = sorted(self._store.heads(), key=lambda head: head["source"])
        return [
            Entry(head["source"], head["kind"], head["num_parts"], head["problem"], head["modified"]) for head in heads
        ]

    def stats(self) -> Stats:
        """How large it is."""
        count = self._store.count
        return Stats(
            documents=count(f"part = {HEAD}"), refused=count(f"part = {HEAD} AND problem <> ''"),
            parts=count(f"part > {HEAD}"), pictures=count("kind = 'picture' AND look IS NOT NULL"),
            num_bytes=self._store.num_bytes(),
        )  # fmt: skip

    def compact(self) -> None:
        """Remove what was deleted or replaced from the library's files, too, and put them in order."""
        self._store.compact()

    def search(
        self,
        query: Any,
        *,
        limit: int = 10,
        image: Any = None,
        files: str | Iterable[str] | None = None,
        kinds: str | Iterable[str] | None = None,
        languages: str | Iterable[str] | None = None,
        after: Any = None,
        before: Any = None,
    ) -> Finds:
        """Texts and pictures, best first.

        Args:
            query: a question or words (`str`), or a picture in any other form that `load_image` takes (a path as
                `Path`): then pictures that show the same, and documents with such pictures in them.
            limit: how many, at most.
            image: a picture that goes with words.
            files: patterns such as `*.pdf`, of the end of a path.
            kinds: "text", "picture".
            languages: "zh", "en"; pictures are of none.
            after: when the file was modified, at the earliest; a datetime, or seconds of the epoch.
            before: the same, and not later.

        Raises:
            ConfigError: an argument is out of range.
            ImageError: the picture cannot be read.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"limit must be at least 1, a whole number; got {limit!r:.80}.")
        wanted = Filter.of(files=files, kinds=kinds, languages=languages, after=after, before=before)
        text, image = (query, image) if isinstance(query, str) else ("", query if image is None else image)
        vector = self._embedder.query(text) if text.strip() else None
        look = looker = None
        if image is not None:
            picture = load_image(image, limits=self.limits.images)
            look, looker = self.eyes.look([picture])[0], self.eyes.name
        return by_text(self._store, text, vector, wanted, limit, look, looker or "")

    def view(self, citation: Citation | Found) -> View:
        """What a citation, or something that was found, leads to: the quote within its surroundings, and the page of
        a PDF or the picture that it stands on.

        Raises:
            LibraryError: it is not in the library any more.
        """
        return view(self._store, self.limits, citation)

    @property
    def eyes(self) -> Eyes:
        """What looks at pictures."""
        if self._eyes is None:
            self._eyes = embedded_eyes()
        return self._eyes

    def meaning(self, question: str, texts: Sequence[str]) -> Numbers:
        """The cosine between a question and each of some texts, in whatever language; [] where there are no vectors."""
        vector = self._embedder.query(question)
        if vector is None or not texts:
            return []
        found = self._embedder.passages(texts)
        return [float(vector @ other) for other in found if other is not None]

    # --- reading ---

    def _take(self, files: Files, changes: Changes, gone: dict[str, str], progress: bool | Told) -> None:
        """Read what is new or has changed, and commit it in groups: what was committed stays, whatever comes then.

        Args:
            gone: hash → where a file with this content was, and is no more.
        """
        known = {head["source"]: head for head in self._store.heads()}
        pending: list[dict[str, Any]] = []
        has_written = False
        for path in shown(files, progress):
            source = str(path)
            head = known.get(source)
            try:
                source.encode()
                status = path.stat()
                if not modes.S_ISREG(status.st_mode):
                    raise DocumentError("it is not a regular file.")
                stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
                if head is not None and head["stamp"] == stamp and not self._is_stale(head):
                    changes.unchanged += 1
                    if head["problem"]:
                        changes.skipped[source] = head["problem"]
                    continue
                check_size(status.st_size, self.limits.max_bytes, "bytes")
                with path.open("rb") as file:
                    data = file.read(self.limits.max_bytes + 1)
                check_size(len(data), self.limits.max_bytes, "bytes")
            except UnicodeEncodeError:
                changes.skipped[printable(source)] = "its name is no text."
                continue
            except OSError as error:
                changes.skipped[source] = f"it cannot be opened ({error.strerror})."
                continue
            except DocumentError as error:
                changes.skipped[source] = str(error)
                continue
            digest = hashlib.sha256(data).hexdigest()
            if head is not None and head["hash"] == digest and not self._is_stale(head):
                self._store.update(source, {"stamp": stamp, "modified": status.st_mtime})
                changes.unchanged += 1
                continue
            old = gone.pop(digest, None) if head is None else None
            if old is not None:
                changes.moved.append(source)
                changes.moved_from.append(old)
                if reader_of(source) == reader_of(old) != "picture":  # whose name is a part of what is found
                    self._store.update(old, {"source": source, "stamp": stamp, "modified": status.st_mtime})
                    continue
            rows = self._rows(source, *self._read(source, data), digest, stamp, status.st_mtime)
            if rows[0]["problem"]:
                changes.skipped[source] = rows[0]["problem"]
            elif old is None:
                (changes.added if head is None else changes.changed).append(source)
            pending += rows
            if len(pending) >= AT_ONCE:
                self._store.replace(pending)
                pending, has_written = [], True
        self._store.replace(pending)
        if has_written or pending:
            self._store.tidy()

    def _is_stale(self, head: Mapping[str, Any]) -> bool:
        """Whether the same file would be read as something else now: with vectors, by other eyes or another reader."""
        form, vectors, looker, reader = (head["recipe"].split("\t") + [""] * 3)[:4]
        if form != str(FORMAT) or (vectors != self._embedder.name and bool(self._embedder.name)):
            return True
        row = READERS.get(head["kind"])  # none for what nobody reads
        if self._ocr.name and reader != self._ocr.name and row is not None and row.meets_text:
            return True
        return looker != UNREAD and self._eyes is not None and looker != self._eyes.name

    def _read(self, source: str, data: bytes) -> tuple[Chunks, str]:
        """The parts of a document, or why there are none."""
        try:
            found = list(chunks(read(data, source, self.limits, self._ocr)))
        except DocumentError as error:
            return [], str(error)
        return found, "" if found else "there is no text and no picture in it."

    def _rows(self, source: str, found: Chunks, problem: str, digest: str, stamp: str, modified: float) -> Rows:
        """A document's head and parts."""
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
        for part, vector in zip(parts, self._embedder.passages(texts), strict=True):
            part["vector"] = as_list(vector)
        head = {
            "source": source, "part": HEAD, "kind": reader_of(source) or "", "language": "", "heading": "", "text": "",
            "words": "", "modified": modified, "stamp": stamp, "hash": digest, "problem": problem,
            "recipe": "\t".join((str(FORMAT), self._embedder.name, looker, self._ocr.name)), "num_parts": len(parts),
        }  # fmt: skip
        return [head, *parts]

    def _look(self, pictures: Chunks) -> tuple[Any, Names]:
        images: list[Image.Image] = [chunk.image for chunk in pictures if chunk.image is not None]
        return (self.eyes.look(images), self.eyes.describe(images)) if images else ([], [])


def part_of(source: str, number: int, chunk: Chunk, text: str, modified: float) -> dict[str, Any]:
    """A part as a row of the store."""
    is_picture = chunk.image is not None
    around = [Path(source).stem, chunk.heading, chunk.text] if is_picture else [chunk.heading]
    text = text.encode("utf-8", "replace").decode()
    words = "\n".join(filter(None, (*around, text))).encode("utf-8", "replace").decode()
    return {
        "source": source, "part": number, "kind": "picture" if is_picture else "text",
        "language": "" if is_picture else detect_language(text), "heading": chunk.heading, "text": text,
        "words": words, "page": chunk.page, "start": chunk.start, "end": chunk.end, "modified": modified,
        "lines": [number for start, end, box in chunk.lines for number in (start, end, *box)],
    }  # fmt: skip


def readable(folder: Path, changes: Changes) -> list[Path]:
    """Files in a folder and those below that somebody reads; hidden ones, libraries and links to folders are left
    out."""
    found: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(SUFFIX))
        for name in sorted(names):
            if name.startswith("."):
                continue
            if reader_of(name) is None:
                changes.ignored += 1
            else:
                found.append(Path(where, name))
    return found


def shown(files: list[Path], progress: bool | Told) -> Iterator[Path]:
    """The files, with a bar or another reader of how far it is where one is wanted."""
    from tqdm import tqdm

    if callable(progress):
        for number, file in enumerate(files):
            progress(number, len(files))
            yield file
        progress(len(files), len(files))
    else:
        yield from tqdm(files, unit="file", disable=not progress)


def address_of(path: str | Path) -> str:
    """Where a library lies; `.library` may be left out."""
    text = str(path)
    if "://" in text:
        return text
    where = os.path.abspath(Path(text).expanduser())
    return where if where.endswith(SUFFIX) else where + SUFFIX


__all__ = ["Changes", "Entry", "Library", "NoEmbedder", "Stats"]
