"""How a weight is written in fewer bits. A newcomer writes one `Scheme` and its row in `SCHEMES`.

Every scheme keeps a matrix `[rows, columns]` as two tensors: `weight` (small integers) and `weight_scale` (float16).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..errors import ConfigError

# What a scheme can be applied to. "vision" is the ViT, the recogniser and the Q-Former without the projection, which
# sets the dtype that pictures are read in.
PARTS = ("layers", "embeddings", "head", "vision")
# The 16 values of NF4: quantiles of a normal distribution, one of them 0. QLoRA (https://arxiv.org/abs/2305.14314).
NF4_VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class Scheme(ABC):
    """A way to quantize matrices.

    Attributes:
        parts: what of a network it is applied to, of `PARTS`.
        bits: per number, without the scales.
        grouped: whether a scale covers `group_size` columns of a row, or the whole row.
    """

    parts: tuple[str, ...]
    bits: int
    grouped: bool = True

    def layout(self, rows: int, columns: int, group_size: int) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
        """Shape and dtype of both tensors.

        Raises:
            ConfigError: the columns cannot be cut into groups of that size.
        """
        group_size = group_size if self.grouped else columns
        if columns % group_size or group_size % 2:
            raise ConfigError(f"{columns} columns cannot be cut into groups of {group_size}; name another group_size.")
        dtype = torch.int8 if self.bits == 8 else torch.uint8
        return {
            "weight": ((rows, columns * self.bits // 8), dtype),
            "weight_scale": ((rows, columns // group_size), torch.float16),
        }

    @abstractmethod
    def pack(self, matrix: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
        """`[rows, columns]`, float32 → `weight, weight_scale`."""

    @abstractmethod
    def unpack(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The inverse, float32 `[rows, columns]`; leading rows may be any selection."""


class Int8(Scheme):
    """Signed bytes and one scale per row: its largest magnitude / 127."""

    parts = ("layers", "embeddings", "head")
    bits = 8
    grouped = False

    def pack(self, matrix: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
        scale = to_scale(matrix.abs().amax(dim=-1, keepdim=True) / 127)
        return (matrix * scale.float().reciprocal()).round_().clamp_(-127, 127).to(torch.int8), scale

    def unpack(self, weight: Tensor, scale: Tensor) -> Tensor:
        return weight.float().mul_(scale.float())


class Int4(Scheme):
    """Sixteen even steps per group of columns, two numbers to a byte, the even column in the low half; 8 stands for 0.

    The number of largest magnitude in a group becomes exactly -8 steps, so that all sixteen are used.
    """

    parts = ("layers", "embeddings", "head")
    bits = 4

    def pack(self, matrix: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
        groups = matrix.unflatten(-1, (-1, group_size))
        low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)  # aminmax: 7 times slower
        scale = to_scale(torch.where(high > -low, high, low) / -8)
        steps = (groups * scale.float().reciprocal()).round_().clamp_(-8, 7).add_(8)
        # By way of int8: torch converts to uint8 five times slower.
        return pair(steps.to(torch.int8).view(torch.uint8).flatten(-2)), scale.squeeze(-1)

    def unpack(self, weight: Tensor, scale: Tensor) -> Tensor:
        return spread(unpair(weight).sub_(8).float(), scale)


class NF4(Scheme):
    """Sixteen uneven steps, those of a normal distribution: for fine-tuning over a frozen base (QLoRA).

    Embeddings and head stay as they are, as in QLoRA.
    """

    parts = ("layers",)
    bits = 4

    def pack(self, matrix: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
        groups = matrix.unflatten(-1, (-1, group_size))
        scale = to_scale(groups.abs().amax(dim=-1, keepdim=True))
        fractions = groups * scale.float().reciprocal()
        steps = torch.zeros_like(fractions, dtype=torch.uint8)
        for below, above in zip(NF4_VALUES[:-1], NF4_VALUES[1:], strict=True):
            steps += fractions > (below + above) / 2
        return pair(steps.flatten(-2)), scale.squeeze(-1)

    def unpack(self, weight: Tensor, scale: Tensor) -> Tensor:
        pairs = torch.nn.functional.embedding(weight.int(), nf4_pairs(weight.device))
        return spread(pairs.flatten(-2), scale)


SCHEMES: dict[str, Scheme] = {"int8": Int8(), "int4": Int4(), "nf4": NF4()}


@functools.cache
def nf4_pairs(device: torch.device) -> Tensor:
    """What each byte stands for `[256, 2]`. Made once: nothing is brought to a GPU while its steps are recorded."""
    with torch.inference_mode(False):
        values = torch.tensor(NF4_VALUES, device=device)
        return torch.stack([values.repeat(16), values.repeat_interleave(16)], dim=-1)


def to_scale(scale: Tensor) -> Tensor:
    """float16, away from 0, by which nothing can be divided, and from what float16 cannot hold."""
    tiny = torch.finfo(torch.float16).tiny
    scale = torch.where(scale.abs() < tiny, tiny, scale)
    return scale.clamp(-65504, 65504).to(torch.float16)


def pair(steps: Tensor) -> Tensor:
    """Two numbers below 16 to a byte, the even column in the low half. `steps` is uint8, contiguous."""
    both = steps.view(torch.int16)  # even + 256 · odd, of which the lowest byte of the sum below is left
    return (both | (both >> 4)).to(torch.uint8)


def unpair(packed: Tensor) -> Tensor:
    """The numbers in the bytes, int8. Both at once, in 16 bits: faster here than a table or half after half."""
    both = packed.to(torch.int16)
    return (both << 4).bitwise_or_(both).bitwise_and_(0x0F0F).view(torch.int8)


def spread(steps: Tensor, scale: Tensor) -> Tensor:
    """Each scale times its group."""
    return steps.unflatten(-1, (scale.shape[-1], -1)).mul_(scale.float().unsqueeze(-1)).flatten(-2)
