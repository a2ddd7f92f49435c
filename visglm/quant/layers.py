"""Modules that take the place of `nn.Linear` and `nn.Embedding` once their weights are small integers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cuda import CUDA_PRODUCTS
from .memory import Stretch, forget, stretch_of, to_file
from .products import PRODUCTS
from .schemes import SCHEMES

PRODUCTS |= {(scheme, "cuda"): make for scheme, make in CUDA_PRODUCTS.items()}
BLOCK_SIZE = 2**20  # numbers that are packed or unpacked at a time: 4 MB of float32, which a cache holds
GPU_BLOCK_SIZE = 2**26  # 256 MB: whole matrices, as telling a GPU of each block takes longer than computing it


class UnpackedProduct(torch.autograd.Function):
    """`hidden_states @ weight.T + bias`, unpacking some rows of the weight at a time, forwards and again backwards."""

    @staticmethod
    def forward(context: Any, hidden_states: Tensor, bias: Tensor | None, linear: QuantizedLinear) -> Tensor:
        context.linear = linear
        inputs = hidden_states.reshape(-1, linear.in_features)
        output = inputs.new_empty(inputs.shape[0], linear.out_features)
        for rows, weight in linear.blocks(inputs.dtype):
            if bias is None:
                torch.mm(inputs, weight.T, out=output[:, rows])
            else:
                torch.addmm(bias[rows].to(inputs.dtype), inputs, weight.T, out=output[:, rows])
        return output.view(*hidden_states.shape[:-1], -1)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gradient = gradients[0].reshape(-1, context.linear.out_features)
        total = bias_gradient = None
        if context.needs_input_grad[0]:
            total = gradient.new_zeros(gradient.shape[0], context.linear.in_features)
            for rows, weight in context.linear.blocks(gradient.dtype):
                total.addmm_(gradient[:, rows], weight)
            total = total.view(*gradients[0].shape[:-1], -1)
        if context.needs_input_grad[1]:
            bias_gradient = gradient.sum(0).to(context.linear.bias.dtype)
        return total, bias_gradient, None


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is frozen and packed; gradients flow through it, which is what QLoRA needs.

    It is an `nn.Linear` so that peft puts adapters on it, but `weight` is a buffer of integers.

    Args:
        scheme: name in `SCHEMES`.
        group_size: columns that share a scale.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(
        self, in_features: int, out_features: int, *, scheme: str, group_size: int, bias: bool, device: Any = None
    ):
        nn.Module.__init__(self)
        self.in_features = in_features
        self.out_features = out_features
        self.scheme = scheme
        self.group_size = group_size
        register(self, out_features, in_features, device)
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, device=device)) if bias else None)
        self.product: Any = None

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """`(rows, weight of those rows)`, over all rows."""
        size = BLOCK_SIZE if self.weight.device.type == "cpu" else GPU_BLOCK_SIZE
        step = max(size // self.in_features, 1)
        for start in range(0, self.out_features, step):
            rows = slice(start, start + step)
            yield rows, SCHEMES[self.scheme].unpack(self.weight[rows], self.weight_scale[rows]).to(dtype)

    def settle(self) -> None:
        """Called when the weight is in place: get ready for fast products, where this device has any."""
        make = PRODUCTS.get((self.scheme, self.weight.device.type))
        self.product = make(self) if make is not None else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        needs_gradient = torch.is_grad_enabled() and hidden_states.requires_grad
        if self.product is not None and not needs_gradient and self.product.suits(hidden_states):
            output = self.product(hidden_states)
            return output if self.bias is None else output + self.bias.to(output.dtype)
        return UnpackedProduct.apply(hidden_states, self.bias, self)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scheme={self.scheme}, group_size={self.group_size}"

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.weight.device.type != "cpu":
            self.product = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "product": None}  # a copy makes its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.settle()


class QuantizedEmbedding(nn.Embedding):
    """A frozen, packed table of embeddings; only the rows that are looked up are unpacked, to `output_dtype`."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, scheme: str, group_size: int, padding_idx: int | None,
        output_dtype: torch.dtype, device: Any = None,
    ):  # fmt: skip
        nn.Module.__init__(self)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.max_norm = None
        self.scale_grad_by_freq = self.sparse = False
        self.norm_type = 2.0
        self.scheme = scheme
        self.group_size = group_size
        self.output_dtype = output_dtype
        register(self, num_embeddings, embedding_dim, device)
        self.mapping: Stretch | None = None

    def settle(self) -> None:
        """Called when the weight is in place: on a CPU it goes to a file, of which a text reads few rows."""
        if self.weight.device.type == "cpu":
            before = stretch_of(self.weight)
            self.weight, self.mapping = to_file(self.weight)  # of its own, as what was written over is not forgotten
            forget(before)

    def forward(self, input_ids: Tensor) -> Tensor:
        rows = input_ids.flatten()
        unpacked = SCHEMES[self.scheme].unpack(self.weight[rows], self.weight_scale[rows])
        forget(self.mapping)  # for one row a system may have brought in 2 MB
        return unpacked.view(*input_ids.shape, -1).to(self.output_dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "mapping": None}  # a copy makes its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.settle()


class StoredLinear(nn.Linear):
    """A linear layer that is kept in 16 bits and computed in the dtype of its input.

    For CPUs without 16-bit arithmetic: converting costs far less than the product, or than twice the memory.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(hidden_states.dtype)
        return F.linear(hidden_states, self.weight.to(hidden_states.dtype), bias)


def register(module: QuantizedLinear | QuantizedEmbedding, rows: int, columns: int, device: Any) -> None:
    """Make the two buffers of a packed matrix."""
    for name, (shape, dtype) in SCHEMES[module.scheme].layout(rows, columns, module.group_size).items():
        module.register_buffer(name, torch.empty(shape, dtype=dtype, device=device))


def pack(module: QuantizedLinear | QuantizedEmbedding, matrix: Tensor) -> None:
    """Quantize `matrix` into `module`."""
    module.weight, module.weight_scale = pack_matrix(matrix, module.scheme, module.group_size)


def pack_matrix(matrix: Tensor, scheme: str, group_size: int) -> tuple[Tensor, Tensor]:
    """`weight, weight_scale` of a scheme, some rows at a time."""
    layout = SCHEMES[scheme].layout(matrix.shape[0], matrix.shape[1], group_size)
    weight, scale = (torch.empty(shape, dtype=dtype, device=matrix.device) for shape, dtype in layout.values())
    step = max(BLOCK_SIZE // matrix.shape[1], 1)
    for start in range(0, matrix.shape[0], step):
        rows = slice(start, start + step)
        weight[rows], scale[rows] = SCHEMES[scheme].pack(matrix[rows].float(), group_size)
        forget(stretch_of(matrix[rows]))  # a head of a gigabyte would count as memory until it is packed
    return weight, scale
