"""Keys and values of conversations that may go on: of a causal model's next prompt, what it has read is not read again.

A prefix-LM reads its prompt both ways: what an earlier prompt made of a word is not what the longer one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 256 * 2**20  # bytes: 6,000 tokens of GLM-4-9B
SHORTEST = 16  # tokens that are worth it
LEFT_OVER = (
    2  # tokens of a prompt that are read in any case: the last one's output is wanted, and by a prompt's products
)

Layers = list[tuple[Tensor, Tensor]]


@dataclass
class Read:
    """What was read once.

    Args:
        ids: the tokens. image_embeds: `[tokens, hidden_size]` of each picture in them, if any.
        layers: per layer keys and values `[key heads, len(ids), head_dim]`.
        owner: whose it is; nobody else's prompt goes on from it.
    """

    ids: list[int]
    image_embeds: Sequence[Tensor] | None
    layers: Layers
    owner: str = ""

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for layer in self.layers for part in layer)

    def common(self, ids: Sequence[int], image_embeds: Sequence[Tensor] | None, slot: int | None) -> int:
        """How many tokens from the start on are the same, whole pictures included."""
        length = next(
            (place for place, (one, other) in enumerate(zip(self.ids, ids, strict=False)) if one != other),
            min(len(self.ids), len(ids)),
        )
        length = min(length, len(ids) - LEFT_OVER)
        places = [place for place, token in enumerate(ids[:length]) if token == slot]
        if not places:
            return length
        mine, first_slot = () if self.image_embeds is None else self.image_embeds, 0
        for one, other in zip(mine, () if image_embeds is None else image_embeds, strict=False):
            last_slot = first_slot + len(other) - 1
            if last_slot >= len(places) or one.shape != other.shape or not torch.equal(one, other):
                break
            first_slot = last_slot + 1
        return places[first_slot] if first_slot < len(places) else length


class Shelf:
    """What was read lately.

    Args:
        num_bytes: of keys and values that are kept; 0 for none. What was not asked for longest goes first.
    """

    def __init__(self, num_bytes: int = MEMORY):
        self.num_bytes = num_bytes
        self._state: object = None
        self._kept: list[Read] = []  # the latest last

    def begin(self, state: object) -> None:
        """Forget everything where the network is not in the state it was read by."""
        if state != self._state:
            self._kept, self._state = [], state

    def find(
        self, ids: Sequence[int], image_embeds: Sequence[Tensor] | None, slot: int | None, owner: str = ""
    ) -> tuple[Read, int] | None:
        """What has the longest beginning in common with a prompt, and its length.

        Args:
            slot: the token of image slots. owner: of the prompt.
        """
        mine = [kept for kept in self._kept if kept.owner == owner]
        best = max(((kept.common(ids, image_embeds, slot), kept) for kept in mine), default=None, key=first)
        if best is None or best[0] < SHORTEST:
            return None
        self._kept.remove(best[1])
        self._kept.append(best[1])
        return best[1], best[0]

    def keep(self, read: Read) -> None:
        """Remember it, in place of what it goes on from."""
        if read.num_bytes > self.num_bytes or len(read.ids) < SHORTEST:
            return
        self._kept = [kept for kept in self._kept if (kept.owner, kept.ids) != (read.owner, read.ids[: len(kept.ids)])]
        self._kept.append(read)
        while sum(kept.num_bytes for kept in self._kept) > self.num_bytes:
            del self._kept[0]


def first(pair: tuple[int, Read]) -> int:
    return pair[0]
