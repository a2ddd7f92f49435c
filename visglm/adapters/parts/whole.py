"""Parameters that were learnt themselves and take the place of the base's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..names import base_tensors
from .part import Part


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
