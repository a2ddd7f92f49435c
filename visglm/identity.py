"""Which network is it? What its visual tokens depend on, told from a few weights."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from .model import VisGLMForConditionalGeneration

NUM_SAMPLES = 4  # numbers of each tensor that are looked at


def vision_fingerprint(model: VisGLMForConditionalGeneration) -> str:
    """The same for networks whose vision tower has the same weights, up to the rounding of bfloat16; "" without one.

    Cheap enough for every answer. Adapters count while they are in use, whatever their names.
    """
    if model.model.vision is None:
        return ""
    tensors = tensors_in_use(model.model.vision)
    shapes = repr([(name, tuple(tensor.shape)) for name, tensor in tensors])
    numbers = torch.cat([sample(tensor) for _, tensor in tensors]).cpu().view(torch.int16)
    return hashlib.sha256(shapes.encode() + numbers.numpy().tobytes()).hexdigest()[:16]


def tensors_in_use(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The state of a module by name, with LoRA's matrices only where they count."""
    idle = {
        f"{name}.{part}"
        for name, layer in module.named_modules()
        if hasattr(layer, "lora_A")
        for part in ("lora_A", "lora_B")
        if layer.disable_adapters or not set(layer.active_adapters) & set(layer.lora_A)
    }
    return [
        (name.replace(".base_layer.", "."), tensor)
        for name, tensor in module.state_dict().items()
        if tensor.numel() and not any(name.startswith(start) for start in idle)
    ]


def sample(tensor: Tensor) -> Tensor:
    numbers = tensor.detach().flatten()
    return numbers[:: max(1, len(numbers) // NUM_SAMPLES)][:NUM_SAMPLES].to(torch.bfloat16)
