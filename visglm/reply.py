"""What comes back from a question: the reply, and the history that the next question goes on from."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from .errors import PromptError
from .prompt import Turn


@dataclass(frozen=True)
class History:
    """A conversation so far, with its pictures as visual tokens, so that they are not encoded again.

    Args:
        turns: questions and answers, oldest first.
        image_embeds: `[num_images, num_query_tokens, hidden_size]`, the pictures of all turns in order.
        language: of the prompt, as the first turn settled it.
    """

    turns: tuple[Turn, ...] = ()
    image_embeds: Tensor | None = field(default=None, repr=False)
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
