"""What goes into a question beside its words, and what comes back: settings, history, reply."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from .errors import ConfigError, PromptError
from .prompt import Turn

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


@dataclass(frozen=True)
class History:
    """A conversation so far, with its pictures as visual tokens, so that they are not encoded again.

    Args:
        turns: questions and answers, oldest first.
        image_embeds: `[num_images, num_query_tokens, hidden_size]`, the pictures of all turns in order.
        language: of the prompt, as the first turn settled it.
    """

    turns: tuple[Turn, ...] = ()
    image_embeds: Tensor | None = None
    language: str = "auto"

    @classmethod
    def of(cls, history: History | Sequence[tuple[str, str]] | None) -> History:
        """A history from one, from `(question, answer)` pairs, or from nothing.

        Raises:
            PromptError: it is neither.
        """
        if history is None:
            return cls()
        if isinstance(history, History):
            return history
        try:
            return cls(tuple(Turn(question, answer) for question, answer in history))
        except (TypeError, ValueError):
            raise PromptError(
                f"history must be a reply's history or (question, answer) pairs; got {type(history).__name__}."
            ) from None


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer: the prompt with its image slots, and what was generated, `<eop>` included."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds: pictures to visual tokens, then to the first token, then all of the answer."""

    encode: float
    first_token: float
    total: float


@dataclass(frozen=True)
class Reply:
    """An answer. `str(reply)` is its text.

    Args:
        text: the answer.
        history: pass it to the next call to go on.
        finish_reason: "stop" when the model ended the answer, "length" when the limit did, "cancelled" when the
            reader of a stream walked away.
        images: the pictures of this turn, RGB.
    """

    text: str
    history: History
    usage: Usage
    timings: Timings
    finish_reason: str
    images: tuple[Image.Image, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """For notebooks: pictures, then the answer."""
        pictures = "".join(f'<img src="{thumbnail_url(image)}" style="margin-right:8px">' for image in self.images)
        return f"<div>{pictures}<p>{html.escape(self.text)}</p></div>"


def thumbnail_url(image: Image.Image, size: int = 256) -> str:
    """A small PNG of `image`, at most `size` pixels a side, as a data URL."""
    thumbnail, buffer = image.copy(), io.BytesIO()
    thumbnail.thumbnail((size, size))
    thumbnail.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
