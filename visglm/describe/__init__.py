"""One question about any number of pictures: where they lie, who answers, and shards of results that a killed run goes
on from.
"""

from __future__ import annotations

from .items import Item, find, is_address, is_collection
from .results import FORMATS, Results
from .work import Task, describe, missing, to_shards

__all__ = [
    "FORMATS", "Item", "Results", "Task", "describe", "find", "is_address", "is_collection", "missing",
    "to_shards",
]  # fmt: skip
