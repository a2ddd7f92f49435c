"""How the next token is chosen: settings that `VisGLM` takes and the command line shows. Loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import ConfigError

# Setting: lowest and highest value, and what it does. Out of range is an error, never a clamp.
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1_000_000),
    "repetition_penalty": (0.1, 10.0),
}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        max_new_tokens: longest answer, in tokens; None for what the context leaves, at most 512.
        temperature: 0 takes the likeliest token every time; above 0 samples, flatter the higher.
        top_p: sample among the likeliest tokens that hold this share of the probability, 0 to 1.
        top_k: sample among this many likeliest tokens; 0 for all.
        repetition_penalty: above 1 makes tokens that occurred before less likely.
        seed: makes sampling repeatable; None leaves torch's random state alone.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self):
        for name, (lowest, highest) in RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not lowest <= value <= highest:
                raise ConfigError(f"{name} must be between {lowest} and {highest}; got {value!r}.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1; got {self.max_new_tokens!r}.")

    def generate_arguments(self) -> dict[str, Any]:
        """The same, as `generate` wants it."""
        arguments: dict[str, Any] = {"repetition_penalty": self.repetition_penalty, "do_sample": self.temperature > 0}
        if self.temperature > 0:
            arguments |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return arguments
