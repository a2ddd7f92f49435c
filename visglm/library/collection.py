"""`Library`: documents and pictures that are found again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import ConfigError, DocumentError, LibraryError, printable, shorten
from ..pictures import load_image
from ..reply import Citation
from .changes import Changes, Entry, Stats
from .chunks import chunks
from .embed import embedder
from .eyes import Eyes, embedded_size
from .files import SUFFIX, Told, look_at, readable, shown, stamp_of
from .indexing import Indexer, Read, Reading, Wanted
from .ocr import Ocr
from .pieces import LibraryLimits, Piece
from .scans import ModelOcr
from .search import Filter, Found, by_text
from .store import HEAD, Store
from .views import View, view

AT_ONCE = 256  # parts that are committed together


# In signatures of a class whose `list` is a method.
Numbers: TypeAlias = list[float]
Names: TypeAlias = list[str]
Files: TypeAlias = list[Path]
Finds: TypeAlias = list[Found]
Rows: TypeAlias = list[dict[str, Any]]
Entries: TypeAlias = list[Entry]


class Library:
    """Documents and pictures, searched by words, by meaning and by looks.

    Use `Library.open`. Any number of processes may read and write one library at a time; writers take turns.

    Attributes:
        limits: what one document may cost.
        indexer: reads its files.
    """

    def __init__(self, store: Store, eyes: Eyes | None, vectors: bool, limits: LibraryLimits, ocr: Ocr | None = None):
        self._store, self.limits = store, limits
        self._embedder = embedder(vectors)
        self.indexer = Indexer(self._embedder, eyes, limits, ocr)

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
                `s3://bucket/notes.library`; keys and the rest are read from the environment as of AWS's own tools.
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

    def sync(self, folder: str | Path, *, progress: bool | Told = True, read: Read | None = None) -> Changes:
        """Make the library hold what the folder holds now: new, changed, moved and deleted files, by their content.

        Files whose size and times are as they were are not opened.

        Args:
            progress: as in `add`.
            read: what reads the files, where it is not this process, such as `visglm.indexing.spread`.

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
        self._take(files, changes, by_hash, progress, read)
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
        self._store.replace(self.indexer.rows(source, found, "", digest, "", time.time()))
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
        return self.indexer.eyes

    def meaning(self, question: str, texts: Sequence[str]) -> Numbers:
        """The cosine between a question and each of some texts, in whatever language; [] where there are no vectors."""
        vector = self._embedder.query(question)
        if vector is None or not texts:
            return []
        found = self._embedder.passages(texts)
        return [float(vector @ other) for other in found if other is not None]

    # --- reading ---

    def _take(
        self, files: Files, changes: Changes, gone: dict[str, str], progress: bool | Told, read: Read | None = None
    ) -> None:
        """Read what is new or has changed, and commit it in groups: what was committed stays, whatever comes then.

        Args:
            gone: hash → where a file with this content was, and is no more.
            read: what reads the files; None for this process.
        """
        known = {head["source"]: head for head in self._store.heads()}
        kinds = {digest: known[source]["kind"] for digest, source in gone.items()}
        pending: list[dict[str, Any]] = []
        has_written = False
        for reading in (read or self.indexer.read_all)(self._wanted(shown(files, progress), known, changes), kinds):
            pending += self._settle(reading, known.get(reading.source), changes, gone)
            if len(pending) >= AT_ONCE:
                self._store.replace(pending)
                pending, has_written = [], True
        self._store.replace(pending)
        if has_written or pending:
            self._store.tidy()

    def _wanted(
        self, files: Iterator[Path], known: Mapping[str, Mapping[str, Any]], changes: Changes
    ) -> Iterator[Wanted]:
        """Files that have to be opened: their size and times are not those that are known."""
        for path in files:
            source = str(path)
            try:
                stamp = stamp_of(look_at(path))
            except DocumentError as error:
                changes.skipped[printable(source)] = str(error)
                continue
            head = known.get(source)
            if head is None:
                yield Wanted(source)
            elif self.indexer.is_stale(head):
                yield Wanted(source, is_new=False)
            elif head["stamp"] != stamp:
                yield Wanted(source, head["hash"], is_new=False)
            else:
                changes.unchanged += 1
                if head["problem"]:
                    changes.skipped[source] = head["problem"]

    def _settle(self, reading: Reading, head: Mapping[str, Any] | None, changes: Changes, gone: dict[str, str]) -> Rows:
        """Say what became of a file; its rows, where there are new ones."""
        source, rows = reading.source, reading.rows
        now = {"stamp": reading.stamp, "modified": reading.modified}
        if reading.refused:
            changes.skipped[source] = reading.refused
            return []
        if head is not None and not rows:
            self._store.update(source, now)
            changes.unchanged += 1
            return []
        old = gone.pop(reading.digest, None) if head is None else None
        if old is not None:
            changes.moved.append(source)
            changes.moved_from.append(old)
            if not rows:
                self._store.update(old, {"source": source, **now})
                return []
        if not rows:  # a second copy of what was moved
            return self._settle(self.indexer.read(Wanted(source), {}), head, changes, gone)
        if rows[0]["problem"]:
            changes.skipped[source] = rows[0]["problem"]
        elif old is None:
            (changes.added if head is None else changes.changed).append(source)
        return rows


def address_of(path: str | Path) -> str:
    """Where a library lies; `.library` may be left out."""
    text = str(path)
    if "://" in text:
        return text
    where = os.path.abspath(Path(text).expanduser())
    return where if where.endswith(SUFFIX) else where + SUFFIX


__all__ = ["Library"]
