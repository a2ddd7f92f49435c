"""What a row of training data may look like. Each is read into a conversation, and written as the common row:

    {"images": [path, …], "messages": [{"role": "user", "content": "<image>…"}, {"role": "assistant", "content": "…"}]}

with one `<image>` where each picture belongs; without any, all pictures stand before the first question. Several
turns, several pictures and none are all fine. Only user messages of formats that have the marker can place a picture
by it: in answers, captions and message parts it is text.

A key that holds None is an absent key, at every depth: `datasets` fills rows of several kinds up so. How a key is
spelled (Image, FILE NAME) does not matter, and `CALLED` has what people call columns otherwise, in Chinese above all.

A newcomer is one function and one row of `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

from ..errors import DataError, PromptError, counted, shorten, shown
from ..prompt import Turn, detect_language, messages_to_turns
from .folder import KINDS, kind_of
from .rows import MAX_NESTING

IMAGE_MARKER = "<image>"

# Asked of a picture that comes with nothing but a caption, in the caption's language.
CAPTION_QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "en": (
        "What is this?",
        "Describe this image.",
        "What is in the picture?",
        "What does the picture show?",
        "Write a caption for this image.",
        "What do you see?",
    ),
    "zh": (
        "这是什么？",
        "描述这张图片。",
        "图中有什么？",
        "这张图片展示了什么？",
        "为这张图片写一句说明。",
        "你看到了什么？",
    ),
}
IMAGE_KEYS = ("image", "img", "file_name", "image_path", "jpg", "jpeg", "png", "webp", "bmp", "gif")
CAPTION_KEYS = ("caption", "text", "txt")
QUESTION_KEYS = ("question", "prompt")
ANSWER_KEYS = ("answer", "label")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
# Beside what a format reads: what evaluation reads, and what says nothing that could be learnt.
EVALUATION_KEYS = ("references", "type")
OTHER_KEYS = (*EVALUATION_KEYS, "id")
CONVERSATION_KEYS = ("messages", "images", "conversations", "system")
KNOWN_KEYS = (*IMAGE_KEYS, *CAPTION_KEYS, *QUESTION_KEYS, *ANSWER_KEYS, *CONVERSATION_KEYS, *OTHER_KEYS)
# A key of `KNOWN_KEYS` → what else its column is called; of several in one row the first counts.
CALLED: Mapping[str, tuple[str, ...]] = {
    "image": ("图片", "图像", "照片", "图片路径", "图像路径", "圖片", "圖像", "圖片路徑"),
    "file_name": ("filename", "文件名", "图片文件名", "檔名"),
    "caption": ("描述", "图片描述", "说明", "图片说明", "圖片描述", "說明", "圖片說明"),
    "text": ("文本", "文字"),
    "question": ("问题", "提问", "問題", "提問"),
    "answer": ("回答", "答案"),
}
# Any of these names as `spelling` has it → the key, and its place among them.
COLUMNS: Mapping[str, tuple[str, int]] = {
    name: (key, place) for key in KNOWN_KEYS for place, name in enumerate((key, *CALLED.get(key, ())))
}

CommonRow = dict[str, Any]
Ask = Callable[[str], str]  # a caption → the question that it answers


@dataclass(frozen=True)
class Conversation:
    """One row, checked.

    Args:
        turns: questions and answers, at least one with an answer.
        images: what holds the pictures, in order of appearance: paths as written in the row, bytes, PIL images …
    """

    turns: tuple[Turn, ...]
    images: tuple[Any, ...]


class Said(NamedTuple):
    """What a row says, before it is checked.

    Args:
        messages: as `messages_to_turns` takes them.
        images: pictures of the row, for markers and for image parts without a source.
        image_marker: what stands for a picture in user messages; None where all text is text.
    """

    messages: Sequence[Any]
    images: Sequence[Any] = ()
    image_marker: str | None = None


class Format(NamedTuple):
    """A row of `FORMATS`."""

    accepts: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], Ask], Said]
    keys: Callable[[Mapping[str, Any]], Sequence[str]]  # those of the row that are read
    example: str  # for people


def format_of(row: Mapping[str, Any]) -> str:
    """The name in `FORMATS` of what the row looks like.

    Raises:
        DataError: like none of them.
    """
    given = without_none(row)
    known = as_known(given)
    name = next((name for name, kind in FORMATS.items() if kind.accepts(known)), None)
    if name is None:
        expected = "".join(f"\n    {kind.example}" for kind in FORMATS.values())
        keys = shorten(", ".join(map(str, given)) or "(none)")
        empty = [str(key) for key in row if key not in given]
        more = shorten(f" ({', '.join(empty)}: NoneType, as if absent)") if empty else ""
        raise DataError(f"a row has the keys {keys}{more}. Expected one of:{expected}")
    return name


def read_row(row: Any, question: str | None = None, number: int = 0) -> Conversation:
    """A row in any of `FORMATS` as the conversation to learn from.

    Args:
        row: a mapping.
        question: asked of captions, in place of `CAPTION_QUESTIONS`.
        number: which of those is asked; it goes round.

    Raises:
        DataError: it cannot be read, an answer is missing or empty, or pictures and places for them do not match.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"a row is {type(row).__name__}. Expected an object with keys.")
    given = as_known(without_none(row))
    said = FORMATS[format_of(row)].read(given, partial(question_of, question=question, number=number))
    try:
        turns, sources = messages_to_turns(said.messages, image_marker=said.image_marker)
    except PromptError as error:
        raise DataError(str(error)) from error
    turns, images = place_images(turns, sources, said)
    check_texts(turns)
    return Conversation(tuple(turns), tuple(images))


def question_of(caption: str, question: str | None, number: int) -> str:
    """What is asked of a caption; its words have no part in the choice, or the question would tell the answer."""
    choices = CAPTION_QUESTIONS[detect_language(caption)]
    return question if question is not None else choices[number % len(choices)]


def without_none(value: Any, depth: int = 0) -> Any:
    """A copy without the keys that hold None.

    Raises:
        DataError: it is nested deeper than any row.
    """
    if depth > MAX_NESTING:
        raise DataError(f"a row is nested more than {MAX_NESTING} deep. Expected a flat one.")
    if isinstance(value, Mapping):
        return {key: without_none(item, depth + 1) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_none(item, depth + 1) for item in value]
    return value


def as_known(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row by the keys of `KNOWN_KEYS`, whatever its columns are called."""
    names = known_names(row)
    return {names.get(key, key): value for key, value in row.items()} if names else row


def known_names(row: Mapping[str, Any]) -> dict[str, str]:
    """Keys of a row that stand for one of `KNOWN_KEYS`, and for which. One that is there by its own name stays, and so
    does what stands for nothing here."""
    found: dict[str, tuple[int, str]] = {}
    for key in row:
        known, place = COLUMNS.get(spelling(key), ("", 0)) if isinstance(key, str) else ("", 0)
        if known and known not in row and (known not in found or place < found[known][0]):
            found[known] = (place, key)
    return {key: known for known, (_, key) in found.items()}


def spelling(key: str) -> str:
    """The key as it is compared: in small letters, with "_" for what parts its words."""
    return "_".join(key.casefold().replace("-", " ").replace("_", " ").split())


def place_images(turns: list[Turn], sources: list[Any], said: Said) -> tuple[list[Turn], list[Any]]:
    """Turns and pictures, where both are known to match."""
    images = list(said.images)
    num_places = sum(source is None for source in sources)
    if said.image_marker is not None and not sources and images:
        turns[0] = replace(turns[0], num_images=len(images))
        sources, num_places = [None] * len(images), len(images)
    if num_places != len(images):
        marker = said.image_marker
        places = f"{marker} in the questions" if marker else "image parts without a picture of their own"
        raise DataError(
            f"{counted(len(images), 'image')}, but {num_places} {places}. Write one for each picture"
            + (", or none to show them all with the first question." if marker else ".")
        )
    rest = iter(images)
    return turns, [check_source(next(rest) if source is None else source) for source in sources]


def check_texts(turns: Sequence[Turn]) -> None:
    if not any(turn.answer is not None for turn in turns):
        raise DataError("no answer to learn. Add a message of the role assistant.")
    for number, turn in enumerate(turns, 1):
        for name, text in (("question", turn.question), ("answer", turn.answer or "")):
            check_text(text, f"the {name} of turn {number}")
        if turn.answer is not None and not turn.answer.strip():
            raise DataError(f"the answer of turn {number} is empty.")


def check_text(text: str, what: str) -> None:
    """Raise DataError for text that nothing can encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise DataError(f"{what} holds half of a character (\\u{code:04x}). Write it as UTF-8.") from None


def check_source(image: Any) -> Any:
    """What holds a picture, without the box that `datasets` puts around it.

    Raises:
        DataError: it is nothing that a picture could be read from.
    """
    if isinstance(image, Mapping):
        inner = next((image[key] for key in ("bytes", "path") if image.get(key) is not None), None)
        if inner is None:
            raise DataError(f"a picture is an object with the keys {shorten(', '.join(map(str, image)))}. "
                            'Expected "bytes" or "path".')  # fmt: skip
        image = inner
    if isinstance(image, str | bytes) and not len(image):
        raise DataError("a picture is empty. Name its file, or leave it out.")
    if kind_of(image) not in KINDS:
        raise DataError(
            f"a picture is {shown(image)}, of the type {type(image).__name__}. Expected {', '.join(KINDS)}."
        )
    if isinstance(image, str | PathLike):
        check_text(str(image), "the path of a picture")
    return image


def to_common(row: Any, question: str | None = None, number: int = 0) -> CommonRow:
    """The common row of a row in any of `FORMATS`, with what `evaluate` reads beside it.

    Args:
        row, question, number: as of `read_row`.

    Raises:
        DataError: as of `read_row`.
    """
    conversation = read_row(row, question, number)
    extras = dict(zip(EVALUATION_KEYS, read_extras(row), strict=True))
    return write_row(conversation) | {key: value for key, value in extras.items() if value}


def read_extras(row: Mapping[str, Any]) -> tuple[tuple[str, ...], str | None]:
    """What `evaluate` reads beside the conversation: right answers to the last question, and its type.

    Raises:
        DataError: they are none.
    """
    known = as_known(row)
    references, kind = known.get("references") or (), known.get("type")
    is_list = isinstance(references, list | tuple)
    if not is_list or not all(isinstance(text, str) and text.strip() for text in references):
        raise DataError(f'"references" is {shown(references)}. Expected a list of right answers, each a string.')
    if not isinstance(kind, str | None):
        raise DataError(f'"type" is {shown(kind)}. Expected a string.')
    for text in (*references, kind or ""):
        check_text(text, "a reference or type")
    return tuple(references), kind


def write_row(conversation: Conversation) -> CommonRow:
    """The common row; where the marker itself is in a question, as message parts, in which it is text."""
    needs_parts = any(IMAGE_MARKER in turn.question for turn in conversation.turns)
    messages: list[dict[str, Any]] = []
    for turn in conversation.turns:
        content: Any = IMAGE_MARKER * turn.num_images + turn.question
        if needs_parts:
            content = [{"type": "image"}] * turn.num_images + [{"type": "text", "text": turn.question}]
        messages.append({"role": "user", "content": content})
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": turn.answer})
    return {"images": list(conversation.images), "messages": messages}


def unused_keys(row: Mapping[str, Any]) -> Iterator[str]:
    """Keys of a readable row that say nothing to anybody here; those of messages as "messages.key"."""
    given = without_none(row)
    names, row = known_names(given), as_known(given)
    kind = FORMATS[format_of(given)]
    used = (*kind.keys(row), *OTHER_KEYS)
    yield from (shorten(str(key)) for key in given if names.get(key, key) not in used)
    for name, known in MESSAGE_KEYS.items():
        if name in used and isinstance(row.get(name), list):
            others = {key for message in row[name] if isinstance(message, Mapping) for key in message}
            yield from (f"{name}.{shorten(str(key))}" for key in others if key not in known)


MESSAGE_KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}


def _messages(row: Mapping[str, Any]) -> list[Any]:
    messages = row["messages"]
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise DataError(f'"messages" is {type(messages).__name__}. Expected a list of messages.')
    return _with_system(row, list(messages))


def _with_system(row: Mapping[str, Any], messages: list[Any]) -> list[Any]:
    """The messages behind what stands in a field of its own beside them."""
    if "system" not in row:
        return messages
    if not isinstance(row["system"], str):
        raise DataError(f'"system" is {type(row["system"]).__name__}. Expected a string.')
    if any(isinstance(message, Mapping) and message.get("role") == "system" for message in messages):
        raise DataError("there are a system field and a system message. Keep one of them.")
    return [{"role": "system", "content": row["system"]}, *messages]


def _images(row: Mapping[str, Any]) -> list[Any]:
    images = row.get("images", [])
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise DataError(f'"images" is {type(images).__name__}. Expected a list of paths.')
    return list(images)


def _common(row: Mapping[str, Any], ask: Ask) -> Said:
    return Said(_messages(row), _images(row), IMAGE_MARKER)


def _openai(row: Mapping[str, Any], ask: Ask) -> Said:
    return Said(_messages(row), _images(row))


def _llava(row: Mapping[str, Any], ask: Ask) -> Said:
    images = row.get("image", row.get("images", []))
    messages = []
    for message in row["conversations"]:
        role = message.get("from") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in ROLES:
            raise DataError(f'a message is "from" {shown(role)}. Expected one of {", ".join(ROLES)}.')
        messages.append({"role": ROLES[role], "content": message.get("value")})
    images = images if isinstance(images, list) else [images] * (not _is_no_picture(images))
    return Said(_with_system(row, messages), images, IMAGE_MARKER)


def _visualglm(row: Mapping[str, Any], ask: Ask) -> Said:
    return _one_turn(row["img"], row["prompt"], row["label"])


def _question(row: Mapping[str, Any], ask: Ask) -> Said:
    return _one_turn(*(row[key] for key in _question_keys(row)))


def _question_keys(row: Mapping[str, Any]) -> list[str]:
    """Keys of picture, question and answer, "" for what is not there. Beside a `question` a caption is its answer; a
    `prompt` may be what a picture was drawn by, which nobody asks."""
    question = _first(row, QUESTION_KEYS)
    is_asked = question == "question" and not _is_blank(row[question])
    return [_first(row, IMAGE_KEYS), question, _first(row, (*ANSWER_KEYS, *(CAPTION_KEYS if is_asked else ())))]


def _asks(row: Mapping[str, Any]) -> bool:
    """Whether it is a question with its answer. Tables of both kinds of rows leave both empty beside a caption."""
    _, question, answer = keys = _question_keys(row)
    is_left_out = bool(_first(row, CAPTION_KEYS)) and all(keys) and _is_blank(row[question]) and _is_blank(row[answer])
    return all(keys) and not is_left_out


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _caption(row: Mapping[str, Any], ask: Ask) -> Said:
    caption = row[_first(row, CAPTION_KEYS)]
    if not isinstance(caption, str):
        raise DataError(f"the caption is {type(caption).__name__}. Expected a string.")
    check_text(caption, "the caption")
    return _one_turn(row[_first(row, IMAGE_KEYS)], ask(caption), caption.strip())


def _one_turn(image: Any, question: Any, answer: Any) -> Said:
    if not isinstance(question, str) or not isinstance(answer, str):
        raise DataError(f"question and answer are {type(question).__name__} and {type(answer).__name__}, not strings.")
    images = [] if _is_no_picture(image) else [image]
    user: list[dict[str, Any]] = [{"type": "image"} for _ in images]
    user.append({"type": "text", "text": question})
    return Said([{"role": "user", "content": user}, {"role": "assistant", "content": answer}], images)


def _is_no_picture(image: Any) -> bool:
    return isinstance(image, str) and not image


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    return next((key for key in keys if key in row), "")


def _has_parts(row: Mapping[str, Any]) -> bool:
    messages = row.get("messages")
    return isinstance(messages, list) and any(
        isinstance(message, Mapping) and isinstance(message.get("content"), list) for message in messages
    )


# Tried from top to bottom, on rows without None.
FORMATS: dict[str, Format] = {
    "openai": Format(
        _has_parts,
        _openai,
        lambda row: ("messages", "images", "system"),
        '{"messages": [{"role": "user", "content": [{"type": "image_url", …}, …]}, …]}',
    ),
    "common": Format(
        lambda row: "messages" in row,
        _common,
        lambda row: ("messages", "images", "system"),
        '{"images": ["a.jpg"], "messages": [{"role": "user", "content": "<image>…"}, …]}',
    ),
    "llava": Format(
        lambda row: isinstance(row.get("conversations"), list),
        _llava,
        lambda row: ("conversations", "image" if "image" in row else "images", "system"),
        '{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>…"}, {"from": "gpt", "value": "…"}]}',
    ),
    "visualglm": Format(
        lambda row: {"img", "prompt", "label"} <= row.keys(),
        _visualglm,
        lambda row: ("img", "prompt", "label"),
        '{"img": "a.jpg", "prompt": "…", "label": "…"}',
    ),
    "question": Format(
        _asks,
        _question,
        _question_keys,
        '{"image": "a.jpg", "question": "…", "answer": "…"}',
    ),
    "caption": Format(
        lambda row: bool(_first(row, IMAGE_KEYS) and _first(row, CAPTION_KEYS)),
        _caption,
        lambda row: (_first(row, IMAGE_KEYS), _first(row, CAPTION_KEYS)),
        '{"image": "a.jpg", "caption": "…"}',
    ),
}
