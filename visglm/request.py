"""A question made ready to answer: checked, its pictures loaded and resized, the conversation rendered."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .config import VisGLMConfig
from .errors import PicturesWarning, PromptError
from .pictures import ImageLimits, load_images
from .prompt import Reference, Rendered, Turn, fit, render, render_blank
from .reply import History


@dataclass(frozen=True)
class Prompt:
    """A question ready to answer.

    Args:
        image_embeds: `[num_images, num_query_tokens, hidden_size]`, the pictures of the history in order.
        images: the pictures of the last turn.
        pixel_values: the same `[num_images, 3, height, width]`, as the network takes them.
        source: the fingerprint of what `image_embeds` come from; "" where nobody noted it.
        resize_seconds: from pictures to `pixel_values`.
    """

    turns: tuple[Turn, ...]
    rendered: Rendered
    image_embeds: Tensor | None = None
    images: tuple[Image.Image, ...] = ()
    pixel_values: Tensor | None = None
    language: str = "zh"
    source: str = ""
    resize_seconds: float = 0.0


def prepare(
    images: Any,
    question: Any,
    history: Any,
    *,
    language: str,
    max_new_tokens: int,
    config: VisGLMConfig,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: Any,
    limits: ImageLimits,
    allow_urls: bool,
    fingerprint: Callable[[], str],
    references: tuple[Reference, ...] = (),
) -> Prompt:
    """Load the new pictures and render the conversation.

    Args:
        max_new_tokens: room that the context must leave for the answer.
        fingerprint: tells what the network looks with; asked only about a history with pictures.
        references: texts that the answer shall go by.

    Raises:
        ImageError: a picture was refused or cannot be read.
        PromptError: the question is no text, there are pictures for a model without eyes, or the history's are another
            network's.
        ContextLengthError: the conversation does not fit.
    """
    if not isinstance(question, str) or not question.strip():
        raise PromptError(f"the question must be a string that is not empty; got {question!r}.")
    past = History.of(history)
    check_source(past, config, fingerprint)
    pictures = load_images(images, limits=limits, allow_urls=allow_urls)
    if pictures and config.vision_config is None:
        raise PromptError(
            f"{len(pictures)} pictures came with the question, but this is a text-only model. Leave them out."
        )
    turns = (*past.turns, Turn(question, None, len(pictures), references))
    if pictures:
        warn_of_pictures(sum(turn.num_images for turn in turns), config)
    language = past.language if language == "auto" else language
    rendered = render(
        turns,
        tokenizer=tokenizer,
        style=config.prompt_style,
        num_query_tokens=config.num_query_tokens,
        language=language,
    )
    fit(rendered, config.text_config.max_position_embeddings, max_new_tokens)
    started = time.perf_counter()
    pixel_values = pixels(pictures, image_processor)
    seconds = time.perf_counter() - started if pictures else 0.0
    return Prompt(turns, rendered, past.image_embeds, pictures, pixel_values, language, past.source, seconds)


def pixels(pictures: Sequence[Image.Image], image_processor: Any) -> Tensor | None:
    """`[num_images, 3, height, width]`, as the network takes them; None without any."""
    return image_processor(list(pictures), return_tensors="pt")["pixel_values"] if pictures else None


def warn_of_pictures(num_images: int, config: VisGLMConfig) -> None:
    """Say so where a conversation has more pictures than the model was taught with: it answers, and mixes them up."""
    if config.max_pictures is not None and num_images > config.max_pictures:
        were = "one picture" if config.max_pictures == 1 else f"{config.max_pictures} pictures"
        warnings.warn(
            f"this model was taught with {were} in a conversation, and this one has {num_images}: it may mix them up. "
            "Ask about each picture in a conversation of its own.",
            PicturesWarning,
            stacklevel=2,
        )


def check_source(history: History, config: VisGLMConfig, fingerprint: Callable[[], str]) -> None:
    """Raise `PromptError` unless the visual tokens of a history are such as this network makes.

    Words are the same to every network, so that a history without pictures may go from one to another.
    """
    embeds, expected = history.image_embeds, (config.num_query_tokens, config.text_config.hidden_size)
    if embeds is None and not history.num_images:
        return
    if config.vision_config is None:
        raise PromptError(f"the history holds {history.num_images} pictures, but this is a text-only model.")
    if embeds is None or embeds.dim() != 3 or len(embeds) != history.num_images:
        found = "none" if embeds is None else list(embeds.shape)
        raise PromptError(
            f"the history has {history.num_images} pictures, and its image_embeds are {found}. Expected "
            f"{[history.num_images, *expected]}, as `VisGLM.encode` makes them."
        )
    if embeds.shape[1:] != expected:
        raise PromptError(
            f"the history is another network's: its pictures are {embeds.shape[1]} visual tokens of width "
            f"{embeds.shape[2]}, this network's {expected[0]} of width {expected[1]}. Show this one the pictures again."
        )
    if history.source and history.source != fingerprint():
        raise PromptError(
            "the history is another network's, or was made before this one learnt or changed its adapter: the weights "
            "that looked at its pictures are not those of this network. Show it the pictures again."
        )


def prepare_blank(
    text: str, max_new_tokens: int, *, config: VisGLMConfig, tokenizer: PreTrainedTokenizerBase
) -> Prompt:
    """A text with one blank in it, to be filled.

    Raises:
        PromptError: there is not exactly one blank. ContextLengthError: it does not fit.
    """
    rendered = render_blank(text, tokenizer=tokenizer)
    fit(rendered, config.text_config.max_position_embeddings, max_new_tokens)
    return Prompt((Turn(text),), rendered)
