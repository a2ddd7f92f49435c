"""The folder of results: shards that are whole or not there, and what they say is done."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError, VisGLMError, printable, require, shown
from .items import is_address, open_address

FACTS = "describe.json"  # what was asked, of which all shards are
LOCK = ".lock"
# One row for each picture: its id, of path or key and of content; the answer or what was wrong.
COLUMNS = ("id", "image", "sha256", "stamp", "text", "finish_reason", "error")

Row = dict[str, Any]


def to_lines(rows: Sequence[Row]) -> bytes:
    # A name on the disk may be no text; what is none goes as the escape that JSON has for it.
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")


def from_lines(data: bytes) -> list[Row]:
    return [json.loads(line) for line in data.splitlines()]


def to_parquet(rows: Sequence[Row]) -> bytes:
    pyarrow, parquet = require("describe", "pyarrow", "pyarrow.parquet")
    columns = {name: [as_text(row[name]) for row in rows] for name in COLUMNS}
    out = io.BytesIO()
    schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
    parquet.write_table(pyarrow.table(columns, schema=schema), out, compression="zstd")
    return out.getvalue()


def as_text(value: str | None) -> str | None:
    """What is no text, of a file's name, as the escapes that it would be in a message."""
    return value and value.encode("utf-8", "backslashreplace").decode()


def from_parquet(data: bytes) -> list[Row]:
    return require("describe", "pyarrow.parquet").read_table(io.BytesIO(data)).to_pylist()


class Format(NamedTuple):
    """A row of `FORMATS`."""

    suffix: str
    write: Callable[[Sequence[Row]], bytes]
    read: Callable[[bytes], list[Row]]


FORMATS: Mapping[str, Format] = {
    "jsonl": Format(".jsonl", to_lines, from_lines),
    "parquet": Format(".parquet", to_parquet, from_parquet),
}


class Done:
    """What shards hold: eight bytes for each name, version and id, so that a million take 24 MB."""

    def __init__(self) -> None:
        self._written = bytearray()
        self._digests: np.ndarray | None = None
        self.count = 0

    def add(self, row: Row) -> None:
        self.count += 1
        for parts in ((row["image"],), (row["image"], row["stamp"]), ("", row["id"])):
            self._written += digest(parts)
        self._digests = None

    def _has(self, *parts: str) -> bool:
        if self._digests is None:
            self._digests = np.sort(np.frombuffer(bytes(self._written), dtype=np.uint64))
        one = np.frombuffer(digest(parts), dtype=np.uint64)[0]
        place = int(np.searchsorted(self._digests, one))
        return place < len(self._digests) and bool(self._digests[place] == one)

    def has_name(self, name: str) -> bool:
        return self._has(name)

    def has_version(self, name: str, stamp: str) -> bool:
        return self._has(name, stamp)

    def has_id(self, identity: str) -> bool:
        return self._has("", identity)


def digest(parts: Iterable[str]) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "backslashreplace"), digest_size=8).digest()


def reason_of(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{error!s:.200}" or type(error).__name__


class Results:
    """A folder of shards, on this machine or at an address of fsspec.

    Args:
        address: of the folder.
        form: of its shards, a key of `FORMATS`.
    """

    def __init__(self, address: str, form: str):
        self.address, self.form = address, form
        self._held = ExitStack()
        if is_address(address):
            self._system, self._root = open_address(address)
        else:
            self._system, self._root = None, os.path.abspath(address)

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "form": self.form}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Make the folder, or go on in it, alone.

        Raises:
            ConfigError: something else was asked there, somebody is at work in it, or it cannot be written.
        """
        facts = {"format": self.form, **facts}
        try:
            if self._system is None:
                os.makedirs(self._root, exist_ok=True)
                self._lock()
            else:
                self._system.makedirs(self._root, exist_ok=True)
            self._sweep()
            names = self._names()
            has_shards = any(name.startswith("part-") for name in names)
            if has_shards and FACTS not in names:
                raise ConfigError(
                    f"{printable(self.address)} has shards of results and no {FACTS}, so that nobody can tell what "
                    "was asked. Take another folder."
                )
            before: Any = json.loads(self._read(FACTS)) if FACTS in names else None
            if not has_shards and before != facts:  # of what was begun and never answered nothing is lost
                self._write(FACTS, (json.dumps(facts, ensure_ascii=False, indent=1) + "\n").encode())
                before = facts
        except VisGLMError:
            raise
        except Exception as error:  # a store of objects has errors of its own
            raise ConfigError(
                f"{printable(self.address)} cannot hold results ({printable(reason_of(error))}). Name a folder that is "
                "there, or can be made, and written to."
            ) from None
        for name, value in facts.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"the results in {printable(self.address)} were begun with {name} {shown(before.get(name))}; got "
                    f"{shown(value)}. Go on as it was begun, or take another folder."
                )

    def close(self) -> None:
        """Let others work in the folder."""
        self._held.close()

    def done(self) -> Done:
        """What is done. A shard with pictures that could not be read is written again without them: they are missing.

        Raises:
            ConfigError: a shard is damaged.
        """
        done = Done()
        form = FORMATS[self.form]
        for name in sorted(self._names()):
            if not name.startswith("part-") or not name.endswith(form.suffix):
                continue
            try:
                rows = form.read(self._read(name))
                kept = [row for row in rows if row["sha256"] is not None]
            except Exception as error:
                raise ConfigError(
                    f"the shard {printable(self._path(name))} is damaged ({type(error).__name__}). Remove it, and its "
                    "pictures are described again."
                ) from None
            if len(kept) < len(rows):
                self._write(name, form.write(kept))
            for row in kept:
                done.add(row)
        return done

    def write(self, number: int, rows: Sequence[Row]) -> str:
        """A shard, whole; its name. The same pictures have the same name: done twice, they replace themselves."""
        key = hashlib.blake2b(
            "\0".join(f"{row['image']}\0{row['stamp']}" for row in rows).encode("utf-8", "backslashreplace"),
            digest_size=8,
        ).hexdigest()
        form = FORMATS[self.form]
        name = f"part-{number:06d}-{key}{form.suffix}"
        try:
            self._write(name, form.write(rows))
        except Exception as error:
            raise ConfigError(
                f"{printable(self._path(name))} cannot be written ({printable(reason_of(error))}). The shards before "
                "it are whole; start again once there is room."
            ) from None
        return name

    def num_shards(self) -> int:
        """The number that the next shard may have."""
        numbers = [int(name[5:11]) for name in self._names() if name.startswith("part-") and name[5:11].isdecimal()]
        return max(numbers, default=-1) + 1

    # --- of the place ---

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _names(self) -> list[str]:
        if self._system is None:
            return os.listdir(self._root)
        self._system.invalidate_cache(self._root)
        try:
            return [path.rpartition("/")[2] for path in self._system.ls(self._root, detail=False)]
        except FileNotFoundError:  # a store of objects has no empty folders
            return []

    def _read(self, name: str) -> bytes:
        if self._system is not None:
            return self._system.cat_file(self._path(name))
        with open(self._path(name), "rb") as file:
            return file.read()

    def _write(self, name: str, data: bytes) -> None:
        """Beside its place, then renamed."""
        part = self._path(f".{name}.{os.getpid()}")
        if self._system is not None:
            self._system.pipe_file(part, data)
            self._system.mv(part, self._path(name))
            return
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self._path(name))
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise

    def _sweep(self) -> None:
        """Remove what a killed run was writing."""
        for name in self._names():
            if name.startswith((".part-", f".{FACTS}")):
                with suppress(OSError):
                    (os.unlink if self._system is None else self._system.rm_file)(self._path(name))

    def _lock(self) -> None:
        filelock = require("describe", "filelock")
        lock = filelock.FileLock(self._path(LOCK), timeout=0)
        try:
            self._held.enter_context(lock)
        except filelock.Timeout:
            raise ConfigError(
                f"another process is at work in {printable(self.address)}. Wait for its end, or take another folder."
            ) from None
