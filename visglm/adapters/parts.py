"""What an adapter is made of: one class for each kind of change to a network, a row of `KINDS` each.

A part is in the network or not (`on`, `off`, `remove`), and its base comes back to the bit when it is off.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ConfigError, require
from ..quant import QuantizedLinear
from ..text.prefix import attentions, prefix_shape, put_prefixes, take_prefixes
from .names import PREFIX_END, base_tensors, lora_layers

LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
PREFIX_STARTS = "model.text."


class Part(ABC):
    """One kind of change.

    Args:
        network: that it changes.
        key: by which PEFT tells adapters apart; unique in a network, free of dots, and no user's choice.
    """

    kind: ClassVar[str]
    can_be_weighed: ClassVar[bool] = False  # whether there is a network between the base and the one with all of it

    def __init__(self, network: PreTrainedModel, key: str):
        self.network = network
        self.key = key
        self.can_go_back = True  # to the base

    @classmethod
    @abstractmethod
    def problems(cls, network: PreTrainedModel, tensors: Mapping[str, Tensor]) -> list[str]:
        """Why these tensors cannot be attached to this network, one line each. Nothing is changed."""

    @classmethod
    @abstractmethod
    def attach(cls, network: PreTrainedModel, key: str, tensors: Mapping[str, Tensor], alphas: Mapping[str, float]):
        """A part with these tensors, which have no `problems`. It is off."""

    @abstractmethod
    def on(self) -> None:
        """Make the network compute with it."""

    @abstractmethod
    def off(self) -> None:
        """Make the network compute as its base does."""

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """What it is made of, while it is on: name in its files → the live parameter."""

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, on the CPU, whether it is on or off."""
        return {name: parameter.detach().cpu() for name, parameter in self.parameters().items()}

    def dtypes(self) -> dict[str, torch.dtype]:
        """In which numbers the base has what is learnt; only what takes the base's place is among them."""
        return {}

    def forget_base(self) -> None:
        """Give up what `off` brings back."""
        self.can_go_back = False

    def live_names(self) -> dict[str, str]:
        """Name in its files → name in the network's `state_dict`."""
        places = {id(parameter): name for name, parameter in self.network.named_parameters()}
        return {name: places[id(parameter)] for name, parameter in self.parameters().items()}

    def learn(self) -> None:
        """Get ready to be trained: in float32, with gradients."""
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)

    def rest(self) -> None:
        """Learn no more."""
        for parameter in self.parameters().values():
            parameter.requires_grad_(False)

    def remove(self) -> None:
        """Leave the network as if it had never been there."""
        self.off()

    @abstractmethod
    def merge(self) -> None:
        """Become a part of the base.

        Raises:
            ConfigError: that is not possible; nothing was changed.
        """


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
        with torch.no_grad():
            for name, parameter in part.parameters().items():
                parameter.copy_(tensors[name])
        part.off()
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


class Prefix(Part):
    """P-Tuning v2: `{attention}.prefix [2, key heads, tokens, head_dim]`, keys and values of every layer."""

    kind = "prefix"

    def __init__(self, network: PreTrainedModel, key: str, tables: Mapping[str, nn.Parameter]):
        super().__init__(network, key)
        self.tables = dict(tables)
        self.is_on = False

    @classmethod
    def problems(cls, network, tensors):
        text = network.model.text
        shapes = {
            f"{PREFIX_STARTS}{name}{PREFIX_END}": prefix_shape(text.config, module) for name, module in attentions(text)
        }
        found = [f"{name}: missing" for name in shapes.keys() - tensors.keys()]
        found += [f"{name}: not in the base" for name in tensors.keys() - shapes.keys()]
        lengths = {tensor.shape[2] for tensor in tensors.values() if tensor.ndim == 4}
        length = lengths.pop() if lengths else 0
        for name in shapes.keys() & tensors.keys():
            heads, size = shapes[name]
            if tuple(tensors[name].shape) != (2, heads, length, size) or not length:
                found.append(f"{name} is {list(tensors[name].shape)}, expected {[2, heads, length, size]}")
        return sorted(found)

    @classmethod
    def attach(cls, network, key, tensors, alphas):
        device = network.device
        return cls(
            network,
            key,
            {name: nn.Parameter(tensor.float().to(device), requires_grad=False) for name, tensor in tensors.items()},
        )

    @classmethod
    def draw(cls, network: PreTrainedModel, key: str, num_tokens: int) -> Prefix:
        """A prefix of `num_tokens` positions, random as the weights once were. It is on."""
        text = network.model.text
        tensors = {}
        for name, module in attentions(text):
            heads, size = prefix_shape(text.config, module)
            table = torch.empty(2, heads, num_tokens, size).normal_(std=text.config.initializer_range)
            tensors[f"{PREFIX_STARTS}{name}{PREFIX_END}"] = table
        part = cls.attach(network, key, tensors, {})
        part.on()
        return part

    def parameters(self):
        live = dict(self.network.named_parameters())  # sharding puts others in their places
        return {name: live.get(name, table) for name, table in self.tables.items()} if self.is_on else self.tables

    def on(self):
        tables = {
            name.removeprefix(PREFIX_STARTS).removesuffix(PREFIX_END): table for name, table in self.tables.items()
        }
        put_prefixes(self.network.model.text, tables)
        self.is_on = True

    def off(self):
        take_prefixes(self.network.model.text)
        self.is_on = False

    def merge(self):
        raise ConfigError("a P-Tuning prefix is no part of any weight and cannot be merged; keep the adapter folder.")


class Whole(Part):
    """Parameters of the network that were learnt themselves, under their own names."""

    kind = "whole"

    def __init__(self, network: PreTrainedModel, key: str, values: Mapping[str, Tensor]):
        super().__init__(network, key)
        self.values = dict(values)  # while it is off
        self.base: dict[str, Tensor] = {}  # what it took the place of, while it is on

    @classmethod
    def problems(cls, network, tensors):
        own = base_tensors(network)
        found = []
        for name, tensor in tensors.items():
            if not isinstance(own.get(name), nn.Parameter):
                found.append(f"{name}: not in the base")
            elif own[name].shape != tensor.shape:
                found.append(f"{name} is {list(tensor.shape)}, in the base {list(own[name].shape)}")
            elif not tensor.is_floating_point():
                found.append(f"{name} is {tensor.dtype}, expected a floating-point type")
        return found

    @classmethod
    def attach(cls, network, key, tensors, alphas):
        return cls(network, key, {name: tensor.detach().clone() for name, tensor in tensors.items()})

    @classmethod
    def of(cls, network: PreTrainedModel, key: str, names: Iterable[str]) -> Whole:
        """These parameters as they are. It is on."""
        own, part = base_tensors(network), cls(network, key, {})
        for name in names:
            part.base[name] = own[name].data.cpu()
            own[name].data = own[name].data.clone()
        return part

    def parameters(self):
        own = base_tensors(self.network)
        return {name: own[name] for name in self.base or self.values}

    def tensors(self):
        return super().tensors() if self.base else {name: tensor.cpu() for name, tensor in self.values.items()}

    def on(self):
        own = base_tensors(self.network)
        for name, value in self.values.items():
            # The base waits where memory is cheap; on a CPU it is not even copied.
            self.base[name] = own[name].data.cpu()
            own[name].data = value.to(own[name].data)  # nor is this: switching costs nothing where both fit
        self.values = {}

    def off(self):
        own = base_tensors(self.network)
        for name, tensor in self.base.items():
            self.values[name] = own[name].detach().to("cpu", tensor.dtype)
            own[name].data = tensor.to(own[name].device)
        self.base = {}

    def rest(self):
        super().rest()
        for name, parameter in self.parameters().items():
            parameter.data = parameter.data.to(self.base[name].dtype)

    def forget_base(self):
        super().forget_base()
        self.base = {name: tensor.new_empty(0) for name, tensor in self.base.items()}

    def dtypes(self):
        return {name: tensor.dtype for name, tensor in self.base.items()}

    def merge(self):
        self.base = {}


KINDS: dict[str, type[Part]] = {part.kind: part for part in (Lora, Prefix, Whole)}


def kind_of(name: str) -> str:
    """The kind of part that a tensor in an adapter's files belongs to."""
    if LORA.fullmatch(name):
        return Lora.kind
    return Prefix.kind if name.endswith(PREFIX_END) else Whole.kind


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
