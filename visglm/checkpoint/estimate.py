"""What a checkpoint costs, part by part, from names, shapes and dtypes alone: before anything is loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..families import Family, Room, family_of
from ..quant import Quantization, QuantizedEmbedding, QuantizedLinear, StoredLinear, replace_modules, store_vision
from ..quant.cuda import COPIED
from ..text.cache_size import cache_bytes
from .assemble import build
from .source import Source

FLOAT32 = torch.float32.itemsize


@dataclass(frozen=True)
class Estimate:
    """Bytes by part.

    Args:
        disk: of the checkpoint as it is.
        resident: of the weights once they are loaded.
        load_peak: of weights at the worst moment of loading; a number, not by part.
        activations: of the largest tensors that exist at once while a picture is encoded or a prompt of the full
            context is read, and of the keys and values of the answers that are given at a time.
        room: what a picture takes; None for a text-only model.
    """

    disk: dict[str, int]
    resident: dict[str, int]
    load_peak: int
    activations: dict[str, int]
    room: Room | None = None


def estimate(
    source: Source, quantization: Quantization | None, device: torch.device, dtype: torch.dtype, num_answers: int = 1
) -> Estimate:
    """What loading `source` would cost, and answering with it.

    Args:
        num_answers: that are given at a time, each as long as the context.
        quantization: as `choose_quantization` gives it.
        dtype: that the network computes in.
    """
    network = build(source.config)
    stored = dict(source.keys())
    if quantization is not None:
        record = getattr(source.config, "quantization", None)
        replace_modules(network, quantization, dtype)
        source.config.quantization = record
        if dtype == torch.float32:
            store_vision(network)
    modules = dict(network.named_modules())
    family = family_of(source.config)
    room = None if source.config.vision_config is None else family.room(source.config, source.processor)
    disk: Counter[str] = Counter()
    resident: Counter[str] = Counter()
    for name, info in stored.items():
        disk[part_of(name, family)] += info.num_bytes
    if (delta := source.delta()) is not None:
        disk["adapter"] = resident["adapter"] = sum(tensor.nbytes for tensor in delta.tensors.values())
    sizes = {}
    for name, tensor in network.state_dict().items():
        module = modules[name.rpartition(".")[0]]
        sizes[name] = tensor.numel() * (dtype if tensor.is_floating_point() else tensor.dtype).itemsize
        if isinstance(module, QuantizedLinear | QuantizedEmbedding) and name.endswith((".weight", ".weight_scale")):
            sizes[name] = packed_size(module, name, tensor, device)
        elif isinstance(module, StoredLinear) and name in stored:
            sizes[name] = stored[name].num_bytes
        resident[part_of(name, family)] += sizes[name]
    loaded, load_peak = 0, sum(sizes.values())
    for name, info in stored.items():
        loaded += sizes.get(name, 0)
        load_peak = max(load_peak, loaded + 2 * info.num_bytes)  # as it is in its file, and a copy being made
    return Estimate(dict(disk), dict(resident), load_peak, activations(source.config, dtype, num_answers, room), room)


def packed_size(module: QuantizedLinear | QuantizedEmbedding, name: str, tensor: Tensor, device: torch.device) -> int:
    """What a packed weight or its scale keeps in memory. On a CPU, some of it is in files (see `quant.memory`); on a
    GPU, some kernels have a copy of their own."""
    if device.type == "cuda" and isinstance(module, QuantizedLinear) and module.scheme in COPIED:
        return tensor.nbytes + (tensor.nbytes if name.endswith(".weight") else tensor.numel() * FLOAT32)
    if device.type != "cpu":
        return tensor.nbytes
    if isinstance(module, QuantizedEmbedding):
        return 0 if name.endswith(".weight") else tensor.nbytes
    if module.scheme == "int4" and name.endswith(".weight_scale"):
        return tensor.numel() * 2 * FLOAT32  # ONNX Runtime keeps two numbers for each group; ours are in a file
    return tensor.nbytes


def part_of(name: str, family: Family) -> str:
    """What a tensor of that name is a part of."""
    return next((part for start, part in family.parts if name.startswith(start)), "other")


def activations(config: Any, dtype: torch.dtype, num_answers: int, room: Room | None) -> dict[str, int]:
    """The largest tensors that exist at once, by part."""
    text, vision, size = config.text_config, config.vision_config, dtype.itemsize
    length = text.max_position_embeddings
    sizes = {
        # input, the wide middle and its activation, and what comes of it
        "text layers": length * (2 * text.hidden_size + 2 * text.intermediate_size) * size,
        "cache": cache_bytes(text, size, num_answers, length),
        "head": num_answers * text.vocab_size * FLOAT32,  # logits, of which the next tokens are chosen
    }
    if room is not None:
        sizes["ViT"] = room.patches * (2 * vision.hidden_size + 2 * room.width) * size
    return sizes
