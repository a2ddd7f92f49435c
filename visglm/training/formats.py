"""What a row of training data may look like. Each is read into the common row:

    {"images": [path, …], "messages": [{"role": "user", "content": "<image>…"}, {"role": "assistant", "content": "…"}]}

with one `<image>` where each picture belongs; without any, all pictures stand before the first question. Several
turns, several pictures and none are all fine.

A newcomer is one function and one row of `FORMATS`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..errors import DataError, PromptError
from ..prompt import Turn, detect_language, messages_to_turns

IMAGE_MARKER = "<image>"

# Asked of a picture that comes with nothing but a caption, in the caption's language.
CAPTION_QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "en": (
        "Describe this image.",
        "What is in the picture?",
        "What does the picture show?",
        "Write a caption for this image.",
        "What do you see?",
    ),
    "zh": ("描述这张图片。", "图中有什么？", "这张图片展示了什么？", "为这张图片写一句说明。", "你看到了什么？"),
}
IMAGE_KEYS = ("image", "file_name", "image_path", "jpg", "jpeg", "png", "webp")
CAPTION_KEYS = ("caption", "text", "txt")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

CommonRow = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """One row, checked.

    Args:
        turns: questions and answers, at least one with an answer.
        images: what holds the pictures, in order of appearance: paths as written in the row, bytes, PIL images …
    """

    turns: tuple[Turn, ...]
    images: tuple[Any, ...]


class Format(NamedTuple):
    """A row of `FORMATS`."""

    accepts: Callable[[Mapping[str, Any]], bool]
    to_common: Callable[[Mapping[str, Any], str | None], CommonRow]  # the row, and the question to ask of captions
    example: str  # for people


def to_common(row: Any, question: str | None = None) -> CommonRow:
    """The common row of a row in any of `FORMATS`.

    Args:
        row: a mapping.
        question: asked of captions, in place of `CAPTION_QUESTIONS`.

    Raises:
        DataError: no format has these keys, or their values do not fit.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"a row is {type(row).__name__}. Expected an object with keys.")
    return FORMATS[format_of(row)].to_common(row, question)


def format_of(row: Mapping[str, Any]) -> str:
    """The name in `FORMATS` of what the row looks like.

    Raises:
        DataError: like none of them.
    """
    name = next((name for name, kind in FORMATS.items() if kind.accepts(row)), None)
    if name is None:
        expected = "".join(f"\n    {kind.example}" for kind in FORMATS.values())
        raise DataError(f"a row has the keys {', '.join(map(str, row)) or '(none)'}. Expected one of:{expected}")
    return name


def read_row(row: Any, question: str | None = None) -> Conversation:
    """A row in any of `FORMATS` as the conversation to learn from.

    Raises:
        DataError: it cannot be read, an answer is missing or empty, or pictures and markers do not match.
    """
    common = to_common(row, question)
    try:
        turns, sources = messages_to_turns(common["messages"], image_marker=IMAGE_MARKER)
    except PromptError as error:
        raise DataError(str(error)) from error
    images = tuple(common["images"])
    if not sources and images:
        turns[0] = replace(turns[0], num_images=len(images))
    elif len(sources) != len(images):
        raise DataError(
            f"{len(images)} images, but {len(sources)} {IMAGE_MARKER} in the questions. Write one for each picture, "
            "or none to show them all with the first question."
        )
    if not any(turn.answer is not None for turn in turns):
        raise DataError("no answer to learn. Add a message of the role assistant.")
    for number, turn in enumerate(turns, 1):
        if turn.answer is not None and not turn.answer.strip():
            raise DataError(f"the answer of turn {number} is empty.")
    return Conversation(tuple(turns), images)


def _common(row: Mapping[str, Any], question: str | None) -> CommonRow:
    images = row.get("images") or []
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise DataError(f'"images" is {type(images).__name__}. Expected a list of paths.')
    if not isinstance(row["messages"], Sequence) or isinstance(row["messages"], str):
        raise DataError(f'"messages" is {type(row["messages"]).__name__}. Expected a list of messages.')
    return {"images": list(images), "messages": list(row["messages"])}


def _openai(row: Mapping[str, Any], question: str | None) -> CommonRow:
    try:
        turns, sources = messages_to_turns(row["messages"])
    except PromptError as error:
        raise DataError(str(error)) from error
    if any(source is None for source in sources):
        raise DataError("a message has an image part without a picture in it.")
    messages = []
    for turn in turns:
        messages.append({"role": "user", "content": IMAGE_MARKER * turn.num_images + turn.question})
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": turn.answer})
    return {"images": sources, "messages": messages}


def _llava(row: Mapping[str, Any], question: str | None) -> CommonRow:
    images = row.get("image", row.get("images")) or []
    messages = []
    for message in row["conversations"]:
        role = message.get("from") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise DataError(f'a message is "from" {role!r}. Expected one of {", ".join(ROLES)}.')
        messages.append({"role": ROLES[role], "content": message.get("value")})
    return {"images": list(images) if isinstance(images, list | tuple) else [images], "messages": messages}


def _visualglm(row: Mapping[str, Any], question: str | None) -> CommonRow:
    return _one_turn(row["img"], row["prompt"], row["label"])


def _caption(row: Mapping[str, Any], question: str | None) -> CommonRow:
    caption = row[_first(row, CAPTION_KEYS)]
    if isinstance(caption, bytes):
        caption = caption.decode()
    if not isinstance(caption, str):
        raise DataError(f"the caption is {type(caption).__name__}. Expected a string.")
    if question is None:
        choices = CAPTION_QUESTIONS[detect_language(caption)]
        question = choices[zlib.crc32(caption.encode()) % len(choices)]  # the same one in every epoch and every run
    return _one_turn(row[_first(row, IMAGE_KEYS)], question, caption.strip())


def _one_turn(image: Any, question: Any, answer: Any) -> CommonRow:
    if not isinstance(question, str) or not isinstance(answer, str):
        raise DataError(f"question and answer are {type(question).__name__} and {type(answer).__name__}, not strings.")
    has_image = image is not None and image != ""
    user = {"role": "user", "content": IMAGE_MARKER * has_image + question}
    return {"images": [image] * has_image, "messages": [user, {"role": "assistant", "content": answer}]}


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    return next((key for key in keys if row.get(key) is not None), "")


def _has_parts(row: Mapping[str, Any]) -> bool:
    messages = row.get("messages")
    return isinstance(messages, Sequence) and any(
        isinstance(message, Mapping) and isinstance(message.get("content"), list | tuple) for message in messages
    )


# Tried from top to bottom.
FORMATS: dict[str, Format] = {
    "openai": Format(
        _has_parts, _openai, '{"messages": [{"role": "user", "content": [{"type": "image_url", …}, …]}, …]}'
    ),
    "common": Format(
        lambda row: "messages" in row,
        _common,
        '{"images": ["a.jpg"], "messages": [{"role": "user", "content": "<image>…"}, …]}',
    ),
    "llava": Format(
        lambda row: isinstance(row.get("conversations"), list | tuple),
        _llava,
        '{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>…"}, {"from": "gpt", "value": "…"}]}',
    ),
    "visualglm": Format(
        lambda row: {"img", "prompt", "label"} <= row.keys(),
        _visualglm,
        '{"img": "a.jpg", "prompt": "…", "label": "…"}',
    ),
    "caption": Format(
        lambda row: bool(_first(row, IMAGE_KEYS) and _first(row, CAPTION_KEYS)),
        _caption,
        '{"image": "a.jpg", "caption": "…"}',
    ),
}
