"""Conversation → ids, image slots and loss mask: the one renderer for chat and for training.

Control tokens and image slots are placed by id. Whatever a user typed goes through the tokenizer as plain
text and can become neither.

A new prompt style is one row of `PROMPT_STYLES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from .errors import ContextLengthError, PromptError

IGNORE_INDEX = -100  # labels with this value do not count in the loss
IMAGE_START, IMAGE_END = "<img>", "</img>"
IMAGE_PLACEHOLDER = "<|image|>"
LANGUAGES = ("zh", "en")

CHINESE = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
FULL_WIDTH = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
ASCII_BESIDE_CHINESE = re.compile(rf"(?<={CHINESE})[,!:;?]|[,!:;?](?={CHINESE})")


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Args:
        question: what the user says.
        answer: what the assistant says, or None where it is still to be written.
        num_images: pictures shown with the question; they stand in front of it.
    """

    question: str
    answer: str | None = None
    num_images: int = 0


@dataclass(frozen=True)
class Rendered:
    """A prompt in ids.

    Args:
        input_ids: the ids, image slots included.
        labels: as long as `input_ids`: -100 everywhere but on the last answer and its end token.
    """

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Control:
    """A control token of the text model by name; several names where releases spell it differently."""

    names: tuple[str, ...]


class Mark(Enum):
    """Places in a template that are not text."""

    IMAGES = "the pictures of the turn"
    SLOTS = "the image slots of one picture"
    CUT = "the text before and the text behind are tokenized apart"
    END = "the end token"


Segments = tuple[str | Control | Mark, ...]


@dataclass(frozen=True)
class PromptStyle:
    """How a text model was taught to see a conversation.

    Each turn is a question; an answer that lies in the past follows it as `past_answer`, the answer to write
    or to learn as `generation` (still prompt) and `answer`. Templates may name `{question}`, `{answer}` and
    `{round}`.

    Args:
        questions: template of a question for each of `LANGUAGES`.
        past_answer: template of an answer that later turns follow.
        start: what every prompt starts with.
        generation: what asks the model to write; a prompt ends here.
        answer: template of what the model writes.
        lone_question: template of a question without history; None where it looks like any other.
        first_round: the number `{round}` counts from.
    """

    questions: Mapping[str, Segments]
    past_answer: Segments
    start: Segments = ()
    generation: Segments = ()
    answer: Segments = ("{answer}", Mark.END)
    lone_question: Segments | None = None
    first_round: int = 0


GMASK, SOP = Control(("[gMASK]",)), Control(("<sop>", "sop"))
USER, ASSISTANT = Control(("<|user|>",)), Control(("<|assistant|>",))

ROLE_TOKENS = PromptStyle(
    start=(GMASK, SOP),
    questions=dict.fromkeys(LANGUAGES, (USER, "\n", Mark.CUT, Mark.IMAGES, "{question}")),
    past_answer=(ASSISTANT, "\n", Mark.CUT, "{answer}"),
    generation=(ASSISTANT,),  # the newline behind it is the first thing the model writes
    answer=("\n", Mark.CUT, "{answer}", Mark.END),
)

# Sources: the chat functions and tokenizers published with THUDM/visualglm-6b, chatglm-6b, chatglm2-6b,
# chatglm3-6b and glm-4-9b-chat. The last two differ in their tokenizers only.
PROMPT_STYLES: Mapping[str, PromptStyle] = {
    "visualglm": PromptStyle(
        questions={"zh": (Mark.IMAGES, "问：{question}\n答："), "en": (Mark.IMAGES, "Q:{question}\nA:")},
        past_answer=("{answer}\n",),
        generation=(GMASK, SOP),
    ),
    "chatglm": PromptStyle(
        lone_question=(Mark.IMAGES, "{question}"),
        questions=dict.fromkeys(LANGUAGES, (Mark.IMAGES, "[Round {round}]\n问：{question}\n答：")),
        past_answer=("{answer}\n",),
        generation=(GMASK, SOP),
    ),
    "chatglm2": PromptStyle(
        start=(GMASK, SOP),
        questions=dict.fromkeys(LANGUAGES, (Mark.IMAGES, "[Round {round}]\n\n问：{question}\n\n答：")),
        past_answer=("{answer}\n\n",),
        first_round=1,
    ),
    "chatglm3": ROLE_TOKENS,
    "glm4": ROLE_TOKENS,
}


def render(
    turns: Sequence[Turn],
    *,
    tokenizer: PreTrainedTokenizerBase,
    style: str,
    num_query_tokens: int,
    language: str = "auto",
) -> Rendered:
    """Render a conversation, ready to generate its next answer or to learn its last one.

    Args:
        turns: the conversation, oldest first. Only the last turn may lack an answer; the prompt then ends
            where the model starts to write.
        tokenizer: the text model's tokenizer; needs `image_token_id` where there are pictures.
        style: a key of `PROMPT_STYLES`.
        num_query_tokens: image slots per picture.
        language: "zh", "en", or "auto": Chinese if the first question holds a Chinese character, else
            English. One choice holds for the whole conversation.

    Raises:
        PromptError: the turns, the style or the language cannot be rendered, or the tokenizer lacks a token.
    """
    prompt, answer = _lay_out(turns, style, language)
    prompt_ids = _encode(prompt, tokenizer, num_query_tokens)
    answer_ids = _encode(answer, tokenizer, num_query_tokens)
    return Rendered(prompt_ids + answer_ids, [IGNORE_INDEX] * len(prompt_ids) + answer_ids)


def render_text(turns: Sequence[Turn], *, style: str, language: str = "auto") -> str:
    """The prompt as people read it: one `<|image|>` per picture, control tokens by name, no end token.

    For display. It cannot be tokenized again safely: typed and real control tokens look alike in it.
    """
    readable = {Mark.SLOTS: IMAGE_PLACEHOLDER}
    prompt, answer = _lay_out(turns, style, language)
    return "".join(
        part.names[0] if isinstance(part, Control) else readable.get(part, "") if isinstance(part, Mark) else part
        for part in prompt + answer
    )


def render_raw(text: str, *, tokenizer: PreTrainedTokenizerBase, style: str, num_query_tokens: int) -> Rendered:
    """Encode a prompt that a developer wrote out, each `<|image|>` in it becoming the slots of one picture.

    The style's control tokens are put around it; no other part of the text is read as one.
    """
    rules = _look_up(PROMPT_STYLES, style, "prompt style")
    first, *others = text.split(IMAGE_PLACEHOLDER)
    parts = [*rules.start, first]
    for other in others:
        parts.extend((Mark.SLOTS, other))
    ids = _encode((*parts, *rules.generation), tokenizer, num_query_tokens)
    return Rendered(ids, [IGNORE_INDEX] * len(ids))


def render_blank(text: str, *, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Encode a text with one blank, `[MASK]` or `[gMASK]`, so that the model writes what belongs there.

    Raises:
        PromptError: there is not exactly one blank.
    """
    parts = re.split(r"(\[g?MASK\])", text)
    if len(parts) != 3:
        raise PromptError(
            f"The text has {len(parts) // 2} blanks. Write [MASK] or [gMASK] once, where words are missing."
        )
    before, blank, after = parts
    ids = _encode((before, Control((blank,)), after, SOP), tokenizer, 0)
    return Rendered(ids, [IGNORE_INDEX] * len(ids))


def training_rows(turns: Sequence[Turn], **options: Any) -> Iterator[Rendered]:
    """Yield one row per answer: the conversation up to it, with that answer as the only thing to learn.

    A prefix language model sees the whole prompt at once, earlier answers included; a row that scored those
    as well would leak them. Takes the options of `render`.

    Raises:
        PromptError: no turn has an answer; else as `render`.
    """
    answered = [index for index, turn in enumerate(turns) if turn.answer is not None]
    if not answered:
        raise PromptError(f"Nothing to learn: of {len(turns)} turns none has an answer. Add what to answer.")
    for index in answered:
        yield render(turns[: index + 1], **options)


def fit(rendered: Rendered, max_length: int, max_new_tokens: int = 0) -> Rendered:
    """Check that a prompt and its answer fit into the context; the prompt comes back unchanged.

    Args:
        rendered: the prompt.
        max_length: positions the model has for prompt and answer together.
        max_new_tokens: tokens to be generated behind the prompt.

    Raises:
        ContextLengthError: they do not fit. Nothing is ever cut off.
    """
    length = len(rendered.input_ids)
    if length + max_new_tokens > max_length:
        raise ContextLengthError(
            f"The conversation is too long: {length} tokens and {max_new_tokens} new ones make "
            f"{length + max_new_tokens}, the limit is {max_length}. "
            "Shorten it, leave out old turns or pictures, or ask for fewer new tokens."
        )
    return rendered


def postprocess(text: str) -> str:
    """Tidy a decoded answer: strip it, and make ASCII `, ! : ; ?` beside Chinese characters full-width."""
    return ASCII_BESIDE_CHINESE.sub(lambda match: FULL_WIDTH[match.group()], text.strip())


def settled(text: str) -> str:
    """The part of `postprocess(text)` that stays whatever text comes after: for streams."""
    tidy = postprocess(text)
    return tidy[:-1] if tidy[-1:] in FULL_WIDTH else tidy


def detect_language(text: str) -> str:
    """ "zh" if the text holds a Chinese character, else "en"."""
    return "zh" if re.search(CHINESE, text) else "en"


# --- conversations as others write them ---------------------------------------------------------------

IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")


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
        image_marker: a string that stands for a picture inside text, such as the `<image>` of training files.
            Without it text is text, whatever it holds.

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
            raise PromptError(f"Message {number} has the role {role!r}. Expected system, user or assistant.")
        text, images = _read_content(message.get("content"), f"Message {number}", image_marker)
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
            images.append(source.get("url") if isinstance(source, Mapping) else source)
        else:
            raise PromptError(
                f"{where}: cannot read a content part of type {kind!r}. "
                'Expected {"type": "text", "text": "…"}, {"type": "image", …} or {"type": "image_url", …}.'
            )
    return "\n".join(filter(None, texts)), images


# --- rendering ----------------------------------------------------------------------------------------


def _lay_out(turns: Sequence[Turn], style: str, language: str) -> tuple[Segments, Segments]:
    """The prompt, and the answer to learn if there is one, with every template filled in."""
    rules = _look_up(PROMPT_STYLES, style, "prompt style")
    _check_turns(turns)
    if language == "auto":
        language = detect_language(turns[0].question)
    question = _look_up(rules.questions, language, "language")
    if len(turns) == 1 and rules.lone_question is not None:
        question = rules.lone_question

    prompt = [*rules.start]
    for index, turn in enumerate(turns):
        if index > 0:
            prompt += _fill(rules.past_answer, answer=turns[index - 1].answer)
        number = rules.first_round + index
        prompt += _fill(question, turn.num_images, question=turn.question, round=number)
    prompt += rules.generation
    last_answer = turns[-1].answer
    return tuple(prompt), () if last_answer is None else _fill(rules.answer, answer=last_answer)


def _fill(template: Segments, num_images: int = 0, **values: Any) -> Segments:
    parts: list[str | Control | Mark] = []
    for segment in template:
        if isinstance(segment, str):
            parts.append(segment.format(**values))
        elif segment is Mark.IMAGES:
            parts.extend((IMAGE_START, Mark.SLOTS, IMAGE_END) * num_images)
        else:
            parts.append(segment)
    return tuple(parts)


def _encode(parts: Segments, tokenizer: PreTrainedTokenizerBase, num_query_tokens: int) -> list[int]:
    """Ids of filled-in segments; neighbouring texts are tokenized as one."""
    ids: list[int] = []
    for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        if is_text and (text := "".join(group)):  # type: ignore[arg-type]
            # ChatGLMTokenizer never reads control tokens out of text; others must be told to leave them.
            ids += tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        elif not is_text:
            for part in group:
                ids += _token_ids(part, tokenizer, num_query_tokens)
    return ids


def _token_ids(part: Any, tokenizer: PreTrainedTokenizerBase, num_query_tokens: int) -> list[int]:
    if part is Mark.CUT:
        return []
    if part is Mark.END:
        return [tokenizer.eos_token_id]
    if part is Mark.SLOTS:
        index = getattr(tokenizer, "image_token_id", None)
        if index is None:
            raise PromptError(
                f"This {type(tokenizer).__name__} has no image_token_id and cannot make room for a picture. "
                'Load it with extra_special_tokens={"image_token": "<|image|>"}.'
            )
        return [index] * num_query_tokens
    for name in part.names:
        index = tokenizer.convert_tokens_to_ids(name)
        if isinstance(index, int) and index != tokenizer.unk_token_id:
            return [index]
    raise PromptError(
        f"The tokenizer has no control token {' or '.join(part.names)}, which the prompt style needs. "
        "Use the prompt style the text model was trained with."
    )


def _check_turns(turns: Sequence[Turn]) -> None:
    if not turns:
        raise PromptError("The conversation is empty. Expected at least one turn with a question.")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn.question, str) or not isinstance(turn.answer, str | None):
            types = f"{type(turn.question).__name__} and {type(turn.answer).__name__}"
            raise PromptError(
                f"Turn {number}: question and answer are {types}. "
                "Expected two strings, or None for an answer still to be written."
            )
        try:
            f"{turn.question}{turn.answer}".encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"Turn {number}: half of a surrogate pair ({error.object[error.start]!r}) is no character. "
                "Was the text cut inside an emoji, or decoded wrongly?"
            ) from None
        if turn.num_images < 0:
            raise PromptError(f"Turn {number}: num_images is {turn.num_images}. Expected 0 or more.")
        if turn.answer is None and number < len(turns):
            raise PromptError(
                f"Turn {number} of {len(turns)} has no answer, which only the last turn may lack. "
                "Add the answer or leave the turn out."
            )


def _look_up(table: Mapping[str, Any], name: str, noun: str) -> Any:
    if name not in table:
        raise PromptError(f"There is no {noun} {name!r}. Expected one of: {', '.join(table)}.")
    return table[name]
