"""What a family of models has to say: how its networks look, read and count, and how its prompts are written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

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


class Room(NamedTuple):
    """What a picture takes.

    Args:
        least, most: visual tokens. patches: of the largest one. width: of the widest layer that they pass.
    """

    least: int
    most: int
    patches: int
    width: int


class Family(ABC):
    """A row of `FAMILIES`: everything that is asked about a network of the family.

    Attributes:
        name: how people call it.
        model_type: of its configuration.
        text_part, vision_part: names of the parts of its network, which tensors' names start with.
        towers: what may be taught, and how the names of its parameters start.
        methods: by which.
        takes_image_embeds: whether the network takes visual tokens in place of pictures, so that training looks once.
        kept_whole: linear layers that are never packed.
        can: what its models do here, for people.
        reads: of a model of pages, what may be on them → how it is asked for; nothing where it reads none.
    """

    name: str
    model_type: str
    text_part: str
    vision_part: str
    towers: Mapping[str, tuple[str, ...]]
    methods: tuple[str, ...]
    takes_image_embeds: bool
    kept_whole: tuple[str, ...] = ()
    can: tuple[str, ...]
    reads: Mapping[str, str] = MappingProxyType({})

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

    def sampling(self, settings: Any) -> dict[str, float]:
        """What the next token is chosen by where who asks leaves it open; of the keys of `GREEDY`.

        Args:
            settings: the checkpoint's `GenerationConfig`.
        """
        return {}

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

    def arrange(self, config: Any, batch: Mapping[str, Any], pictures: Sequence[Tensor]) -> dict[str, Any]:
        """What the network takes of a batch to learn from, beside its ids and labels, where pictures are of any size.

        Args:
            batch: `input_ids`, `attention_mask` and `labels` `[rows, length]`, and `logits_to_keep`.
            pictures: of all rows, in order.
        """
        raise NotImplementedError  # of rows that take image_embeds, which have nothing to arrange

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """How the names of tensors start → what they are a part of; the first match wins."""
        return (
            (f"{self.vision_part}.", "ViT"), (f"{self.text_part}.embed_tokens.", "embeddings"),
            (f"{self.text_part}.", "text layers"), ("lm_head.", "head"),
        )  # fmt: skip

    @abstractmethod
    def room(self, config: Any, processor: Callable[[], Any]) -> Room:
        """What a picture takes.

        Args:
            processor: gives that of the model, where it has a say.
        """

    @property
    @abstractmethod
    def network_class(self) -> Any:
        """The class of its networks."""


def go_on(position_ids: Tensor, num_new_tokens: int) -> Tensor:
    """Positions that count on by one, in every plane."""
    steps = torch.arange(1, num_new_tokens + 1, device=position_ids.device, dtype=position_ids.dtype)
    return torch.cat([position_ids, position_ids[..., -1:] + steps], dim=-1)
