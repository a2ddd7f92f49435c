"""Pages that `visglm read` has read, kept beside what they become until all are there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import writing
from ..untrusted import hash_of

if TYPE_CHECKING:
    from ..library import Page


class Kept:
    """A hidden file of JSON lines: of what the pages are, then a page each.

    Only what was read of the same content, by the same model with the same settings, is gone on from.

    Args:
        target: what the pages become.
        source: the file that is read.
        how: what else a page depends on.
    """

    def __init__(self, target: Path, source: str, how: dict[str, Any]):
        self.target, self.path = target, target.with_name(f".{target.name[:64]}.pages")
        digest = ""
        with suppress(OSError):  # whoever reads it tells
            digest = hash_of(Path(source).expanduser())
        self._is_there = bool(digest)
        self._head = json.dumps({"source": digest, **how}, sort_keys=True, default=str)

    def pages(self) -> list[Page]:
        """The first pages, as far as they are there. Where they are another file's, they are forgotten."""
        from ..library import Page

        lines = self._lines()
        if next(lines, None) != self._head:
            self.remove()
            return []
        found: list[Page] = []
        for line in lines:
            with suppress(ValueError, TypeError):  # a line that was cut off
                page = Page(**json.loads(line))
                found += [page] if page.number == len(found) + 1 else []
        return found

    def _lines(self) -> Iterator[str]:
        with suppress(OSError):
            yield from self.path.read_text("utf-8", errors="surrogateescape").split("\n")

    def add(self, page: Page) -> None:
        """Keep one, whatever comes then.

        Raises:
            ConfigError: it cannot be written.
        """
        with writing(self.target, kept="The pages before are kept."):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            is_new = not self.path.exists()
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                # In front of it, an end for a line that was cut off.
                file.write((f"{self._head}\n" if is_new else "\n") + f"{json.dumps(asdict(page))}\n")

    def remove(self) -> None:
        """Of a source that cannot be opened now, such as one on a disk that is not there, they stay."""
        if self._is_there:
            with suppress(OSError):
                self.path.unlink()
