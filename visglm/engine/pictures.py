"""Pictures to visual tokens, those of all newcomers together, and none twice while there is room to remember it."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

AT_ONCE = 16  # pictures that are encoded together; memory grows with them, and nobody gets a token meanwhile
MEMORY = 64 * 2**20  # bytes of visual tokens that are remembered: 250 pictures of VisualGLM-6B

Key = tuple[str, bytes]  # what looks and for whom, and what it looks at


def content_hash(pixel_values: Tensor) -> bytes:
    """Of one picture as the network gets it: size, scale and normalization count."""
    numbers = pixel_values.contiguous().cpu()
    digest = hashlib.sha256(repr((tuple(numbers.shape), numbers.dtype)).encode())
    digest.update(numbers.view(torch.uint8).numpy().data)
    return digest.digest()


class Looker:
    """Visual tokens of pictures, remembered by their content.

    Args:
        num_bytes: how much is remembered; 0 for nothing. What was not asked for longest goes first.
    """

    def __init__(self, num_bytes: int = MEMORY):
        self._num_bytes = num_bytes
        self._known: OrderedDict[Key, Tensor] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()  # whoever sets `num_bytes` is another thread than the one that looks

    @property
    def num_bytes(self) -> int:
        """How much is remembered, at most."""
        return self._num_bytes

    @num_bytes.setter
    def num_bytes(self, value: int) -> None:
        with self._lock:
            self._num_bytes = value
            self._forget_oldest()

    def look(
        self,
        pictures: Sequence[Sequence[Tensor]],
        sources: Sequence[str],
        encode: Callable[[list[Tensor]], Sequence[Tensor]],
        device: torch.device,
    ) -> list[list[Tensor]]:
        """Visual tokens `[tokens, hidden_size]` of each picture, group by group.

        Args:
            pictures: groups of pictures as the network takes them.
            sources: of each group, the fingerprint of what looks and for whom.
            encode: pictures to visual tokens of each, at most `AT_ONCE` pictures a time.
        """
        keys = [
            [(source, content_hash(picture)) for picture in group]
            for source, group in zip(sources, pictures, strict=True)
        ]
        found: dict[Key, Tensor] = {}
        unknown: dict[Key, Tensor] = {}
        for group, own in zip(pictures, keys, strict=True):
            for picture, key in zip(group, own, strict=True):
                if (known := self._recall(key)) is not None:
                    found[key] = known
                else:
                    unknown[key] = picture
        waiting = list(unknown)
        for start in range(0, len(waiting), AT_ONCE):
            some = waiting[start : start + AT_ONCE]
            seen = encode([unknown[key].to(device) for key in some])
            for key, tokens in zip(some, seen, strict=True):
                found[key] = tokens
                self._remember(key, tokens)
        # Copies: a history keeps them, and must not keep those of all others with them.
        return [[found[key].clone() for key in own] for own in keys]

    def _recall(self, key: Key) -> Tensor | None:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def _remember(self, key: Key, tokens: Tensor) -> None:
        with self._lock:
            if tokens.nbytes <= self._num_bytes:
                self._known[key] = tokens.clone()
                self._size += tokens.nbytes
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        while self._size > self._num_bytes:
            _, oldest = self._known.popitem(last=False)
            self._size -= oldest.nbytes
