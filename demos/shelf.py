"""The talks a visitor has had, kept on this machine: one private file, in which each finds only his or her own."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_data_path

VISITOR_BYTES = 256 * 2**20  # of one visitor's talks
MEMORY_BYTES = 32 * 2**20  # of those that are kept in memory, while the tab is open
EVERYBODYS_BYTES = 4 * 2**30
TABLE = """
CREATE TABLE IF NOT EXISTS talks
(visitor TEXT, key TEXT, title TEXT, changed REAL, size INTEGER, body TEXT, PRIMARY KEY (visitor, key))
"""


class Kept(NamedTuple):
    """A row of the list."""

    key: str
    title: str
    changed: float  # seconds since 1970


class ShelfFull(Exception):
    """There is no room for this talk."""


class Shelf:
    """Talks of one visitor by key; each is the text of `conversation.to_json`.

    Args:
        visitor: whose they are: a digest, see `visitors.visitor`.
        path: the file of everybody's; None to keep nothing longer than this object lives.
    """

    def __init__(self, visitor: str, path: Path | None):
        self.visitor, self.path = visitor, path
        if path is None:
            self.memory = sqlite3.connect(":memory:", check_same_thread=False)
            self.memory.execute(TABLE)
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # before SQLite makes it as everybody's umask says
        path.chmod(0o600)
        with self.opened() as database:
            database.execute(TABLE)

    @contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """What is deleted is overwritten, not only unlisted."""
        if self.path is None:
            with self.memory:
                yield self.memory
            return
        with closing(sqlite3.connect(self.path, timeout=30)) as database, database:
            database.execute("PRAGMA secure_delete = ON")
            yield database

    def talks(self) -> list[Kept]:
        """Newest first."""
        query = "SELECT key, title, changed FROM talks WHERE visitor = ? ORDER BY changed DESC"
        with self.opened() as database:
            return [Kept(*row) for row in database.execute(query, (self.visitor,))]

    def read(self, key: str) -> str | None:
        with self.opened() as database:
            row = database.execute(
                "SELECT body FROM talks WHERE visitor = ? AND key = ?", (self.visitor, key)
            ).fetchone()
        return row and row[0]

    def write(self, key: str, title: str, body: str, changed: float | None = None) -> None:
        """Keep a talk, in the place of what was kept under this key.

        Raises:
            ShelfFull: the bound of this visitor, of all, or of the disk.
        """
        size = len(body.encode())
        others = "SELECT coalesce(sum(size), 0) FROM talks WHERE NOT (visitor = ? AND key = ?)"
        mine = (self.visitor, key)
        try:
            with self.opened() as database:
                (everybodys,) = database.execute(others, mine).fetchone()
                (own,) = database.execute(f"{others} AND visitor = ?", (*mine, self.visitor)).fetchone()
                if own + size > (VISITOR_BYTES if self.path else MEMORY_BYTES) or everybodys + size > EVERYBODYS_BYTES:
                    raise ShelfFull
                row = (*mine, title, changed or time.time(), size, body)
                database.execute("INSERT OR REPLACE INTO talks VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.OperationalError as error:  # the disk is full, or not to be written to
            raise ShelfFull(str(error)) from error

    def forget(self, key: str) -> None:
        with self.opened() as database:
            database.execute("DELETE FROM talks WHERE visitor = ? AND key = ?", (self.visitor, key))


def default_path() -> Path:
    """Where this machine's user keeps what programs write for them."""
    return user_data_path("visglm", appauthor=False) / "page" / "talks.sqlite"
