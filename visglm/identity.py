"""Which network is it? What its visual tokens depend on, told from a few weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .families import family_of

NUM_SAMPLES = 4  # numbers of each tensor that are looked at


def vision_fingerprint(model: PreTrainedModel) -> str:
    """The same for networks whose vision tower has the same weights, up to the rounding of bfloat16; "" without one.

    Cheap enough for every answer. Adapters count while they are in use, whatever their names.
    """
    vision = family_of(model.config).vision(model)
    if vision is None:
        return ""
    tensors = tensors_in_use(vision)
    shapes = repr([(name, tuple(tensor.shape)) for name, tensor in tensors])
    numbers = torch.cat([sample(tensor) for _, tensor in tensors]).cpu().view(torch.int16)
    return hashlib.sha256(shapes.encode() + numbers.numpy().tobytes()).hexdigest()[:16]


class Unchanged:
    """Whether every tensor in a module is what it was when somebody asked before: one that was written to has counted
    a version more, one that was replaced lies elsewhere."""

    def __init__(self) -> None:
        self._module: nn.Module | None = None
        self._state: tuple[Any, ...] = ()
        self._places: list[tuple[dict[str, Any], str]] = []

    def check(self, module: nn.Module) -> bool:
        """Also false where nobody has asked before, or tensors of inference mode count no versions."""
        try:
            if module is self._module and self._look() == self._state:
                return True
            self._module, self._places = module, places(module)
            self._state = self._look()
        except RuntimeError:
            self._module = None
        return False

    def _look(self) -> tuple[Any, ...]:
        found: list[Any] = []
        for holder, name in self._places:
            thing = holder.get(name)
            found += (thing.data_ptr(), thing._version) if isinstance(thing, Tensor) else (id(thing), None)
        return tuple(found)


class Fingerprint:
    """`vision_fingerprint` of one network, worked out again only where something in it is no longer what it was: that
    costs a thirtieth of it."""

    def __init__(self) -> None:
        self._unchanged = Unchanged()
        self._value = ""

    def __call__(self, model: PreTrainedModel) -> str:
        vision = family_of(model.config).vision(model)
        if vision is None:
            return ""
        if not self._unchanged.check(vision):
            self._value = vision_fingerprint(model)
        return self._value


def places(module: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Where the tensors and modules in `module` are kept, and what says which adapters of PEFT count."""
    found: list[tuple[dict[str, Any], str]] = []
    for part in module.modules():
        found += [(holder, name) for holder in (part._parameters, part._buffers, part._modules) for name in holder]
        if hasattr(part, "lora_A"):
            found += [(part.__dict__, name) for name in ("_disable_adapters", "_active_adapter")]
    return found


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
