"""What comes back from a question: the reply, and the history that the next question goes on from."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from .errors import PromptError, counted, shown
from .prompt import Turn, messages_to_turns

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Embeds = Tensor | np.ndarray  # without torch, NumPy's

EXPECTED = 'Expected a reply\'s history, (question, answer) pairs, or messages {"role": …, "content": …}.'


@dataclass(frozen=True)
class PictureShape:
    """What a picture was, and what a network makes of it.

    Args:
        grid: frames, rows and columns of its visual tokens; one row where they are in no order.
        size: width and height in pixels, of the picture as it was shown; zeros where nobody noted it.
    """

    grid: tuple[int, int, int]
    size: tuple[int, int] = (0, 0)

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid)


@dataclass(frozen=True, eq=False)
class History:
    """A conversation so far, with its pictures as visual tokens, so that they are not encoded again.

    Args:
        turns: questions and answers, oldest first.
        image_embeds: `[tokens, hidden_size]` of each picture of all turns, in order; one tensor where all have as many.
        language: of the prompt, as the first turn settled it.
        source: the fingerprint of what looked at the pictures (`visglm.identity`); "" where nobody noted it.
        shapes: of each picture; empty where nobody noted them, and every picture has as many visual tokens.
    """

    turns: tuple[Turn, ...] = ()
    image_embeds: Embeds | Sequence[Embeds] | None = None
    language: str = "auto"
    source: str = ""
    shapes: tuple[PictureShape, ...] = ()

    @classmethod
    def of(cls, history: History | Iterable[Sequence[str]] | Iterable[Mapping[str, Any]] | None) -> History:
        """A history from one, from `(question, answer)` pairs, from messages without pictures, or from nothing.

        Raises:
            PromptError: it is none of these.
        """
        if history is None:
            return cls()
        if isinstance(history, History):
            return history
        if isinstance(history, str | bytes | Mapping) or not isinstance(history, Iterable):
            raise PromptError(f"the history is {type(history).__name__}. {EXPECTED}")
        items: list[Any] = list(history)
        if items and all(isinstance(item, Mapping) for item in items):
            return cls(turns_of_messages(items))
        for number, item in enumerate(items, start=1):
            if not isinstance(item, list | tuple) or [type(part) for part in item] != [str, str]:
                raise PromptError(f"item {number} of the history is {item!r:.80}. {EXPECTED}")
        return cls(tuple(Turn(question, answer) for question, answer in items))

    @property
    def num_images(self) -> int:
        """Pictures of all turns."""
        return sum(turn.num_images for turn in self.turns)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, History):
            return NotImplemented
        words = (self.turns, self.language, self.source) == (other.turns, other.language, other.source)
        return words and same_embeds(self.image_embeds, other.image_embeds)

    def __hash__(self) -> int:
        return hash((self.turns, self.language, self.source))

    def __repr__(self) -> str:
        counts = f"{count(len(self.turns), 'turn')}, {count(self.num_images, 'picture')}, language={self.language!r}"
        if not self.turns:
            return f"History({counts})"
        last = self.turns[-1]
        return f"History({counts}, last: {shown(last.question)} → {shown(last.answer)})"

    def _repr_html_(self) -> str:
        """For notebooks: who said what. The pictures are not kept, only what the network saw in them."""
        lines = []
        for turn in self.turns:
            pictures = f" <i>({count(turn.num_images, 'picture')})</i>" if turn.num_images else ""
            lines.append(f"<dt>{html.escape(turn.question)}{pictures}</dt><dd>{html.escape(turn.answer or '')}</dd>")
        return f"<dl>{''.join(lines)}</dl>" if lines else html.escape(repr(self))


def count(number: int, noun: str) -> str:
    """Such as "1 picture" and "2 pictures"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def turns_of_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    turns, sources = messages_to_turns(messages)
    if sources:
        raise PromptError(
            f"the messages of the history hold {counted(len(sources), 'picture')}, which it would have to look at "
            "again. Go on from the history of a reply, which keeps them, or show them with the question."
        )
    if turns[-1].answer is None:
        raise PromptError("the history ends with a message that nobody has answered. Pass it as the question.")
    return tuple(turns)


def same_embeds(one: Any, other: Any) -> bool:
    """Whether two histories see the same."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_tensor, one, other))
    return same_tensor(one, other)


def same_tensor(one: Embeds | None, other: Embeds | None) -> bool:
    if one is None or other is None:
        return one is other
    parts: list[Any] = [one, other]
    first, second = (part.cpu() if hasattr(part, "cpu") else part for part in parts)
    return (
        type(first) is type(second)
        and not isinstance(first, list | tuple)
        and first.shape == second.shape
        and first.dtype == second.dtype
        and bool((first == second).all())
    )


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer: the prompt with its image slots, and what was generated, the end token included; of these
    what was thought before the answer."""

    prompt_tokens: int
    completion_tokens: int
    thinking_tokens: int = 0

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
class Box:
    """A place in a picture that an answer names.

    Args:
        left, top, right, bottom: in pixels of the picture as it was shown.
        picture: which one of the conversation's, from 0 on: the last that was shown.
    """

    left: float
    top: float
    right: float
    bottom: float
    picture: int = 0


@dataclass(frozen=True)
class Citation:
    """Where a part of an answer comes from.

    Args:
        number: by which the answer names it, such as [1].
        source: the file, or the address of a page.
        quote: what stands there, verbatim; of a picture what the model says that it shows.
        page: from 1 on; None where there are none.
        box: left, top, right, bottom of the quote's lines, in shares of the page from its upper left corner.
        score: how well it answers, 0 to 1.
        kind: "text" or "picture".
        heading: of the section.
        start: of the quote in the text of the document, in characters; of a picture its place among that.
        end: of it.
    """

    number: int
    source: str
    quote: str
    page: int | None = None
    box: tuple[float, float, float, float] | None = None
    score: float = 0.0
    kind: str = "text"
    heading: str = ""
    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class Reply:
    """An answer. `str(reply)` is its text. Two are equal when they say the same of the same, however long it took.

    Args:
        text: the answer.
        history: pass it to the next call to go on.
        finish_reason: "stop" when the model ended the answer, "length" when the limit did, "cancelled" when the
            stream was closed.
        images: the pictures of this turn, RGB.
        ids: the tokens that were generated, the end token included.
        logprobs: natural logarithm of the probability that the model gave each, before any setting had a say.
        alternatives: at each place the likeliest tokens with theirs, as many as `logprobs=` asked for.
        scores: of `choices=`, each with its share of the probability of them all.
        parsed: of `json_schema=`, what the JSON says; None where the answer was cut short.
        others: more answers to the same question, where `n=` asked for some.
        citations: of `ask`, where the answer comes from; empty where nothing was found.
        skipped: of `ask` on the web: pages that were found and could not be had, and why.
        thinking: what the model thought before it answered. The history does not keep it.
        boxes: places in the last picture that the answer names in the way the model was taught.
    """

    text: str
    history: History
    usage: Usage
    timings: Timings = field(compare=False)
    finish_reason: str
    images: tuple[Image.Image, ...] = field(default=(), repr=False, hash=False)
    ids: tuple[int, ...] = field(default=(), repr=False, compare=False)
    logprobs: tuple[float, ...] = field(default=(), repr=False, compare=False)
    alternatives: tuple[tuple[tuple[int, float], ...], ...] = field(default=(), repr=False, compare=False)
    scores: Mapping[str, float] = field(default_factory=dict, compare=False)
    parsed: Any = field(default=None, compare=False)
    others: tuple[Reply, ...] = field(default=(), repr=False)
    citations: tuple[Citation, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    thinking: str = ""
    boxes: tuple[Box, ...] = ()

    def __str__(self) -> str:
        return self.text

    def __format__(self, spec: str) -> str:
        return format(self.text, spec)  # in tables: f"{reply:20}"

    def _repr_html_(self) -> str:
        """For notebooks: pictures with what the answer points at, what was thought, folded, and the answer."""
        images = [*self.images[:-1], draw_boxes(self.images[-1], self.boxes)] if self.images else []
        pictures = "".join(f'<img src="{thumbnail_url(image)}" style="margin-right:8px">' for image in images)
        thought = f"<details><summary>…</summary>{html.escape(self.thinking)}</details>" if self.thinking else ""
        return f"<div>{pictures}{thought}<p>{html.escape(self.text)}</p></div>"


STILL_THINKING = (
    "the model was still thinking when its tokens were used up, and has not answered. Allow more with "
    "max_new_tokens=…, or less thinking with max_thinking_tokens=…."
)


def why_unanswered(reply: Reply) -> str:
    """Why there is no answer in a reply, and what to do; "" where there is one."""
    thought = reply.thinking or reply.usage.thinking_tokens
    return STILL_THINKING if thought and not reply.text and reply.finish_reason == "length" else ""


BOX_COLOUR = "#e53935"
THOUSANDTHS = 1000
BOX = re.compile(r"\[\s*" + r"\s*,\s*".join([r"(\d{1,4}(?:\.\d+)?)"] * 4) + r"\s*\]")


def find_boxes(texts: Iterable[str], shapes: Sequence[PictureShape]) -> tuple[Box, ...]:
    """Places in the last picture: left, top, right and bottom in thousandths of its sides, in brackets.

    Args:
        texts: that the model put into boxes. shapes: of the conversation's pictures.
    """
    if not shapes or not all(shapes[-1].size):
        return ()
    width, height = (side / THOUSANDTHS for side in shapes[-1].size)
    found = []
    for match in (match for text in texts for match in BOX.finditer(text)):
        left, top, right, bottom = map(float, match.groups())
        if left < right <= THOUSANDTHS and top < bottom <= THOUSANDTHS:
            found.append(Box(left * width, top * height, right * width, bottom * height, len(shapes) - 1))
    return tuple(found)


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A picture with the places in it marked; itself where there are none."""
    if not boxes:
        return image
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    for box in boxes:
        pen.rectangle(
            (box.left, box.top, box.right, box.bottom), outline=BOX_COLOUR, width=max(3, max(image.size) // 100)
        )
    return drawn


def thumbnail_url(image: Image.Image, size: int = 256) -> str:
    """A small PNG of `image`, at most `size` pixels a side, as a data URL."""
    thumbnail, buffer = image.copy(), io.BytesIO()
    thumbnail.thumbnail((size, size))
    thumbnail.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def shares_of(logprobs: Sequence[float]) -> list[float]:
    """Each one's share of the probability of them all."""
    largest = max(logprobs)
    shares = [math.exp(logprob - largest) for logprob in logprobs]
    return [share / sum(shares) for share in shares]


def parse(text: str) -> Any:
    """What JSON says; None where a stop cut it short."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a stop may come after a thousand brackets
        return None
