"""What a family of models has to say: how its networks look, read and count, and how its prompts are written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..prompt import PromptStyle
from ..reply import PictureShape


@dataclass(frozen=True)
class Manner:
    """What prompts depend on, where a configuration does not say it in so many words.

    Args:
        prompt_style: how a conversation is written.
        text_config: of the text model. vision_config: of what looks at pictures.
        num_query_tokens: image slots of every picture; None where they depend on its size.
        max_pictures: in a conversation, as it was taught; None for any number.
    """

    prompt_style: PromptStyle
    text_config: Any
    vision_config: Any
    num_query_tokens: int | None = None
    max_pictures: int | None = None


class Family(ABC):
    """A row of `FAMILIES`: everything that is asked about a network of the family.

    Attributes:
        name: how people call it.
        model_type: of its configuration.
        text_part, vision_part: names of the parts of its network, which tensors' names start with.
        attention_name: under which the text model's layers keep their attention.
        lora_targets: names of the text model's linear layers.
        kept_whole: linear layers that are never packed.
        can: what its models do here, for people.
    """

    name: str
    model_type: str
    text_part: str
    vision_part: str
    attention_name: str
    lora_targets: tuple[str, ...]
    kept_whole: tuple[str, ...] = ()
    can: tuple[str, ...]

    def text(self, network: Any) -> Any:
        """The text model: takes embeddings, positions, a mask and a cache, gives `last_hidden_state`."""
        return network.get_submodule(self.text_part)

    @abstractmethod
    def vision(self, network: Any) -> Any:
        """What looks at pictures; None for a text-only model."""

    def reads_prefix_both_ways(self, network: Any) -> bool:
        """Whether a prompt is one block that is read both ways, which rules out cutting it up."""
        return False

    @abstractmethod
    def manner(self, config: Any) -> Any:
        """What prompts depend on: `Manner`, or a configuration that has the same fields."""

    @abstractmethod
    def look(self, network: Any, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Visual tokens `[tokens, hidden_size]` of each picture, as the family's processor prepares them."""

    @abstractmethod
    def gather(self, embeds: Sequence[Tensor]) -> Any:
        """What a history keeps of `[tokens, hidden_size]` of each picture: a sequence of these."""

    @abstractmethod
    def prompt_inputs(
        self, network: Any, input_ids: Tensor, attention_mask: Tensor, shapes: Sequence[PictureShape]
    ) -> Mapping[str, Tensor]:
        """What goes with the ids of prompts: `position_ids [(planes,) rows, length]`, and `token_type_ids` perhaps.

        Args:
            input_ids, attention_mask: `[rows, length]`, padded on the left.
            shapes: of the pictures of all rows, in order.
        """

    @abstractmethod
    def extend_position_ids(self, network: Any, position_ids: Tensor, num_new_tokens: int) -> Tensor:
        """Positions `[…, length + num_new_tokens]` after so many tokens of an answer."""

    @abstractmethod
    def read(
        self, network: Any, input_ids: Tensor, attention_mask: Tensor, pictures: Sequence[Tensor], cache: Any,
        derived: Mapping[str, Tensor],
    ) -> Tensor:  # fmt: skip
        """Logits `[rows, vocabulary]` behind prompts, which the cache knows afterwards.

        Args:
            input_ids: `[rows, new]`; what is before them is in the cache. attention_mask: `[rows, length]` of all.
            pictures: visual tokens of those that are new, of all rows in order.
            derived: of the new ids, as `prompt_inputs` gives it of all.

        Raises:
            PromptError: image slots and pictures do not match.
        """

    @property
    @abstractmethod
    def network_class(self) -> Any:
        """The class of its networks."""


def go_on(position_ids: Tensor, num_new_tokens: int) -> Tensor:
    """Positions that count on by one, in every plane."""
    steps = torch.arange(1, num_new_tokens + 1, device=position_ids.device, dtype=position_ids.dtype)
    return torch.cat([position_ids, position_ids[..., -1:] + steps], dim=-1)
