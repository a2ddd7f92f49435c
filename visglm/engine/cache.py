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

    Attributes:
        lengths: of each row, the positions that are written.
        slots, positions: that there is room for. num_moves: how often all of it went elsewhere to have more.
        positions_to_come: that there will be, so that room is made once.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.slots = self.positions = self.num_moves = self.positions_to_come = 0
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._index: Any = None  # of each slot
        self._columns: Any = None  # where each slot writes next
        self._rows = self._end = 0  # of the step: rows, and positions that are looked at
        self._count = 1  # of the step: tokens of a row
        self._is_fixed = False  # of the step: nothing in it depends on the lengths but the numbers in `_columns`

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
        positions = max(positions, self.positions_to_come)
        if slots <= self.slots and positions <= self.positions:
            return
        slots, positions = max(self.slots, power_of_two(slots)), max(self.positions, bucket(positions))
        rows = len(self.lengths)
        grown = []
        for number, new in enumerate(like):
            pair = []
            for part, its in enumerate(new):
                tensor = its.new_zeros(slots, its.shape[1], positions, its.shape[3])
                if self._layers and rows:
                    tensor[:rows, :, : self.positions] = self._layers[number][part][:rows]
                pair.append(tensor)
            grown.append((pair[0], pair[1]))
            if self._layers:
                self._layers[number] = grown[-1]  # layer by layer, so that no second whole exists
        self._layers, self.slots, self.positions = grown, slots, positions
        self._index = torch.arange(slots, device=grown[0][0].device)
        self._columns = torch.zeros_like(self._index)
        self.num_moves += 1

    # --- one step ---

    def begin_step(self, count: int = 1, rows: int | None = None) -> None:
        """Room for a token of every row, or for `count` of a single one.

        Args:
            rows: as if there were so many, up to `slots`, and every position were looked at: then the step is the same
                for all lengths. What is computed in the rows too many goes where the next row writes over it.
        """
        self._make_room(self._layers, len(self.lengths), max(self.lengths) + count)
        self._is_fixed, self._count = rows is not None, count
        self._rows = len(self.lengths) if rows is None else rows
        self._end = max(self.lengths) + count if rows is None else self.positions
        self._columns[: self._rows].copy_(torch.tensor([*self.lengths, *[0] * (self._rows - len(self.lengths))]))

    def seen(self, count: int = 1) -> Tensor:
        """The positions that each token of the step looks at: bool `[rows, count, positions]`."""
        device = self._columns.device
        last = self._columns[: self._rows, None] + torch.arange(count, device=device)
        return torch.arange(self._end, device=device) <= last[..., None]

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The new tokens' keys and values `[rows, key heads, count, head_dim]` in; all `[rows, key heads, positions,
        head_dim]` out."""
        found = []
        for mine, its in zip(self._layers[layer_idx], (key, value), strict=True):
            if self._rows > 1:
                mine[self._index[: self._rows], :, self._columns[: self._rows]] = its[:, :, 0].to(mine.dtype)
            elif self._is_fixed:
                mine[0].index_copy_(1, self._columns[:1], its[0].to(mine.dtype))
            else:
                mine[0, :, self.lengths[0] : self._end] = its[0]
            found.append(mine[: self._rows, :, : self._end])
        return found[0], found[1]

    def end_step(self, kept: int = 1) -> None:
        """So many of the tokens that a row was given belong to it; the others are as if nobody had written them."""
        if kept < self._count:
            for own in self._layers:
                for mine in own:
                    mine[0, :, self.lengths[0] + kept : self._end] = 0
        self.lengths = [length + kept for length in self.lengths]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """As transformers' caches have it; of the longest row."""
        return self._end - 1
