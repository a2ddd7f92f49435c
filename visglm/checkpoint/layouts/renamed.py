"""Checkpoints in foreign layouts: weight files and a table of moves, seen as a `Source`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...config import VisGLMConfig
from ...errors import CheckpointError
from ...quant import PARTS, Quantization, usual_group_size
from ..files import TensorInfo, WeightFiles
from ..source import Source
from .rules import Move

SCALE = "_scale"  # `weight_scale` stands beside a `weight` that the family's own tools have packed
PART_OF = {"model.text.embed_tokens.weight": "embeddings", "lm_head.weight": "head"}  # else they are of the layers


def repack(weight: Tensor, scale: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """The family's int8 `[out, in]` or int4 `[out, in / 2]`, with a scale for each row, as ours of the same bits.

    The numbers stay the same to the bit. In the family's int4 the even column is in the high four bits and the odd one
    in the low four, both signed.
    """
    scale = scale.to(torch.float16)[:, None]
    if bits == 8:
        return weight, scale
    numbers = weight.view(torch.uint8) ^ 0x88  # both halves count from -8 now
    return (numbers << 4) | (numbers >> 4), scale.expand(-1, weight.shape[1] * 2 // group_size)


class RenamedSource(Source):
    """Weight files whose names and tensors `moves` translates.

    Args:
        bits: 8 or 4 where the family's own tools have packed weights, else None.
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
        self.bits = bits or 8
        self.problems += files.problems
        self._moves = {move.old: move for move in moves}
        self._old_names = {name: move.old for move in self._moves.values() for name in move.new}
        self._packed = {name for name in files.infos if name + SCALE in files.infos}
        if self._packed:
            moved = [self._moves[old] for name in self._packed if (old := self.old_name(name)) in self._moves]
            found = {PART_OF.get(new, "layers") for move in moved for new in move.new}
            parts = tuple(part for part in PARTS if part in found)
            config.quantization = Quantization(f"int{self.bits}", usual_group_size(config), parts).record()

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
            move = self._moves.get(name)
            if move is None:
                found[name] = info
                continue
            tensor = torch.empty(info.shape, dtype=info.dtype, device="meta")
            try:
                parts = list(self._parts(move, tensor, infos.get(name + SCALE)))
            except (RuntimeError, ValueError, IndexError):  # of a shape that cannot be split: let that be told
                parts = [(new, tensor) for new in move.new]
            found |= {new: TensorInfo.of(part) for new, part in parts}
        return found

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        waiting: dict[str, Tensor] = {}
        for name, tensor in self.files.tensors():
            weight, scale = name.removesuffix(SCALE), None
            if weight in self._packed:
                halves = (weight, weight + SCALE)
                pair = {name: tensor} | {half: waiting.pop(half) for half in halves if half in waiting}
                if len(pair) < 2:
                    waiting[name] = tensor.clone()  # its file may be closed before the other half comes
                    continue
                name, tensor, scale = weight, pair[weight], pair[weight + SCALE]
            if (move := self._moves.get(self.old_name(name))) is not None:
                yield from self._parts(move, tensor, scale)

    def _parts(self, move: Move, tensor: Tensor, scale: Tensor | TensorInfo | None) -> Iterator[tuple[str, Tensor]]:
        """Native names and what a tensor of the files becomes: rows change places, with their scales if they have any.

        Args:
            scale: of a packed weight; of one on the meta device, shape and dtype will do.
        """
        if scale is None:
            yield from zip(move.new, move.transform.split(tensor, self.config), strict=True)
            return
        if isinstance(scale, TensorInfo):
            scale = torch.empty(scale.shape, dtype=scale.dtype, device="meta")
        packed = repack(tensor, scale, self.bits, usual_group_size(self.config))
        for suffix, part in zip(("", SCALE), packed, strict=True):
            names = (name + suffix for name in move.new)
            yield from zip(names, move.transform.split(part, self.config), strict=True)

    def name_on_disk(self, name: str) -> str:
        if name.endswith(SCALE):
            return self.name_on_disk(name.removesuffix(SCALE)) + SCALE
        return self._old_names.get(name, name)

    def is_lost(self, name: str) -> bool:
        return self.files.is_lost(self.name_on_disk(name))
