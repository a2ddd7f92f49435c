"""Where a library lies: one LanceDB table, a folder or an address of an object store.

There is one table, so that one commit is the whole truth about a document: its parts and its head (part -1, which says
what it was read from) appear, change and vanish together, whenever a process is killed. Writers on one machine take
turns; on an object store LanceDB itself sees to it that nobody's commit is lost.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..errors import LibraryError, VisGLMError, printable, require, shorten
from .embed import SIZE

FORMAT = 1
TABLE = "parts"
HEAD = -1
LOCK = ".writer.lock"
# What LanceDB says when the system refuses to write: "LanceError(IO): No space left on device (os error 28), …".
REFUSED = re.compile(r"([^():\s][^():]*) \(os error \d+\)")
# An object store has no lock: what LanceDB says when another writer tidied in the same moment, and has not tried again.
PREEMPTED = "Retryable commit conflict"
TRIES, PAUSE_SECONDS = 20, 2.0
LOCK_SECONDS = 600.0  # that a writer waits for another one's commit or compaction
# A brute-force scan is exact and quick below; above, an index of vectors is made by `tidy`.
ROWS_WITHOUT_INDEX = 20_000
COLUMNS = (
    "source", "part", "kind", "language", "heading", "text", "page", "lines", "start", "end", "modified"
)  # fmt: skip
MISSING = "there is no library at {}. Make one of a folder: visglm library sync LIBRARY FOLDER."


def quoted(text: str) -> str:
    """As a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def among(column: str, values: Sequence[str]) -> str:
    """A condition: one of these."""
    return f"{column} IN ({', '.join(map(quoted, values))})" if values else "false"


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """What fails at an object store, as an error of ours: LanceDB's are of many types and pages long."""
    try:
        yield
    except VisGLMError:
        raise
    except Exception as error:
        said = re.search(r"<Message>([^<]+)<|(No object store provider[^\n]*)|(kind: Connect)", str(error))
        reason = next(filter(None, said.groups())) if said else f"{error!s:.200}"
        reason = "nobody answers there" if reason == "kind: Connect" else reason.rstrip(".")
        raise LibraryError(
            f"{shorten(address)} cannot be reached, or does not let us in ({printable(reason)}). The bucket has to "
            "be there; keys, region and endpoint are read from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION "
            "and AWS_ENDPOINT, or from storage_options."
        ) from error


class Store:
    """The table of a library.

    Args:
        address: a folder, or an address such as `s3://bucket/notes.library`.
        create: make it where there is none.
        look_size: numbers that a picture's vector has, in a new library.
        options: of the object store.

    Raises:
        LibraryError: there is none and none is to be made, or what is there is something else.
    """

    def __init__(self, address: str, create: bool, look_size: int, options: Mapping[str, str] | None = None):
        lancedb = require("library", "lancedb")
        self.address, self.is_local = address, "://" not in address
        if self.is_local:
            self._check_folder(Path(address), create)

        def connect() -> Any:
            return lancedb.connect(
                address, read_consistency_interval=timedelta(0), storage_options=dict(options or {}) or None
            )

        if not (self.is_local and self._is_whole(connect)):
            with self.writing():
                self._database = connect()
                if TABLE not in self._database.list_tables().tables:
                    if not create:
                        raise LibraryError(MISSING.format(shorten(address)))
                    self._make(look_size)
                self.table = self._database.open_table(TABLE)
        self.notes = self._read_notes()

    def _is_whole(self, connect: Callable[[], Any]) -> bool:
        """Open what is there without waiting for a turn: people ask while others write, and where nobody may write. Not
        where a writer is making it: then its table is missing, or its index."""
        if not os.path.isdir(os.path.join(self.address, f"{TABLE}.lance")):
            return False
        with suppress(OSError, RuntimeError, ValueError):
            self._database = connect()
            self.table = self._database.open_table(TABLE)
            return self._has_index("words")
        return False

    def _check_folder(self, folder: Path, create: bool) -> None:
        if folder.exists() and not folder.is_dir():
            raise LibraryError(f"{shorten(str(folder))} is a file, and a library is a folder. Name another one.")
        if (folder / f"{TABLE}.lance").is_dir():
            return
        if not create:
            raise LibraryError(MISSING.format(shorten(str(folder))))
        if folder.is_dir() and any(name != LOCK for name in os.listdir(folder)):
            raise LibraryError(
                f"{shorten(str(folder))} holds other files, and is no library. Name a new folder, such as "
                "notes.library, and add this one's files to it."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LibraryError(f"{shorten(str(folder))} cannot be made ({error.strerror}).") from error

    def _make(self, look_size: int) -> None:
        pa = require("library", "pyarrow")
        text, whole = pa.string(), pa.int32()
        kinds = {
            "source": text, "part": whole, "kind": text, "language": text, "heading": text, "text": text, "words": text,
            "page": whole, "lines": pa.list_(pa.float32()), "start": pa.int64(), "end": pa.int64(),
            "modified": pa.float64(), "vector": pa.list_(pa.float32(), SIZE),
            "look": pa.list_(pa.float32(), look_size), "looker": text,
            # of heads alone
            "stamp": text, "hash": text, "recipe": text, "problem": text, "num_parts": whole,
        }  # fmt: skip
        notes = json.dumps({"format": FORMAT, "look_size": look_size})
        schema = pa.schema(list(kinds.items()), metadata={"visglm": notes})
        self._database.create_table(TABLE, schema=schema, exist_ok=True)
        self.table = self._database.open_table(TABLE)
        self._index_words()

    def _index_words(self) -> None:
        """By words as ICU parts them, which knows Chinese ones and needs no dictionary beside it; English ones without
        their endings."""
        index = require("library", "lancedb.index")
        self.table.create_index(
            "words", replace=True,
            config=index.FTS(
                base_tokenizer="icu", stem=True, language="English", remove_stop_words=False, lower_case=True
            ),
        )  # fmt: skip

    def _read_notes(self) -> dict[str, Any]:
        raw = (self.table.schema.metadata or {}).get(b"visglm", b"{}")
        notes = json.loads(raw)
        if notes.get("format") != FORMAT:
            raise LibraryError(
                f"{shorten(self.address)} is in format {notes.get('format')}, and this visglm reads {FORMAT}. Make a "
                "new library and add the files again."
            )
        return notes

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One writer at a time, of all processes on this machine. A process that is killed holds nothing up.

        Raises:
            LibraryError: another one has been writing for too long, the system refuses (no room, no permission), or
                the object store does not take it.
        """
        if not self.is_local:
            with reaching(self.address):
                yield
            return
        filelock = require("library", "filelock")
        try:
            with filelock.FileLock(os.path.join(self.address, LOCK), timeout=LOCK_SECONDS):
                yield
        except filelock.Timeout:
            raise LibraryError(
                f"another process has been writing to {shorten(self.address)} for {LOCK_SECONDS:.0f} seconds. Try "
                "again when it is done."
            ) from None
        except (OSError, RuntimeError) as error:
            if isinstance(error, OSError) and error.strerror:
                reason = error.strerror
            elif refused := REFUSED.search(str(error)):
                reason = refused[1]
            else:
                raise
            raise LibraryError(
                f"{shorten(self.address)} cannot be written to ({reason}). What was in it before is whole. "
                "Make room, or name another one."
            ) from error

    def replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put documents, heads and all, in the place of what there was of them: one commit."""
        if not rows:
            return
        pa = require("library", "pyarrow")
        data = pa.Table.from_pylist(list(rows), schema=self.table.schema)
        sources = sorted({row["source"] for row in rows})
        with self.writing():
            (
                self.table.merge_insert(["source", "part"])
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .when_not_matched_by_source_delete(among("source", sources))
                .execute(data, on_bad_vectors="null")
            )

    def update(self, source: str, values: Mapping[str, Any]) -> None:
        """Set columns of a document's rows."""
        with self.writing():
            self.table.update(where=among("source", [source]), values=dict(values))

    def delete(self, sources: Sequence[str]) -> None:
        """Take documents out: they are found no more. Their bytes go with `compact`."""
        if sources:
            with self.writing():
                self.table.delete(among("source", list(sources)))

    def heads(self) -> list[dict[str, Any]]:
        """A row for each document."""
        columns = ["source", "stamp", "hash", "recipe", "problem", "num_parts", "modified", "kind"]
        return self.table.search().where(f"part = {HEAD}").select(columns).limit(None).to_list()

    def beside(self, source: str, start: int, end: int, kind: str) -> list[dict[str, Any]]:
        """The part of a document that holds this place, and its neighbours, in their order; [] where there is none."""
        held = f"start <= {int(start)} AND {quoted('end')} >= {int(end)}".replace("'", '"')
        one = f"{among('source', [source])} AND part > {HEAD} AND kind = {quoted(kind)} AND {held}"
        found = self.table.search().where(one).select(["part"]).limit(None).to_list()
        if not found:
            return []
        part = min(row["part"] for row in found)
        near = f"{among('source', [source])} AND part > {HEAD} AND part >= {part - 1} AND part <= {part + 1}"
        rows = self.table.search().where(near).select([*COLUMNS]).limit(None).to_list()
        return sorted(rows, key=lambda row: row["part"])

    def by_words(self, text: str, where: str, limit: int) -> list[dict[str, Any]]:
        """Best first, `_score` by BM25."""
        query = self.table.search(text, query_type="fts", fts_columns="words").where(where, prefilter=True)
        return query.select([*COLUMNS, "_score"]).limit(limit).to_list()

    def by_vector(self, column: str, vector: Any, where: str, limit: int) -> list[dict[str, Any]]:
        """Nearest first, `_distance` is 1 less the cosine."""
        query = self.table.search(vector, vector_column_name=column).distance_type("cosine")
        if self._has_index(column):
            query = query.nprobes(32).refine_factor(4)
        query = query.where(f"({where}) AND {column} IS NOT NULL", prefilter=True)
        return query.select([*COLUMNS, "_distance"]).limit(limit).to_list()

    def count(self, where: str | None = None) -> int:
        """Rows that fulfil a condition."""
        return self.table.count_rows(where)

    def num_bytes(self) -> int | None:
        """On disk; None for an object store."""
        if not self.is_local:
            return None
        files = (os.path.join(folder, name) for folder, _, names in os.walk(self.address) for name in names)
        return sum(os.path.getsize(file) for file in files if os.path.exists(file))

    def tidy(self) -> None:
        """Put what was written lately into the indices."""
        with self.writing(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for left in reversed(range(TRIES)):
                try:
                    self._tidy()
                    break
                except Exception as error:  # of which type it is, differs
                    if PREEMPTED not in str(error) or not left:
                        raise
                    time.sleep(random.uniform(0, PAUSE_SECONDS))
                    self.table.checkout_latest()

    def _tidy(self) -> None:
        self.table.optimize()
        if self.count("vector IS NOT NULL") > ROWS_WITHOUT_INDEX and not self._has_index("vector"):
            index = require("library", "lancedb.index")
            self.table.create_index("vector", config=index.IvfPq(distance_type="cosine"))

    def compact(self) -> None:
        """Write the table anew without anything that was deleted or replaced, and remove all older files.

        Who reads it in this moment may have to ask again.
        """
        with self.writing(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schema = self.table.schema
            data = self.table.to_arrow()  # deleted rows are not among these
            self._database.create_table(TABLE, data=data, schema=schema, mode="overwrite", on_bad_vectors="null")
            self.table = self._database.open_table(TABLE)
            self._index_words()
            self.table.optimize(cleanup_older_than=timedelta(0), delete_unverified=self.is_local)

    def _has_index(self, column: str) -> bool:
        return any(column in index.columns for index in self.table.list_indices())
