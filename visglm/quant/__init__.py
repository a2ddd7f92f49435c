"""Networks in 8 or 4 bits: which modules, how, and on the way in, so that the whole never exists in 16 bits.

A quantized network says so in `config.quantization`, and is saved and loaded as it is. `SCHEMES` is the table of ways.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..families import Family, family_of
from .layers import QuantizedEmbedding, QuantizedLinear, StoredLinear, pack, pack_matrix
from .memory import give_back_memory, stretch_of
from .products import without_contention
from .schemes import PARTS, SCHEMES

Own = TypeVar("Own", bound="Settling")
MOST_THREADS = 8  # that arrange weights side by side; each holds one of them twice
LARGE_HIDDEN_SIZE = 2048  # of the text model, from which on 128 numbers share a scale instead of 32

__all__ = [
    "PARTS", "SCHEMES", "QuantizedEmbedding", "QuantizedLinear", "Quantization", "StoredLinear", "Writer",
    "count_weights", "modules_of", "pack", "pack_matrix", "quantize_network", "replace_modules", "set_output_dtype",
    "store_vision", "use_products", "usual_group_size", "without_contention",
]  # fmt: skip


@dataclass(frozen=True)
class Quantization:
    """How a network is quantized, as `config.quantization` records it.

    Args:
        scheme: name in `SCHEMES`.
        group_size: numbers that share a scale, where the scheme groups them.
        parts: what is quantized, of `PARTS`.
    """

    scheme: str
    group_size: int
    parts: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ConfigError(f"no quantization scheme {self.scheme!r}; the schemes are {', '.join(SCHEMES)}.")
        if unknown := set(self.parts) - set(PARTS):
            raise ConfigError(f"quantized parts can be {', '.join(PARTS)}; got {', '.join(sorted(unknown))}.")

    @classmethod
    def choose(cls, scheme: str, config: Any, vision: bool = False) -> Quantization:
        """The usual choices for a network.

        What is packed already stays as it is, to the bit; the same scheme may be put on the parts that are left.

        Args:
            vision: quantize the ViT and the Q-Former too.

        Raises:
            ConfigError: no such scheme, or the network is quantized already to another one.
        """
        chosen = cls(scheme, usual_group_size(config), SCHEMES[scheme].parts if scheme in SCHEMES else ())
        there = cls.of(config)
        if there is not None and there.scheme != scheme:
            raise ConfigError(
                f"this checkpoint is quantized to {there.scheme} already, and quantizing it to {scheme} as well would "
                "add up the errors. Leave `quantize` out, or start from the 16-bit checkpoint."
            )
        wanted = {*chosen.parts, *(("vision",) if vision else ()), *(there.parts if there is not None else ())}
        return dataclasses.replace(there or chosen, parts=tuple(part for part in PARTS if part in wanted))

    @classmethod
    def of(cls, config: Any) -> Quantization | None:
        """What a configuration records.

        Raises:
            ConfigError: it is not understood: another version wrote it.
        """
        if getattr(config, "quantization", None) is None:
            return None
        try:
            record = {**config.quantization, "parts": tuple(config.quantization["parts"])}
            return cls(**record)
        except (TypeError, KeyError) as error:
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            raise ConfigError(
                f"config.quantization is {config.quantization!r}; expected the keys {names}. Update visglm, or "
                "quantize the 16-bit checkpoint again."
            ) from error

    def layout(self, rows: int, columns: int) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
        """Shape and dtype of what a matrix becomes."""
        return SCHEMES[self.scheme].layout(rows, columns, self.group_size)

    def record(self) -> dict[str, Any]:
        """For the configuration."""
        return {"scheme": self.scheme, "group_size": self.group_size, "parts": list(self.parts)}


def usual_group_size(config: Any) -> int:
    """Columns that share a scale in a network of this size."""
    return 128 if config.text_config.hidden_size >= LARGE_HIDDEN_SIZE else 32


def part_of(name: str, module: nn.Module, family: Family) -> str | None:
    """The part of `PARTS` that a module belongs to, if it is one that can be quantized."""
    if isinstance(module, nn.Embedding):
        return "embeddings" if name.startswith(f"{family.text_part}.") else None
    if not isinstance(module, nn.Linear) or name in family.kept_whole:
        return None
    if name.startswith(f"{family.vision_part}."):
        return "vision"
    return "head" if name == "lm_head" else "layers"


def modules_of(network: PreTrainedModel, parts: tuple[str, ...]) -> dict[str, Any]:
    """The modules that quantizing these parts replaces: not those that are packed already, nor tied embeddings and
    head, one tensor."""
    tied = ("embeddings", "head") if network.config.tie_word_embeddings else ()
    family = family_of(network.config)
    return {
        name: module
        for name, module in network.named_modules()
        if not isinstance(module, QuantizedLinear | QuantizedEmbedding)
        and (part := part_of(name, module, family)) in parts
        and part not in tied
    }


def count_weights(network: PreTrainedModel) -> int:
    """Weights of a network, packed ones included: those are no parameters, and `num_parameters` does not count them."""
    count = network.num_parameters()
    for module in network.modules():
        if isinstance(module, QuantizedLinear):
            count += module.in_features * module.out_features
        elif isinstance(module, QuantizedEmbedding):
            count += module.num_embeddings * module.embedding_dim
    return count


def replace_modules(network: PreTrainedModel, quantization: Quantization, dtype: torch.dtype) -> None:
    """Put empty packed modules on the meta device in their places, and note it in the configuration.

    Args:
        dtype: that the network computes in.
    """
    for name, module in modules_of(network, quantization.parts).items():
        network.set_submodule(name, packed_twin(module, quantization, dtype))
    network.config.quantization = quantization.record()


def packed_twin(module: Any, quantization: Quantization, dtype: torch.dtype) -> QuantizedLinear | QuantizedEmbedding:
    common: dict[str, Any] = {"scheme": quantization.scheme, "group_size": quantization.group_size, "device": "meta"}
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(
            module.num_embeddings, module.embedding_dim, padding_idx=module.padding_idx, output_dtype=dtype, **common
        )
    return QuantizedLinear(module.in_features, module.out_features, bias=module.bias is not None, **common)


def set_output_dtype(network: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make packed embeddings unpack to `dtype`."""
    for module in network.modules():
        if isinstance(module, QuantizedEmbedding):
            module.output_dtype = dtype


def store_vision(network: PreTrainedModel) -> None:
    """Keep the linears of ViT and Q-Former in the bits they come in, though the network computes in float32."""
    for module in modules_of(network, ("vision",)).values():
        if not isinstance(module, QuantizedLinear):
            module.__class__ = StoredLinear


def use_products(network: PreTrainedModel, wanted: bool) -> None:
    """Have the fast products of packed weights ready, or give back the memory they take.

    They keep the weights once more, in an order of their own. Answers want them. Gradients do not pass through them, so
    training is better off without.
    """
    with Settling() as settling:
        for module in network.modules():
            if isinstance(module, QuantizedLinear):
                module.product = None
                give_back_memory()
                if wanted:
                    settling.add(module)


class Settling:
    """Modules get ready for fast products side by side: a product arranges its weights on one thread. In a `with`, at
    whose end all are ready, or the first error is raised."""

    def __init__(self) -> None:
        self._num_threads = min(torch.get_num_threads(), MOST_THREADS)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self: Own) -> Own:
        self._pool = ThreadPoolExecutor(self._num_threads, "visglm-settle")
        return self

    def add(self, module: QuantizedLinear | QuantizedEmbedding) -> None:
        """Begin with it, once there are few others before it: what waits takes memory."""
        if len(self._waiting) > self._num_threads:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(settle, module))

    def __exit__(self, kind: Any, *error: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._waiting:
                future.result()


def settle(module: QuantizedLinear | QuantizedEmbedding) -> None:
    """Get ready for products, and give back what that took."""
    module.settle()
    give_back_memory()


class Writer(Settling):
    """The `prepare` of `checkpoint.assemble` for a network that is quantized or becomes so.

    Tensors must come in the dtype they are stored in. Packed modules take theirs, quantizing them if they are not yet;
    everything else is copied in `dtype`, but for the linears that `store_vision` chose, which stay as they are. Numbers
    that are packed and on a CPU already are not copied where they are views of a checkpoint's file.
    """

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __call__(self, name: str, module: nn.Module, tensor: Tensor) -> bool:
        attribute = name.rpartition(".")[2]
        if isinstance(module, QuantizedLinear | QuantizedEmbedding) and attribute in ("weight", "weight_scale"):
            if attribute == "weight" and tensor.is_floating_point():
                pack(module, tensor)
            else:
                stays = stretch_of(tensor) is not None
                module._buffers[attribute] = tensor if stays else tensor.clone(memory_format=torch.contiguous_format)
            if not (module.weight.is_meta or module.weight_scale.is_meta):
                self.add(module)
            return True
        kept = not tensor.is_floating_point() or isinstance(module, StoredLinear)
        tensor = tensor.to(tensor.dtype if kept else self.dtype, copy=True, memory_format=torch.contiguous_format)
        if attribute in module._buffers:
            module._buffers[attribute] = tensor
        else:
            module._parameters[attribute] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        return True


@torch.no_grad()
def quantize_network(network: PreTrainedModel, quantization: Quantization) -> None:
    """Quantize a network that is loaded already, in place, one weight at a time."""
    with Settling() as settling:
        for name, module in modules_of(network, quantization.parts).items():
            twin = packed_twin(module, quantization, module.weight.dtype)
            pack(twin, module.weight)
            if isinstance(module, nn.Linear):
                twin.bias = module.bias
            network.set_submodule(name, twin)
            settling.add(twin)
    network.config.quantization = quantization.record()
