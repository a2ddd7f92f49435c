"""Documents and pictures that are found again, and that answers cite: `Library.open("notes.library")`."""

from __future__ import annotations

from .answers import ANSWER_TOKENS, LEAST_CONFIDENCE, READING_CONTEXT, answer, confidences
from .collection import Changes, Entry, Library, Stats
from .pieces import LibraryLimits, Piece
from .readers import READERS
from .search import Found
from .views import View

__all__ = [
    "ANSWER_TOKENS", "LEAST_CONFIDENCE", "READERS", "READING_CONTEXT", "Changes", "Entry", "Found", "Library",
    "LibraryLimits", "Piece", "Stats", "View", "answer", "confidences",
]  # fmt: skip
