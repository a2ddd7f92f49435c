"""A question made ready to answer: checked, its pictures loaded and resized, the conversation rendered."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from .errors import ImageError, PicturesWarning, PromptError, counted
from .pictures import ImageLimits, load_images, refused
from .prompt import Reference, Rendered, Turn, fit, render, render_blank
from .reply import History, PictureShape

OTHER_NETWORK = (
    "the history is another network's, or was made before this one learnt or changed its adapter: the weights that "
    "looked at its pictures are not those of this network. Show it the pictures again."
)


@dataclass(frozen=True)
class Prompt:
    """A question ready to answer.

    Args:
        image_embeds: `[tokens, hidden_size]` of each picture of the history, in order.
        images: the pictures of the last turn.
        pixel_values: each of the same, as the network takes it.
        source: the fingerprint of what `image_embeds` come from; "" where nobody noted it.
        resize_seconds: from pictures to `pixel_values`.
        shapes: of all pictures, those of the history first.
    """

    turns: tuple[Turn, ...]
    rendered: Rendered
    image_embeds: Any = None
    images: tuple[Image.Image, ...] = ()
    pixel_values: Any = None
    language: str = "zh"
    source: str = ""
    resize_seconds: float = 0.0
    shapes: tuple[PictureShape, ...] = ()


def prepare(
    images: Any,
    question: Any,
    history: Any,
    *,
    language: str,
    max_new_tokens: int,
    config: Any,
    tokenizer: Any,
    to_pixels: Callable[[Sequence[Image.Image]], Any],
    limits: ImageLimits,
    allow_urls: bool,
    fingerprint: Callable[[], str] | None,
    references: tuple[Reference, ...] = (),
    thinks: bool = True,
    to_shapes: Callable[[Sequence[Image.Image]], list[PictureShape]] | None = None,
) -> Prompt:
    """Load the new pictures and render the conversation.

    Args:
        max_new_tokens: room that the context must leave for the answer.
        config: a `VisGLMConfig`, or what says the same of a model without torch, or of another family.
        to_pixels: pictures to what the network takes of each.
        fingerprint: tells what the network looks with; asked only about a history with pictures. None where it will
            look with something else by then, and whoever answers has to ask.
        references: texts that the answer shall go by.
        thinks: whether the model may think before it answers, where it can do without.
        to_shapes: pictures to the visual tokens that each has; None where all have as many.

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
    check_eyes(len(pictures), config)
    turns = (*past.turns, Turn(question, None, len(pictures), references))
    if pictures:
        warn_of_pictures(sum(turn.num_images for turn in turns), config)
    language = past.language if language == "auto" else language
    shapes = () if to_shapes is None else (*past_shapes(past), *shapes_of(images, pictures, to_shapes))
    rendered = lay_out(
        turns, language=language, max_new_tokens=max_new_tokens, config=config, tokenizer=tokenizer, shapes=shapes,
        thinks=thinks,
    )  # fmt: skip
    started = time.perf_counter()
    pixel_values = to_pixels(pictures) if pictures else None
    seconds = time.perf_counter() - started if pictures else 0.0
    return Prompt(turns, rendered, past.image_embeds, pictures, pixel_values, language, past.source, seconds, shapes)


def shapes_of(
    sources: Any, pictures: Sequence[Image.Image], to_shapes: Callable[[Sequence[Image.Image]], list[PictureShape]]
) -> list[PictureShape]:
    """What becomes of pictures; one that cannot be looked at is told by the name of its source.

    Raises:
        ImageError: there is one.
    """
    found: list[PictureShape] = []
    for source, picture in zip(sources if isinstance(sources, list | tuple) else [sources], pictures, strict=False):
        try:
            found += to_shapes([picture])
        except ImageError as error:
            raise refused(source, error) from None
    return found


def check_requests(requests: Any) -> list[Any]:
    """Many questions as a list; raise `PromptError` where they are none."""
    if isinstance(requests, str | bytes | Mapping) or not isinstance(requests, Iterable):
        raise PromptError(f"requests must be a list of (images, prompt); got {type(requests).__name__}.")
    return list(requests)


def take_apart(request: Any) -> tuple[Any, Any, Any]:
    """Images, prompt and history of one among many; raise `PromptError` where it is none."""
    if not isinstance(request, list | tuple) or len(request) not in (2, 3):
        raise PromptError(f"a request is (images, prompt) or (images, prompt, history); got {request!r:.80}.")
    images, prompt, history = (*request, None)[:3]
    return images, prompt, history


def check_some(pictures: Sequence[Any]) -> None:
    """Raise `PromptError` where there is nothing to look at."""
    if not pictures:
        raise PromptError("there is no picture to encode. Give one, or a list of some.")


def past_shapes(history: History) -> tuple[PictureShape, ...]:
    """Of the pictures of a history."""
    if history.shapes or history.image_embeds is None:
        return history.shapes
    return tuple(PictureShape((1, 1, len(one))) for one in history.image_embeds)


def check_eyes(num_pictures: int, config: Any) -> None:
    """Raise `PromptError` for pictures where the model has no eyes."""
    if num_pictures and config.vision_config is None:
        raise PromptError(
            f"{counted(num_pictures, 'picture')} came with the question, but this is a text-only model. Leave them out."
        )


def lay_out(
    turns: Sequence[Turn],
    *,
    language: str = "auto",
    max_new_tokens: int,
    config: Any,
    tokenizer: Any,
    shapes: Sequence[PictureShape] = (),
    thinks: bool = True,
) -> Rendered:
    """A conversation in ids, ready for its next answer.

    Args:
        max_new_tokens: room that the context must leave for the answer.
        shapes: of its pictures, where not all have as many visual tokens.
        thinks: as of `prepare`.

    Raises:
        PromptError: it cannot be rendered. ContextLengthError: it does not fit.
    """
    rendered = render(
        turns,
        tokenizer=tokenizer,
        style=config.prompt_style,
        num_query_tokens=config.num_query_tokens or [one.num_tokens for one in shapes],
        language=language,
        thinks=thinks,
    )
    return fit(rendered, config.text_config.max_position_embeddings, max_new_tokens)


def warn_of_pictures(num_images: int, config: Any) -> None:
    """Say so where a conversation has more pictures than the model was taught with: it answers, and mixes them up."""
    if config.max_pictures is not None and num_images > config.max_pictures:
        were = "one picture" if config.max_pictures == 1 else f"{config.max_pictures} pictures"
        warnings.warn(
            f"this model was taught with {were} in a conversation, and this one has {num_images}: it may mix them up. "
            "Ask about each picture in a conversation of its own.",
            PicturesWarning,
            stacklevel=2,
        )


def check_source(history: History, config: Any, fingerprint: Callable[[], str] | None) -> None:
    """Raise `PromptError` unless the visual tokens of a history are such as this network makes.

    Words are the same to every network, so that a history without pictures may go from one to another.
    """
    embeds, hidden_size = history.image_embeds, config.text_config.hidden_size
    if embeds is None and not history.num_images:
        return
    if config.vision_config is None:
        raise PromptError(f"the history holds {counted(history.num_images, 'picture')}, but this is a text-only model.")
    shapes: list[list[int]] = [list(getattr(one, "shape", ())) for one in (() if embeds is None else embeds)]
    per_picture = config.num_query_tokens
    if len(shapes) != history.num_images or any(len(shape) != 2 for shape in shapes):
        raise PromptError(
            f"the history has {counted(history.num_images, 'picture')}, and its image_embeds are {shapes or 'none'}. "
            f"Expected [{per_picture or 'tokens'}, {hidden_size}] of each, as `VisGLM.encode` makes them."
        )
    if per_picture is None and [one.num_tokens for one in history.shapes] != [tokens for tokens, _ in shapes]:
        raise PromptError(
            "the history does not say in which rows and columns the visual tokens of its pictures stand, which this "
            "network has to know. Go on from the history of one of its replies."
        )
    for tokens, width in shapes:
        if width != hidden_size or per_picture not in (None, tokens):
            own = f"{per_picture} of width" if per_picture else "of width"
            raise PromptError(
                f"the history is another network's: its pictures are {tokens} visual tokens of width {width}, this "
                f"network's {own} {hidden_size}. Show this one the pictures again."
            )
    if history.source and fingerprint is not None and history.source != fingerprint():
        raise PromptError(OTHER_NETWORK)


def prepare_blank(text: str, max_new_tokens: int, *, config: Any, tokenizer: Any) -> Prompt:
    """A text with one blank in it, to be filled.

    Raises:
        PromptError: there is not exactly one blank. ContextLengthError: it does not fit.
    """
    rendered = render_blank(text, tokenizer=tokenizer)
    fit(rendered, config.text_config.max_position_embeddings, max_new_tokens)
    return Prompt((Turn(text),), rendered)
