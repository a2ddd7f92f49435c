"""Conversations as others write them, OpenAI and Hugging Face, read as turns and the sources of their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import PromptError, shown
from .render import Turn

IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")
BOXES = ("url", "bytes", "path")


def messages_to_turns(
    messages: Sequence[Mapping[str, Any]], *, image_marker: str | None = None
) -> tuple[list[Turn], list[Any]]:
    """Read messages in the style of OpenAI and Hugging Face.

    A message is `{"role": "system" | "user" | "assistant", "content": …}`, its content a string or a list of
    parts: `{"type": "text", "text": …}`, `{"type": "image", "image" | "url" | "path" | "base64": …}` or
    `{"type": "image_url", "image_url": {"url": …}}`. What the system says is put in front of the first
    question; user messages in a row make one question.

    Args:
        messages: the messages, oldest first.
        image_marker: a string that stands for a picture inside what users say, such as the `<image>` of training
            files. Without it, and in all other messages, text is text, whatever it holds.

    Returns:
        The turns, and the sources of their pictures in order: what the part held, or None for an image part
        without a source and for a marker.

    Raises:
        PromptError: a message cannot be read, or the roles do not alternate.
    """
    turns: list[Turn] = []
    sources: list[Any] = []
    system = ""
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("system", "user", "assistant"):
            raise PromptError(f"Message {number} has the role {shown(role)}. Expected system, user or assistant.")
        text, images = _read_content(
            message.get("content"), f"Message {number}", image_marker if role == "user" else None
        )
        is_open = bool(turns) and turns[-1].answer is None
        if images and role != "user":
            raise PromptError(f"Message {number} ({role}) holds a picture. Move it to a user message.")
        if role == "user" and is_open:
            turns[-1] = replace(
                turns[-1],
                question="\n".join(filter(None, (turns[-1].question, text))),
                num_images=turns[-1].num_images + len(images),
            )
        elif role == "user":
            turns.append(Turn(text, num_images=len(images)))
        elif role == "assistant" and is_open:
            turns[-1] = replace(turns[-1], answer=text)
        elif role == "system" and number == 1:
            system = text
        else:
            expected = "It can only be the first" if role == "system" else "Expected a user message before it"
            raise PromptError(f"Message {number} is a message of the role {role} at the wrong place. {expected}.")
        sources.extend(images)
    if not turns:
        raise PromptError(f"There is no user message among the {len(messages)} messages. Add a question.")
    if system:
        turns[0] = replace(turns[0], question=f"{system}\n{turns[0].question}")
    return turns, sources


def _read_content(content: Any, where: str, image_marker: str | None) -> tuple[str, list[Any]]:
    """Text and image sources of one message."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        raise PromptError(f"{where}: content is {type(content).__name__}. Expected a string or a list of parts.")
    texts: list[str] = []
    images: list[Any] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text = part["text"]
            if image_marker and image_marker in text:
                images.extend([None] * text.count(image_marker))
                text = text.replace(image_marker, "").strip()
            texts.append(text)
        elif kind in ("image", "image_url"):
            source = next((part[key] for key in IMAGE_KEYS if part.get(key) is not None), None)
            if isinstance(source, Mapping):  # OpenAI's {"url": …}, and what `datasets` makes of a picture
                source = next((source[key] for key in BOXES if source.get(key) is not None), None)
            images.append(source)
        else:
            raise PromptError(
                f"{where}: cannot read a content part of type {kind!r}. "
                'Expected {"type": "text", "text": "…"}, {"type": "image", …} or {"type": "image_url", …}.'
            )
    return "\n".join(filter(None, texts)), images
