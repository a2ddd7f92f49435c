"""What a run would train and how long it could be, told before anybody starts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..model import VisGLMForConditionalGeneration
from ..recipe import FEW, FinetuneArguments
from .methods import METHODS, check_settings, tower_names
from .plan import count_steps
from .replay import num_general


@dataclass(frozen=True)
class Outlook:
    """A run that nobody has started.

    Args:
        method: of `METHODS`.
        towers: the parts of the network that learn, of `TOWERS`.
        num_weights: numbers that learn.
        share: those of all that the network has, 0 to 1, or more.
        num_steps: optimizer steps.
        is_most: whether the run may end before them, when everything is learnt.
        num_general: examples of what the model knows, mixed into those of an epoch.
    """

    method: str
    towers: tuple[str, ...]
    num_weights: int
    share: float
    num_steps: int
    is_most: bool
    num_general: int


def outlook(
    network: VisGLMForConditionalGeneration, num_answers: int, method: str = "lora", **settings: Any
) -> Outlook:
    """What fine-tuning on so many answers would be, none of them held out; the network is looked at and not changed.

    Args:
        settings: as the fields of `visglm.recipe.FinetuneArguments`.

    Raises:
        ConfigError: a setting is wrong, or the network has not what would learn.
    """
    asked = FinetuneArguments(method=method, **settings)
    check_settings(asked)
    settled = asked.for_size(num_answers)
    general = num_general(num_answers, settled.replay or 0.0)
    num_weights = METHODS[method].num_weights(network, settled)
    return Outlook(
        method=method,
        towers=tower_names(settled, network.config),
        num_weights=num_weights,
        share=num_weights / sum(parameter.numel() for parameter in network.parameters()),
        num_steps=count_steps(num_answers + general, settled)[0],
        is_most=asked.epochs is None and asked.max_steps is None and num_answers <= FEW,
        num_general=general,
    )
