"""Checkpoints in foreign layouts: weight files and a table of moves, seen as a `Source`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config import VisGLMConfig
from ..errors import CheckpointError
from .files import TensorInfo, WeightFiles
from .rules import Move
from .source import Source

SCALE = "_scale"  # `weight_scale` stands beside a `weight` that the family's own tools have packed


def unpack(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The family's int8 `[out, in]` or int4 `[out, in / 2]` times the scale of each row, `[out, in]` in its dtype.

    In int4 the even column is in the high four bits and the odd one in the low four, both signed.
    """
    if bits == 4:
        high, low = weight >> 4, (weight << 4) >> 4
        weight = torch.stack([high, low], dim=-1).flatten(-2)
    return weight.to(scale.dtype) * scale[:, None]


class RenamedSource(Source):
    """Weight files whose names and tensors `moves` translates.

    Args:
        bits: 8 or 4 where the family's own tools have packed the linears, else None.
    """

    def __init__(
        self, path: Path, config: VisGLMConfig, files: WeightFiles, moves: Iterable[Move], bits: int | None = None
    ):
        super().__init__(path, config)
        if bits not in (None, 0, 4, 8):
            raise CheckpointError(
                path, [f"quantization_bit is {bits!r}, an unknown scheme; expected 4 or 8"], "Use the 16-bit release."
            )
        self.files = files
        self.bits = bits or None
        self.problems += files.problems
        self._moves = {move.old: move for move in moves}
        self._old_names = {name: move.old for move in self._moves.values() for name in move.new}

    def old_name(self, name: str) -> str:
        """A name in the files as the table of moves has it; "" for a tensor that is no part of the network."""
        return name

    def keys(self) -> Mapping[str, TensorInfo]:
        found: dict[str, TensorInfo] = {}
        infos = {self.old_name(name): info for name, info in self.files.infos.items()}
        infos.pop("", None)
        for name, info in infos.items():
            if name.endswith(SCALE) and name.removesuffix(SCALE) in infos:
                continue
            if (scale := infos.get(name + SCALE)) is not None:
                columns = info.shape[-1] * (2 if self.bits == 4 else 1)
                info = TensorInfo((*info.shape[:-1], columns), scale.dtype)
            move = self._moves.get(name)
            if move is None:
                found[name] = info
                continue
            try:
                parts = move.transform.split(torch.empty(info.shape, dtype=info.dtype, device="meta"), self.config)
            except (RuntimeError, ValueError):  # too small to be split: let the shapes be compared as they are
                parts = [torch.empty(info.shape, dtype=info.dtype, device="meta")] * len(move.new)
            found |= {new: TensorInfo.of(part) for new, part in zip(move.new, parts, strict=False)}
        return found

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        packed = {name for name in self.files.infos if name + SCALE in self.files.infos}
        waiting: dict[str, Tensor] = {}
        for name, tensor in self.files.tensors():
            weight = name.removesuffix(SCALE)
            if weight in packed:
                halves = (weight, weight + SCALE)
                pair = {name: tensor} | {half: waiting.pop(half) for half in halves if half in waiting}
                if len(pair) < 2:
                    waiting[name] = tensor.clone()  # its file may be closed before the other half comes
                    continue
                name, tensor = weight, unpack(pair[weight], pair[weight + SCALE], self.bits or 8)
            if (move := self._moves.get(self.old_name(name))) is not None:
                yield from zip(move.new, move.transform.split(tensor, self.config), strict=True)

    def name_on_disk(self, name: str) -> str:
        return self._old_names.get(name, name)

    def is_lost(self, name: str) -> bool:
        return self.files.is_lost(self.name_on_disk(name))
