"""Keys and values of the answers in flight: a row per answer, each with a length of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..text.cache_size import bucket, power_of_two


class SlotCache:
    """What an attention takes for its cache while it decodes one token of each row.

    Per layer keys and values `[slots, key heads, positions, head_dim]`. Rows stand one after the other from 0 on, what
    a row has seen from position 0 on, and what nobody has written is zero: a number that is no number leaks from behind
    a mask, whose zero it is multiplied with.

    Takes the layers' shapes from what the first rows bring, so that it knows no backbone.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []  # of each row: positions that are written
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._slots = self._positions = 0
        self._index = self._columns = torch.zeros(0, dtype=torch.long)  # of the step: rows, and where each writes
        self._end = 0  # of the step: positions that are looked at

    # --- rows come and go ---

    def add(self, layers: Sequence[tuple[Tensor, Tensor]], row: int, length: int) -> None:
        """A new last row.

        Args:
            layers: per layer keys and values `[rows, key heads, positions, head_dim]`. row: which of them.
            length: how many of the last positions are its own; before them is padding.
        """
        place = len(self.lengths)
        self._make_room(layers, place + 1, length + 1)
        for own, new in zip(self._layers, layers, strict=True):
            for mine, its in zip(own, new, strict=True):
                mine[place, :, :length] = its[row, :, its.shape[2] - length :]
        self.lengths.append(length)

    def remove(self, row: int) -> None:
        """Take a row out; the last one moves to its place."""
        last = len(self.lengths) - 1
        for own in self._layers:
            for mine in own:
                if row != last:
                    mine[row, :, : self.lengths[last]] = mine[last, :, : self.lengths[last]]
                    mine[row, :, self.lengths[last] : self.lengths[row]] = 0
                mine[last, :, : self.lengths[last]] = 0
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def read(self, row: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of a row's first positions: per layer keys and values `[key heads, length, head_dim]`."""
        return [(key[row, :, :length].clone(), value[row, :, :length].clone()) for key, value in self._layers]

    def cut(self, rows: int) -> None:
        """Take out the last rows, those from `rows` on."""
        while len(self.lengths) > rows:
            self.remove(len(self.lengths) - 1)

    @property
    def num_bytes(self) -> int:
        return sum(mine.nbytes for own in self._layers for mine in own)

    def _make_room(self, like: Sequence[tuple[Tensor, Tensor]], slots: int, positions: int) -> None:
        if slots <= self._slots and positions <= self._positions:
            return
        slots, positions = max(self._slots, power_of_two(slots)), max(self._positions, bucket(positions))
        rows = len(self.lengths)
        grown = []
        for number, new in enumerate(like):
            pair = []
            for part, its in enumerate(new):
                tensor = its.new_zeros(slots, its.shape[1], positions, its.shape[3])
                if self._layers and rows:
                    tensor[:rows, :, : self._positions] = self._layers[number][part][:rows]
                pair.append(tensor)
            grown.append((pair[0], pair[1]))
            if self._layers:
                self._layers[number] = grown[-1]  # layer by layer, so that no second whole exists
        self._layers, self._slots, self._positions = grown, slots, positions

    # --- one step ---

    def begin_step(self, count: int = 1) -> Tensor:
        """Room for a token of every row, or for `count` of a single one; which positions each looks at: bool
        `[rows, count, positions]`."""
        self._end = max(self.lengths) + count
        self._make_room(self._layers, len(self.lengths), self._end)
        device = self._layers[0][0].device
        self._columns = torch.tensor(self.lengths, device=device)
        self._index = torch.arange(len(self.lengths), device=device)
        last = self._columns[:, None] + torch.arange(count, device=device)
        return torch.arange(self._end, device=device) <= last[..., None]

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The new tokens' keys and values `[rows, key heads, count, head_dim]` in; all `[rows, key heads, positions,
        head_dim]` out."""
        rows = len(self.lengths)
        found = []
        for mine, its in zip(self._layers[layer_idx], (key, value), strict=True):
            if rows == 1:
                mine[0, :, self.lengths[0] : self._end] = its[0]
            else:
                mine[self._index, :, self._columns] = its[:, :, 0].to(mine.dtype)
            found.append(mine[:rows, :, : self._end])
        return found[0], found[1]

    def end_step(self, kept: int = 1) -> None:
        """So many of the tokens that a row was given belong to it; the others are as if nobody had written them."""
        if len(self.lengths) == 1 and self.lengths[0] + kept < self._end:
            for own in self._layers:
                for mine in own:
                    mine[0, :, self.lengths[0] + kept : self._end] = 0
        self.lengths = [length + kept for length in self.lengths]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """As transformers' caches have it; of the longest row."""
        return self._end - 1
