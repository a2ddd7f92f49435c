"""Conversation → ids, image slots and loss mask: the one renderer for chat and for training.

Control tokens and image slots are placed by id. Whatever a user typed goes through the tokenizer as plain
text and can become neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, repeat
from typing import TYPE_CHECKING, Any

from ..errors import ContextLengthError, PromptError
from ..tokenizers import typed_ids
from .styles import (
    PROMPT_STYLES,
    REFERENCES,
    SOP,
    Control,
    Mark,
    PromptStyle,
    Segments,
    Slots,
    Style,
    detect_language,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # labels with this value do not count in the loss
IMAGE_PLACEHOLDER = "<|image|>"


@dataclass(frozen=True)
class Reference:
    """A text that the answer shall go by.

    Args:
        source: by which the answer names it.
        text: as plain as what a user types: it can become no control token.
    """

    source: str
    text: str


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Args:
        question: what the user says.
        answer: what the assistant says, or None where it is still to be written.
        num_images: pictures shown with the question; they stand in front of it.
        references: texts to go by, apart from what the user says. They are shown to the model while the turn is the
            last one.
    """

    question: str
    answer: str | None = None
    num_images: int = 0
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True)
class Rendered:
    """A prompt in ids.

    Args:
        input_ids: the ids, image slots included.
        labels: as long as `input_ids`: -100 everywhere but on the last answer and its end token.
    """

    input_ids: list[int]
    labels: list[int]


def render(
    turns: Sequence[Turn],
    *,
    tokenizer: PreTrainedTokenizerBase,
    style: Style,
    num_query_tokens: int | Sequence[int],
    language: str = "auto",
    thinks: bool = True,
) -> Rendered:
    """Render a conversation, ready to generate its next answer or to learn its last one.

    Args:
        turns: the conversation, oldest first. Only the last turn may lack an answer; the prompt then ends
            where the model starts to write.
        tokenizer: the text model's tokenizer; needs `image_token_id` where there are pictures.
        style: a key of `PROMPT_STYLES`, or a style.
        num_query_tokens: image slots per picture, or those of each picture of the conversation.
        language: "zh", "en", or "auto": Chinese if the first question holds a Chinese character, else
            English. One choice holds for the whole conversation.
        thinks: whether the model may think before it answers, where the style knows that.

    Raises:
        PromptError: the turns, the style or the language cannot be rendered, or the tokenizer lacks a token.
    """
    prompt, answer = _lay_out(turns, style, language, thinks)
    slots = _slots(num_query_tokens)
    prompt_ids = _encode(prompt, tokenizer, slots)
    answer_ids = _encode(answer, tokenizer, slots)
    return Rendered(prompt_ids + answer_ids, [IGNORE_INDEX] * len(prompt_ids) + answer_ids)


def render_text(turns: Sequence[Turn], *, style: Style, language: str = "auto") -> str:
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
    ids = _encode((*parts, *rules.generation), tokenizer, _slots(num_query_tokens))
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
    ids = _encode((before, Control((blank,)), after, SOP), tokenizer, _slots(0))
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


def _slots(num_query_tokens: int | Sequence[int]) -> Iterator[int]:
    """Of one picture after the other."""
    return repeat(num_query_tokens) if isinstance(num_query_tokens, int) else iter(num_query_tokens)


def _next(slots: Iterator[int]) -> int:
    count = next(slots, None)
    if count is None:
        raise PromptError("The conversation has more pictures than image slots were given for. Give those of each.")
    return count


def _lay_out(turns: Sequence[Turn], style: Style, language: str, thinks: bool = True) -> tuple[Segments, Segments]:
    """The prompt, and the answer to learn if there is one, with every template filled in."""
    rules = style if isinstance(style, PromptStyle) else _look_up(PROMPT_STYLES, style, "prompt style")
    _check_turns(turns)
    if language == "auto":
        language = detect_language(turns[0].question)
    question = _look_up(rules.questions, language, "language")
    if len(turns) == 1 and rules.lone_question is not None:
        question = rules.lone_question

    off = rules.thinking if not thinks and rules.thinking is not None and rules.thinking.off is not None else None
    prompt = [*rules.start]
    for index, turn in enumerate(turns):
        if index > 0:
            past = turns[index - 1].answer or ""
            prompt += _fill(rules.past_answer, answer=past.strip() if rules.strips else past)
        number = rules.first_round + index
        asked = _with_references(turn, language) if index == len(turns) - 1 else turn.question
        for part in _fill(question, question=asked, round=number):
            prompt += rules.picture * turn.num_images if part is Mark.IMAGES else (part,)
        prompt += () if off is None else off.off_note
    prompt += rules.generation
    prompt += () if off is None else off.off or ()
    last_answer = turns[-1].answer
    template = rules.answer if off is None else off.off_answer
    return tuple(prompt), () if last_answer is None else _fill(template, answer=last_answer)


def _with_references(turn: Turn, language: str) -> str:
    if not turn.references:
        return turn.question
    head, each, foot = REFERENCES[language]
    listed = "".join(each.format(source=part.source, text=part.text) for part in turn.references)
    return head + listed + foot.format(question=turn.question)


def _fill(template: Segments, **values: Any) -> Segments:
    return tuple(part.format(**values) if isinstance(part, str) else part for part in template)


def _encode(parts: Segments, tokenizer: PreTrainedTokenizerBase, slots: Iterator[int]) -> list[int]:
    """Ids of filled-in segments; neighbouring texts are tokenized as one."""
    ids: list[int] = []
    parts = tuple(_spelled(part, tokenizer) for part in parts)
    for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        if is_text and (text := "".join(group)):  # type: ignore[arg-type]
            ids += typed_ids(tokenizer, text)
        elif not is_text:
            for part in group:
                ids += _token_ids(part, tokenizer, slots)
    return ids


def _spelled(part: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A control token that some releases do not have, as the text that it stands for there."""
    is_missing = isinstance(part, Control) and part.is_text_without and _find_token(part, tokenizer) is None
    return part.names[0] if is_missing else part


def _find_token(control: Control, tokenizer: PreTrainedTokenizerBase) -> int | None:
    found = (tokenizer.convert_tokens_to_ids(name) for name in control.names)
    return next((index for index in found if isinstance(index, int) and index != tokenizer.unk_token_id), None)


def _token_ids(part: Any, tokenizer: PreTrainedTokenizerBase, slots: Iterator[int]) -> list[int]:
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
        return [index] * _next(slots)
    if (index := _find_token(part, tokenizer)) is not None:
        return [index] * (_next(slots) if isinstance(part, Slots) else 1)
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
            "".join((turn.question, turn.answer or "", *(part.text for part in turn.references))).encode()
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
