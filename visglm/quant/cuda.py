"""Products of a few rows with a packed weight on a GPU, by kernels that others keep, and one of ours.

Each is made where the device, the weight's shape and what is installed allow it, and proves itself first: its product
with random numbers must be that of the unpacked weight. Where it is not, a warning says so, and weights are unpacked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import MissingDependencyError, require
from .products import Product
from .schemes import NF4_VALUES

AMPERE = (8, 0)  # from which on there are kernels for bfloat16
INNER_TILES = 8  # of torch's int4 kernel: 16 columns each
GROUPS = {"int4": (32, 64, 128, 256), "nf4": (64, 128, 256, 512, 1024, 2048, 4096)}  # that the kernels know
COPIED = ("int4", "nf4")  # whose kernels want weights in an order of their own, and four bytes a scale
LEAST_COLUMNS = 32  # of our int8 kernel, at a time
BOUND = 0.02  # of the largest number: bfloat16 rounds scales and outputs


class OneTokenProduct(Product):
    """For one token of each answer; prompts are computed with unpacked weights."""

    takes_one_token = True

    def suits(self, hidden_states: Tensor) -> bool:
        return hidden_states.dim() > 2 and hidden_states.shape[-2] == 1


class Int8CudaProduct(OneTokenProduct):
    """The kernel of `kernels`: it takes the weight as it is packed."""

    def __init__(self, linear: Any):
        from .kernels import multiply  # there is no Triton where there is no GPU

        self.linear, self._multiply = linear, multiply

    def __call__(self, hidden_states: Tensor) -> Tensor:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        output = self._multiply(rows, self.linear.weight, self.linear.weight_scale)
        return output.view(*hidden_states.shape[:-1], -1)


class Int4CudaProduct(OneTokenProduct):
    """torch's `_weight_int4pack_mm`. It takes the weight in an order of its own, which is a second copy."""

    def __init__(self, linear: Any):
        self.group_size = linear.in_features // linear.weight_scale.shape[1]
        self.weight = torch.ops.aten._convert_weight_to_int4pack(swap_halves(linear.weight), INNER_TILES)
        scale = linear.weight_scale.to(torch.bfloat16).T
        self.scale_and_zero = torch.stack([scale, torch.zeros_like(scale)], dim=-1).contiguous()

    def __call__(self, hidden_states: Tensor) -> Tensor:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1]).to(torch.bfloat16)
        output = torch.ops.aten._weight_int4pack_mm(rows, self.weight, self.group_size, self.scale_and_zero)
        return output.view(*hidden_states.shape[:-1], -1).to(hidden_states.dtype)


class NF4Product(Product):
    """bitsandbytes' product with 4-bit weights: of one token without unpacking them, of more with its own unpacking."""

    def __init__(self, linear: Any):
        functional = require("quant-gpu", "bitsandbytes.functional")
        self._multiply = require("quant-gpu", "bitsandbytes").matmul_4bit
        device, shape = linear.weight.device, torch.Size((linear.out_features, linear.in_features))
        self.weight = swap_halves(linear.weight).reshape(-1, 1)
        self.state = functional.QuantState(
            absmax=linear.weight_scale.float().flatten(), shape=shape, dtype=torch.bfloat16, quant_type="nf4",
            code=torch.tensor(NF4_VALUES, device=device), blocksize=linear.in_features // linear.weight_scale.shape[1],
        )  # fmt: skip

    def suits(self, hidden_states: Tensor) -> bool:
        return True

    def __call__(self, hidden_states: Tensor) -> Tensor:
        output = self._multiply(hidden_states.detach().to(torch.bfloat16), self.weight.t(), quant_state=self.state)
        return output.to(hidden_states.dtype)


def swap_halves(weight: Tensor) -> Tensor:
    """The even column in the high half of each byte, as both kernels have it."""
    return ((weight << 4) | (weight >> 4)).contiguous()


def has_bfloat16(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= AMPERE


def fits_int4(linear: Any) -> bool:
    """Whether torch's int4 kernel takes this weight, on this device."""
    group_size = linear.in_features // linear.weight_scale.shape[1]
    is_whole = linear.out_features % 8 == 0 and linear.in_features % (16 * INNER_TILES) == 0
    return is_whole and group_size in GROUPS["int4"] and has_bfloat16(linear.weight.device)


def fits_nf4(linear: Any) -> bool:
    """Whether bitsandbytes takes this weight, on this device; it is no requirement, and its absence is told once."""
    group_size = linear.in_features // linear.weight_scale.shape[1]
    if group_size not in GROUPS["nf4"] or not has_bfloat16(linear.weight.device):
        return False
    try:
        require("quant-gpu", "bitsandbytes")
    except MissingDependencyError as error:
        warnings.warn(f"nf4 is several times slower on this GPU than it could be. {error}", stacklevel=2)
        return False
    return True


def fits_int8(linear: Any) -> bool:
    """Whether our kernel takes this weight, on this device."""
    return linear.in_features % LEAST_COLUMNS == 0 and has_bfloat16(linear.weight.device)


def proved(fits: Callable[[Any], bool], make: Callable[[Any], Product]) -> Callable[[Any], Product | None]:
    """What makes a product where it fits, and keeps it where its numbers are right."""

    def make_and_prove(linear: Any) -> Product | None:
        if not fits(linear):
            return None
        try:
            product = make(linear)
            gap = worst_gap(linear, product)
        except Exception as error:  # what compiles it may be missing, too
            problem = f"failed ({type(error).__name__}: {str(error).splitlines()[0]})"
        else:
            if gap <= BOUND:
                return product
            problem = f"was {gap:.1%} off"
        warnings.warn(
            f"{linear.scheme} is slower on this GPU than it could be: a kernel for it {problem} for a weight of "
            f"{linear.out_features} × {linear.in_features}. Weights are unpacked instead; answers stay right.",
            stacklevel=2,
        )
        return None

    return make_and_prove


@torch.no_grad()
def worst_gap(linear: Any, product: Product) -> float:
    """Between the product and that of the unpacked weight, as a share of the largest number."""
    generator = torch.Generator(linear.weight.device).manual_seed(0)
    size = (1, 1, linear.in_features)
    hidden_states = torch.randn(size, generator=generator, device=linear.weight.device).to(torch.bfloat16)
    wanted = torch.cat([hidden_states.float() @ weight.T for _, weight in linear.blocks(torch.float32)], dim=-1)
    return float((product(hidden_states).float() - wanted).abs().max() / wanted.abs().max())


CUDA_PRODUCTS: dict[str, Callable[[Any], Product | None]] = {
    "int8": proved(fits_int8, Int8CudaProduct),
    "int4": proved(fits_int4, Int4CudaProduct),
    "nf4": proved(fits_nf4, NF4Product),
}
