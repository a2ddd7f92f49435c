"""What a library says of itself: its documents, its size, and what was done to it."""

from __future__ import annotations

from dataclasses import dataclass, field


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
