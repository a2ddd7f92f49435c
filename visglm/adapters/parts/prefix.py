"""P-Tuning v2: keys and values that stand before those of every prompt, in every layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from ...errors import ConfigError
from ...text.prefix import attentions, prefix_shape, put_prefixes, take_prefixes
from ..names import PREFIX_END
from .part import Part

PREFIX_STARTS = "model.text."


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
