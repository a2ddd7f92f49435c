"""Documents and pictures that are found again, and that answers cite: `Library.open("notes.library")`."""

from __future__ import annotations

from .answers import ANSWER_TOKENS, LEAST_CONFIDENCE, READING_CONTEXT, answer, confidences
from .changes import Changes, Entry, Stats
from .collection import Library
from .indexing import Indexer, Reading, Wanted
from .pieces import LibraryLimits, Piece
from .readers import READERS
from .scans import Page
from .search import Found
from .searchers import SEARCHERS
from .views import View
from .web import Web, visited

__all__ = [
    "ANSWER_TOKENS", "LEAST_CONFIDENCE", "READERS", "READING_CONTEXT", "SEARCHERS", "Changes", "Entry", "Found",
    "Indexer", "Library", "LibraryLimits", "Page", "Piece", "Reading", "Stats", "View", "Wanted", "Web", "answer",
    "confidences", "visited",
]  # fmt: skip
