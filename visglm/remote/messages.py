"""Conversations as they travel: turns and pictures to OpenAI's messages, and what is answered to a reply."""

from __future__ import annotations

import base64
import io
import mimetypes
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ImageError, PromptError, shorten
from ..pictures import DEFAULT_LIMITS, load_image
from ..prompt import Turn, messages_to_turns
from ..reply import History, Reply, Timings, Usage
from .connection import want


@dataclass(frozen=True, eq=False)
class RemoteHistory(History):
    """A conversation with a server, which keeps none: its pictures are sent again with every question.

    Args:
        messages: as OpenAI writes them, pictures as URLs or data URLs.
    """

    messages: tuple[Mapping[str, Any], ...] = ()


def to_messages(images: Any, prompt: Any, history: Any) -> tuple[Mapping[str, Any], ...]:
    """A question and what was said before it, as OpenAI writes them."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptError(f"the question must be a text that says something; got {shorten(repr(prompt))}.")
    new = [] if images is None else list(images) if isinstance(images, list | tuple) else [images]
    parts = [{"type": "image_url", "image_url": {"url": to_url(image)}} for image in new]
    question = {"role": "user", "content": [*parts, {"type": "text", "text": prompt}] if parts else prompt}
    return (*past_messages(history), question)


def past_messages(history: Any) -> tuple[Mapping[str, Any], ...]:
    if isinstance(history, RemoteHistory):
        return history.messages
    items = [] if history is None or isinstance(history, History) else list(history)
    if items and all(isinstance(item, Mapping) for item in items):
        turns, sources = messages_to_turns(items)
        if turns[-1].answer is None:
            raise PromptError("the history ends with a message that nobody has answered. Pass it as the question.")
        pictures = iter(sources)
        return tuple(message for turn in turns for message in of_turn(turn, pictures))
    past = History.of(history)
    if past.num_images:
        raise PromptError(
            "this history has its pictures as one model saw them; a server must be shown them. Go on from a reply of "
            "this server, or give messages that hold them."
        )
    return tuple(message for turn in past.turns for message in of_turn(turn, iter(())))


def of_turn(turn: Turn, sources: Iterator[Any]) -> Iterator[Mapping[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": to_url(next(sources))}} for _ in range(turn.num_images)]
    yield {"role": "user", "content": [*parts, {"type": "text", "text": turn.question}]}
    yield {"role": "assistant", "content": turn.answer or ""}


def parts_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    return message["content"] if isinstance(message["content"], list) else []


def to_url(source: Any) -> str:
    """A picture as a server takes it.

    Raises:
        ImageError: there is no such picture.
    """
    if isinstance(source, str) and source[:8].lower().startswith(("data:", "http://", "https://")):
        return source
    if isinstance(source, str | os.PathLike) and os.path.isfile(source):
        if os.path.getsize(source) > DEFAULT_LIMITS.max_bytes:
            raise ImageError(f"{shorten(os.fsdecode(source))} has over {DEFAULT_LIMITS.max_bytes:,} bytes.")
        kind, data = mimetypes.guess_type(os.fsdecode(source))[0] or "image/png", Path(source).read_bytes()
    elif isinstance(source, bytes):
        kind, data = "image/png", source  # what it is, its first bytes say
    else:
        out = io.BytesIO()
        load_image(source).save(out, "PNG")
        kind, data = "image/png", out.getvalue()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def usage_of(told: Any) -> Usage:
    """How many tokens a server says there were.

    Raises:
        TypeError, LookupError, AttributeError: it says something else.
    """
    thought = (told.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return Usage(want(int, told["prompt_tokens"]), want(int, told["completion_tokens"]), want(int, thought))


def reply_of(
    messages: Sequence[Mapping[str, Any]], text: str, reason: str, usage: Usage, timings: Timings, thinking: str = ""
) -> Reply:
    whole = (*messages, {"role": "assistant", "content": text})
    history = RemoteHistory(tuple(messages_to_turns(whole)[0]), messages=whole)
    return Reply(text, history, usage, timings, reason, thinking=thinking)
