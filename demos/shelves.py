"""Where a visitor's library lies, what may be done with it, and reading into it beside the page. No widgets here."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shelf import default_path
from visitors import has_left

from visglm import Library
from visglm.library import READERS, Changes

FILES = "files"  # folder inside of a library: what was dropped into it
VISITOR_LIBRARY = 256 * 2**20  # bytes of one visitor's files and what was made of them
EVERYBODYS_LIBRARIES = 4 * 2**30
LONGEST_NAME = 120  # characters of a file's name
POLL_SECONDS = 0.2
READING = threading.Lock()  # one library is read into at a time: it takes all there is of this machine
SUFFIXES = frozenset(suffix for reader in READERS.values() for suffix in reader.suffixes)


class Stopped(Exception):
    """Somebody has ended the reading, or left."""


@dataclass(frozen=True)
class Shelved:
    """A library, and what the visitor may do with it.

    Args:
        library: it.
        is_own: the visitor's alone; else the one that the page was started with.
        may_change: whether to drop, sync and remove.
    """

    library: Library
    is_own: bool
    may_change: bool

    @property
    def files(self) -> Path:
        """Where what is dropped lies."""
        return Path(self.library.path, FILES)

    @property
    def names(self) -> dict[str, str]:
        """Source → what the visitor calls it, by name; what was dropped, and everything for whoever may not know how
        this machine's folders are named, without its folder."""
        inside = str(self.files) + os.sep
        sources = [entry.source for entry in self.library.list()]
        return {
            source: Path(source).name if source.startswith(inside) or not self.may_change else source
            for source in sources
        }

    def has_room(self, num_bytes: int) -> bool:
        """Whether files of so many bytes may come."""
        if not self.is_own:
            return True
        own, everybodys = size_of(Path(self.library.path)), size_of(libraries())
        return own + num_bytes <= VISITOR_LIBRARY and everybodys + num_bytes <= EVERYBODYS_LIBRARIES

    def keep(self, name: str, data: bytes) -> Path:
        """Write a file that was dropped, in the place of one of the same name."""
        self.files.mkdir(mode=0o700, exist_ok=True)
        path = self.files / safe_name(name)
        half = path.with_name(path.name + ".part")
        half.write_bytes(data)
        half.replace(path)
        return path

    def forget(self, source: str) -> None:
        """Take a document out; what was dropped is deleted, and nothing of one's own is left in the library's files."""
        self.library.remove([source])
        if Path(source).parent == self.files:
            Path(source).unlink(missing_ok=True)
        if self.is_own:
            self.library.compact()


def libraries() -> Path:
    """Where visitors' libraries lie."""
    return default_path().parent / "libraries"


def open_own(visitor: str | None) -> tuple[Shelved, tempfile.TemporaryDirectory | None]:
    """A visitor's own, and the folder that it lies in where it is gone with the tab.

    Args:
        visitor: whose; None to keep nothing.
    """
    folder = None if visitor else tempfile.TemporaryDirectory(prefix="visglm-library-")
    where = libraries() if folder is None else Path(folder.name)
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    where.chmod(0o700)
    return Shelved(Library.open(where / (visitor or "own")), is_own=True, may_change=True), folder


def safe_name(name: str) -> str:
    """A file's name that is one and nothing else: no folder, not hidden, nothing that steers."""
    name = re.sub(r"[\x00-\x1f\x7f/\\:*?\"<>|]", "_", name).encode("utf-8", "replace").decode().lstrip(".") or "_"
    stem, suffix = os.path.splitext(name)
    while len((stem + suffix).encode()) > LONGEST_NAME and stem:
        stem = stem[:-1]
    return (stem or "_") + suffix


def can_be_read(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and len(Path(name).suffix) < 10


def size_of(folder: Path) -> int:
    """Bytes of the files below."""
    paths = (os.path.join(where, name) for where, _, names in os.walk(folder) for name in names)
    return sum(os.path.getsize(path) for path in paths if os.path.exists(path))


class Reading(threading.Thread):
    """Reads files into a library beside the page, which may look away and come back.

    Args:
        act: does it, told whom to tell how far it is.
        session: whose it is; it ends when that visitor leaves.
    """

    def __init__(self, act: Callable[[Callable[[int, int], None]], Changes], session: str = ""):
        super().__init__(name="visglm-reading", daemon=True)
        self.act, self.session = act, session
        self.stopped = threading.Event()
        self.is_waiting = True
        self.num_done = self.num = 0
        self.changes: Changes | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not READING.acquire(timeout=POLL_SECONDS):
                self.tell(0, 0)
            try:
                self.is_waiting = False
                self.changes = self.act(self.tell)
            finally:
                READING.release()
        except Stopped:
            pass
        except Exception as error:  # shown by the page, which is another thread
            self.error = error

    def tell(self, done: int, num: int) -> None:
        """How far it is; ends it where that is wanted."""
        self.num_done, self.num = done, num
        if self.stopped.is_set() or (self.session and has_left(self.session)):
            raise Stopped
