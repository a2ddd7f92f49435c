"""`Part`: one kind of change to a network, and what every kind can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


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
