"""How text models were taught to see a conversation, as data: one row of `PROMPT_STYLES` each, and their wording."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

LANGUAGES = ("zh", "en")
IMAGE_START, IMAGE_END = "<img>", "</img>"

CHINESE = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
FULL_WIDTH = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
NARROW = str.maketrans({wide: narrow for narrow, wide in FULL_WIDTH.items()})
ASCII_BESIDE_CHINESE = re.compile(rf"(?<={CHINESE})[,!:;?]|[,!:;?](?={CHINESE})")


@dataclass(frozen=True)
class Control:
    """A control token of the text model by name; several names where releases spell it differently.

    Args:
        is_text_without: releases whose vocabulary does not have it read its name as text.
    """

    names: tuple[str, ...]
    is_text_without: bool = False


class Slots(Control):
    """The image slots of one picture, by the control token that stands at each of them."""


class Mark(Enum):
    """Places in a template that are not text."""

    IMAGES = "the pictures of the turn"
    SLOTS = "the image slots of one picture"
    CUT = "the text before and the text behind are tokenized apart"
    END = "the end token"


Segments = tuple[str | Control | Mark, ...]


@dataclass(frozen=True)
class Thinking:
    """How a text model thinks before it answers.

    Args:
        start: what it writes first. end: what its answer follows.
        off: what a prompt ends with so that it answers at once; None where it always thinks.
        off_note: what a question ends with then. off_answer: template of what the model writes then.
    """

    start: str = "<think>"
    end: str = "</think>"
    off: Segments | None = None
    off_note: Segments = ()
    off_answer: Segments = ()


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
        full_width: ASCII punctuation beside Chinese characters becomes full-width in answers. The first generation's
            vocabulary has no other; those that came later write what they mean.
        picture: a picture in front of a question.
        thinking: what stands before an answer, if anything does; it is no part of the answer.
        wrapping: what the model writes around its answer, or in it, and people are not shown.
        box: what stands around places in a picture.
        strips: answers that lie in the past stand without the whitespace around them.
    """

    questions: Mapping[str, Segments]
    past_answer: Segments
    start: Segments = ()
    generation: Segments = ()
    answer: Segments = ("{answer}", Mark.END)
    lone_question: Segments | None = None
    first_round: int = 0
    full_width: bool = False
    picture: Segments = (IMAGE_START, Mark.SLOTS, IMAGE_END)
    thinking: Thinking | None = None
    wrapping: tuple[str, ...] = ()
    box: tuple[str, str] | None = None
    strips: bool = False

    @property
    def written(self) -> tuple[str, ...]:
        """What an answer holds beside words."""
        thinking = () if self.thinking is None else (self.thinking.start, self.thinking.end)
        return (*thinking, *self.wrapping, *(self.box or ()))


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
        full_width=True,
    ),
    "chatglm": PromptStyle(
        lone_question=(Mark.IMAGES, "{question}"),
        questions=dict.fromkeys(LANGUAGES, (Mark.IMAGES, "[Round {round}]\n问：{question}\n答：")),
        past_answer=("{answer}\n",),
        generation=(GMASK, SOP),
        full_width=True,
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

# Head, each reference, and foot around the question, where an answer shall go by texts.
REFERENCES: Mapping[str, tuple[str, str, str]] = {
    "zh": (
        "资料：\n",
        "[{source}] {text}\n",
        "请只根据以上资料回答，并在每句话后注明资料编号；资料中没有的，就说没有。\n{question}",
    ),
    "en": (
        "References:\n",
        "[{source}] {text}\n",
        "Answer from these references alone, and name the number of one after each sentence. What is not in them, say "
        "that it is not.\n{question}",
    ),
}


Style = str | PromptStyle  # a key of `PROMPT_STYLES`, or a style that is none of them


def rules_of(style: Style) -> PromptStyle:
    """What a style says."""
    return style if isinstance(style, PromptStyle) else PROMPT_STYLES[style]


def is_full_width(style: Style | None) -> bool:
    """Whether answers of the style have full-width punctuation; without a style they are left as they are."""
    return style is not None and rules_of(style).full_width


def postprocess(text: str, style: Style | None) -> str:
    """Tidy a decoded answer as its style says: stripped, and where the vocabulary writes `：` as `:`, put right."""
    text = text.strip()
    if not is_full_width(style):
        return text
    return ASCII_BESIDE_CHINESE.sub(lambda match: FULL_WIDTH[match.group()], text)


def plain_punctuation(text: str, style: Style | None) -> str:
    """Text of the same length in which punctuation that the style makes full-width is ASCII, to compare texts by."""
    return text.translate(NARROW) if is_full_width(style) else text


def settled(text: str, style: Style | None) -> str:
    """The part of `postprocess(text, style)` that stays whatever text comes after: for streams."""
    tidy = postprocess(text, style)
    return tidy[:-1] if is_full_width(style) and tidy[-1:] in FULL_WIDTH else tidy


def detect_language(text: str) -> str:
    """ "zh" if the text holds a Chinese character, else "en"."""
    return "zh" if re.search(CHINESE, text) else "en"
