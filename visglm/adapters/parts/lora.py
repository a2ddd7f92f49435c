"""LoRA: low-rank matrices beside linear layers, put there and taken away by PEFT."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import ConfigError, require
from ...quant import QuantizedLinear
from ..names import lora_layers
from .part import Part

LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


class Lora(Part):
    """Low-rank matrices beside linear layers, by PEFT: `….lora_A.weight [rank, in]`, `….lora_B.weight [out, rank]`.

    Args:
        alphas: module → alpha; what the matrices give is scaled by alpha / rank.
    """

    kind = "lora"
    can_be_weighed = True

    def __init__(self, network: PreTrainedModel, key: str, alphas: Mapping[str, float]):
        super().__init__(network, key)
        self.alphas = dict(alphas)

    @contextmanager
    def weighed(self, share: float) -> Iterator[None]:
        """So much of it only, inside a `with`: 0 is the base, 1 all of it. What learns goes on to."""
        scales = {layer: layer.scaling[self.key] for layer in self.layers().values()}
        try:
            for layer, scale in scales.items():
                layer.scaling[self.key] = scale * share
            yield
        finally:
            for layer, scale in scales.items():
                layer.scaling[self.key] = scale

    @torch.no_grad()
    def weigh(self, share: float) -> None:
        """Be so much of what it is, from now on."""
        for layer in self.layers().values():
            layer.lora_B[self.key].weight.mul_(share)

    @classmethod
    def problems(cls, network, tensors):
        sides = pairs(tensors)
        modules = dict(network.named_modules())
        found = []
        for name, pair in sides.items():
            layer = modules.get(name)
            linear = getattr(layer, "base_layer", layer)
            if not isinstance(linear, nn.Linear):
                found.append(
                    f"{name} is no linear layer of the base" if layer is not None else f"{name}: not in the base"
                )
            elif pair.keys() != {"A", "B"}:
                found.append(f"{name} has lora_{''.join(pair)} alone")
            else:
                rank = pair["A"].shape[0] if pair["A"].ndim == 2 else 0
                for side, shape in (("A", (rank, linear.in_features)), ("B", (linear.out_features, rank))):
                    if not rank or tuple(pair[side].shape) != shape:
                        found.append(f"{name}.lora_{side} is {list(pair[side].shape)}, expected {list(shape)}")
        return found

    @classmethod
    def attach(cls, network, key, tensors, alphas):
        ranks = {name: pair["A"].shape[0] for name, pair in pairs(tensors).items()}
        part = cls.inject(network, key, ranks, alphas)
        try:
            with torch.no_grad():
                for name, parameter in part.parameters().items():
                    parameter.copy_(tensors[name])
            part.off()
        except BaseException:
            part.remove()
            raise
        return part

    @classmethod
    def inject(
        cls, network: PreTrainedModel, key: str, ranks: Mapping[str, int], alphas: Mapping[str, float],
        dropout: float = 0.0,
    ) -> Lora:  # fmt: skip
        """Random matrices that change nothing yet, beside the modules named in `ranks`. They are on."""
        part = cls(network, key, {name: float(alphas[name]) for name in ranks})
        try:
            require("finetune", "peft").inject_adapter_in_model(lora_config(ranks, alphas, dropout), network, key)
        except BaseException:
            part.remove()
            raise
        for parameter in part.parameters().values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(False)
        network.train(network.training)  # new layers start with dropout on
        return part

    def layers(self) -> dict[str, Any]:
        """The wrapped modules that have these matrices."""
        return {name: layer for name, layer in lora_layers(self.network).items() if self.key in layer.lora_A}  # type: ignore[operator]

    def parameters(self):
        return {
            f"{name}.lora_{side}.weight": getattr(layer, f"lora_{side}")[self.key].weight
            for name, layer in self.layers().items()
            for side in "AB"
        }

    def on(self):
        for layer in self.layers().values():
            layer.enable_adapters(True)
            layer.set_adapter(self.key)
        self.rest()  # PEFT takes what is in use for what is to be trained

    def off(self):
        for layer in self.layers().values():
            layer.enable_adapters(False)
        self.rest()

    def remove(self):
        for name, layer in self.layers().items():
            layer.set_adapter([])
            layer.delete_adapter(self.key)
            if len(layer.lora_A) == 0:
                unwrap(self.network, name, layer)
        configurations = getattr(self.network, "peft_config", {})
        configurations.pop(self.key, None)
        if not configurations:
            vars(self.network).pop("peft_config", None)

    def merge(self):
        for name, layer in self.layers().items():
            if isinstance(layer.get_base_layer(), QuantizedLinear):
                raise ConfigError(f"{name} is quantized; load the base in 16 bits to merge, then quantize the result.")
        for layer in self.layers().values():
            layer.merge(safe_merge=True, adapter_names=[self.key])
            layer.merged_adapters.clear()  # there is nothing to take back
        self.remove()


def pairs(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """LoRA's matrices: module → side → matrix."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = LORA.fullmatch(name)
        if match is not None:
            found.setdefault(match["module"], {})[match["side"]] = tensor
    return found


def lora_config(ranks: Mapping[str, int], alphas: Mapping[str, float], dropout: float = 0.0) -> Any:
    """PEFT's configuration for exactly these modules, by their whole names."""
    usual = next(iter(ranks))
    return require("finetune", "peft").LoraConfig(
        r=ranks[usual],
        lora_alpha=alphas[usual],
        lora_dropout=dropout,
        target_modules=list(ranks),
        rank_pattern={re.escape(name): rank for name, rank in ranks.items() if rank != ranks[usual]},
        alpha_pattern={re.escape(name): alphas[name] for name in ranks if alphas[name] != alphas[usual]},
    )


def unwrap(network: nn.Module, name: str, layer: Any) -> None:
    """Put the layer that PEFT wrapped back into its place."""
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer.get_base_layer())
