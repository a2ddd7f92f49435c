"""How the next token is chosen: settings that `VisGLM` takes and the command line shows. Loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .settings import Rule, check

LOWEST_TEMPERATURE = 0.01  # below, logits divided by it leave float32, and the answer is the likeliest one anyway

# Setting → what it may be. Out of range is an error, never a clamp.
RULES: Mapping[str, Rule] = {
    "max_new_tokens": Rule(int, 1, 1_000_000, optional=True),
    "temperature": Rule(float, LOWEST_TEMPERATURE, 5.0, or_zero=True, hint="0 takes the likeliest token every time."),
    "top_p": Rule(float, 0.0, 1.0),
    "top_k": Rule(int, 0, 1_000_000),
    "repetition_penalty": Rule(float, 0.1, 10.0),
    "seed": Rule(int, 0, 2**64 - 1, optional=True),
}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        max_new_tokens: longest answer, in tokens; None for what the context leaves, at most 512.
        temperature: 0 takes the likeliest token every time; from 0.01 to 5 samples, flatter the higher.
        top_p: sample among the likeliest tokens that hold this share of the probability, 0 to 1.
        top_k: sample among this many likeliest tokens; 0 for all.
        repetition_penalty: above 1 makes tokens that occurred before less likely.
        seed: makes sampling repeatable, alone or in a batch, whatever else draws numbers; 0 to 2**64 - 1.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self):
        check(self, RULES)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Sampling:
        """Settings by name.

        Raises:
            ConfigError: there is none of that name, or it is out of its range.
        """
        if unknown := [name for name in settings if name not in RULES]:
            raise ConfigError(f"there is no setting {', '.join(map(repr, unknown))}; known: {', '.join(RULES)}.")
        return cls(**settings)

    @property
    def draws(self) -> bool:
        """Whether chance has a part in the answer."""
        return self.temperature > 0
