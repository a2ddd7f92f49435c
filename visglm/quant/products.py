"""Products of a few rows with a packed weight, by scheme and device. Where there is none, the weight is unpacked.

Chosen by measurement with AVX2, in weights per second on one core (memory would allow 30 G at 4 bits, 15 G at 8):

| one row | |
|---|---|
| int4, ONNX Runtime `MatMulNBits`, 8-bit activations | 20–26 G |
| int4, torch `_weight_int4pack_mm_for_cpu`, bfloat16 / float32 | 6.5 / 0.5 G |
| int8, torch `_weight_int8pack_mm`, bfloat16 / float32 | 8.0 / 1.0 G |
| int8, FBGEMM (deprecated in torch) / ONNX Runtime | 10 / 10 G |
| unpacking int4 / int8 / nf4, before any product | 1.2 / 4.6 / 0.5 G |

and at 64 rows ONNX Runtime does 85–95 GFLOP/s, float32 of torch 60.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..errors import MissingDependencyError, require
from .memory import forget, in_file, to_file


class Product(ABC):
    """`hidden_states [..., in_features]` → `[..., out_features]` without bias, in the dtype that came in.

    Attributes:
        takes_one_token: it suits one token of each answer, so that what is read together is rounded otherwise.
    """

    takes_one_token = False

    @abstractmethod
    def suits(self, hidden_states: Tensor) -> bool:
        """Whether it is faster than unpacking."""

    @abstractmethod
    def __call__(self, hidden_states: Tensor) -> Tensor: ...


class Int8Product(Product):
    """torch's own, for one token of each answer. It is fast in bfloat16 only; scales are applied afterwards, in
    float32.

    Prompts are computed with unpacked weights, which is paid once. What is rounded must not depend on how many answers
    are given at a time, so the length decides and not the number of rows.
    """

    takes_one_token = True
    most_rows = 8  # of a matrix that is no batch of sequences, where unpacking begins to win

    def __init__(self, linear: Any):
        # Of rows beyond a multiple of four, torch reads aligned registers: elsewhere in a file that kills the process.
        if linear.weight.shape[0] % 4 and linear.weight.data_ptr() % 64:
            linear.weight = linear.weight.clone()
        self.linear = linear

    def suits(self, hidden_states: Tensor) -> bool:
        if hidden_states.dim() > 2:
            return hidden_states.shape[-2] == 1
        return hidden_states.shape[:-1].numel() <= self.most_rows

    def __call__(self, hidden_states: Tensor) -> Tensor:
        weight, scale = self.linear.weight, self.linear.weight_scale
        rows = hidden_states.reshape(-1, hidden_states.shape[-1]).to(torch.bfloat16)
        ones = rows.new_ones(weight.shape[0])
        output = torch.ops.aten._weight_int8pack_mm(rows, weight, ones).float() * scale.float().T
        return output.view(*hidden_states.shape[:-1], -1).to(hidden_states.dtype)


class OnnxProduct(Product):
    """ONNX Runtime's `MatMulNBits`. One session per weight, all on one pool of threads.

    The session keeps numbers and scales in an order of its own, and the sum of each group besides. Both as they were go
    to files, unless they are views of a checkpoint's, and are handed over from there: as parts of the ONNX model they
    would stay in memory once more.
    """

    def __init__(self, linear: Any):
        runtime, options = onnx_runtime(), session_options()
        scale, scale_file = to_file(linear.weight_scale.float())
        linear.weight, weight_file = in_file(linear.weight)
        linear.weight_scale, linear_scale_file = in_file(linear.weight_scale)
        arrays = {
            "weight": linear.weight.numpy().reshape(linear.out_features, scale.shape[1], -1),
            "scale": scale.numpy().reshape(-1),
        }
        # Which the session may read as long as it lives.
        self.values = {name: runtime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        # Once in place of files that the model names, and once so that the session takes no copy of the scales.
        options.add_external_initializers(list(self.values), list(self.values.values()))
        for name, value in self.values.items():
            options.add_initializer(name, value)
        model = matmul_nbits(linear, arrays)
        self.session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for file in (weight_file, scale_file, linear_scale_file):
            forget(file)

    def suits(self, hidden_states: Tensor) -> bool:
        return True

    def __call__(self, hidden_states: Tensor) -> Tensor:
        rows = hidden_states.detach().reshape(-1, hidden_states.shape[-1]).float().contiguous()
        (output,) = self.session.run(None, {"hidden_states": rows.numpy()})
        return torch.from_numpy(output).view(*hidden_states.shape[:-1], -1).to(hidden_states.dtype)


def make_onnx_product(linear: Any) -> OnnxProduct | None:
    """Nothing, after a warning, where ONNX Runtime is not installed: answers stay the same and take longer."""
    try:
        require("quant", "onnx", "onnxruntime")
    except MissingDependencyError as error:
        warnings.warn(f"int4 is several times slower on this CPU than it could be. {error}", stacklevel=2)
        return None
    return OnnxProduct(linear)


@functools.cache
def onnx_runtime() -> Any:
    """The module, its threads set once per process: as many as torch uses."""
    runtime = require("quant", "onnxruntime")
    runtime.set_default_logger_severity(3)
    runtime.set_global_thread_pool_sizes(torch.get_num_threads(), 1)
    return runtime


class OneThread:
    """torch on one thread as long as anybody is inside; the number is one for the whole process."""

    def __init__(self) -> None:
        self._num_inside, self._num_threads = 0, 1
        self.renew()

    def renew(self) -> None:
        """After a fork: whoever held the lock is not in this process."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._num_threads = torch.get_num_threads()
                torch.set_num_threads(1)
            self._num_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                torch.set_num_threads(self._num_threads)


ONE_THREAD = OneThread()
if hasattr(os, "register_at_fork"):  # Windows never forks
    os.register_at_fork(after_in_child=ONE_THREAD.renew)


def without_contention(model: torch.nn.Module) -> AbstractContextManager[None]:
    """torch on one thread, where ONNX Runtime computes the products of `model` on a pool of its own.

    What is left for torch between two products is too small to share out, and two pools that wait for work by spinning
    keep each other from the cores: on two of them a token of VisualGLM-6B then takes two to three times as long.
    """
    return ONE_THREAD if uses_onnx(model) else contextlib.nullcontext()


def uses_products(model: torch.nn.Module) -> bool:
    """Whether `model` has fast products, which may round a token otherwise in other company."""
    return any(getattr(module, "product", None) is not None for module in model.modules())


def rounds_alike(model: torch.nn.Module) -> bool:
    """Whether tokens of one row that are read together are rounded as one at a time: not where fast products are for
    one only."""
    products = (getattr(module, "product", None) for module in model.modules())
    return not any(product is not None and product.takes_one_token for product in products)


def uses_onnx(model: torch.nn.Module) -> bool:
    """Whether ONNX Runtime computes products of `model`, with threads that a forked process does not have."""
    return any(isinstance(getattr(module, "product", None), OnnxProduct) for module in model.modules())


def session_options() -> Any:
    options = onnx_runtime().SessionOptions()
    options.use_per_session_threads = False
    options.enable_cpu_mem_arena = False
    return options


def external(onnx: Any, name: str, array: Any) -> Any:
    """A weight of an ONNX model that is handed over beside it."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "memory"), ("offset", "0"), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def matmul_nbits(linear: Any, arrays: dict[str, Any]) -> bytes:
    """An ONNX model of one product, its `arrays` to be handed over beside it."""
    onnx = require("quant", "onnx")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    group_size = linear.in_features // linear.weight_scale.shape[1]
    node = helper.make_node(
        "MatMulNBits", ["hidden_states", "weight", "scale"], ["output"], domain="com.microsoft",
        K=linear.in_features, N=linear.out_features, bits=4, block_size=group_size,
        accuracy_level=4,  # activations in 8 bits, each group with a scale of its own
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("hidden_states", float32, ["rows", linear.in_features])],
        [helper.make_tensor_value_info("output", float32, ["rows", linear.out_features])],
        [external(onnx, name, array) for name, array in arrays.items()],
    )
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=10).SerializeToString()


# (scheme, device type) → what makes the product of a linear layer, or None where it turns out to be impossible. `cuda`
# adds the rows of GPUs.
PRODUCTS: dict[tuple[str, str], Callable[[Any], Product | None]] = {
    ("int8", "cpu"): Int8Product,
    ("int4", "cpu"): make_onnx_product,
}
