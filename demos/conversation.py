"""A conversation as the page keeps it: pictures, questions and answers, whatever model gave them.

No widgets here. A conversation outlives the model: it can be saved, loaded again and gone on with by another one.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from texts import Told

from visglm import Explanation, History, Reply, VisGLM, VisGLMError, load_image
from visglm.errors import PromptError
from visglm.prompt import Turn, messages_to_turns
from visglm.reply import Timings, Usage

WAITING, STOPPED, FAILED = "waiting", "stopped", "failed"  # beside the finish reasons of a reply
MAX_SAVED_SIDE = 1024  # pixels; a saved picture is no larger, which is far more than a model sees


@dataclass
class Exchange:
    """One question with its pictures, and its answer.

    Args:
        status: `WAITING` until the model starts, `STOPPED` until it has ended, then why it ended; `FAILED` where
            there is no answer.
        failure: why there is none.
        model: label of the model that answered.
        history: what `VisGLM.chat` takes to go on behind this answer; None where that has to be worked out.
        explanation: heat map over the conversation's last picture.
    """

    question: str
    pictures: list[Image.Image] = field(default_factory=list)
    answer: str = ""
    status: str = WAITING
    model: str = ""
    usage: Usage | None = None
    timings: Timings | None = None
    history: History | None = None
    explanation: Explanation | None = None
    failure: Told | None = None

    def again(self, question: str | None = None) -> Exchange:
        """The same question, or another about the same pictures, waiting. A new object: a run of the page that is
        being stopped may still write a last piece into the old one."""
        return Exchange(question or self.question, self.pictures)

    def take(self, reply: Reply) -> None:
        """The reply is the answer."""
        self.answer, self.status, self.history = reply.text, reply.finish_reason, reply.history
        self.usage, self.timings = reply.usage, reply.timings

    def fail(self, key: str, **values: Any) -> None:
        """There is no answer, and the text `key` says why."""
        self.answer, self.status, self.failure = "", FAILED, Told(key, values)

    @property
    def tokens_per_second(self) -> float | None:
        """Of the answer behind its first token; None for answers of one token."""
        if self.usage is None or self.timings is None or self.usage.completion_tokens < 2:
            return None
        return (self.usage.completion_tokens - 1) / max(self.timings.total - self.timings.first_token, 1e-6)


def pictures_of(exchanges: Sequence[Exchange]) -> list[Image.Image]:
    """All pictures, in order."""
    return [picture for exchange in exchanges for picture in exchange.pictures]


def turns_of(exchanges: Sequence[Exchange]) -> tuple[Turn, ...]:
    """The same for `visglm`."""
    return tuple(Turn(item.question, item.answer, num_images=len(item.pictures)) for item in exchanges)


def history_of(exchanges: Sequence[Exchange], vlm: VisGLM, model: str) -> History | None:
    """What `vlm`, whose label is `model`, needs to go on behind these exchanges.

    It is the last reply's own history if this model gave it; else the pictures are encoded anew.
    """
    if not exchanges:
        return None
    last = exchanges[-1]
    if last.history is not None and last.model == model:
        return last.history
    pictures = pictures_of(exchanges)
    return History(turns_of(exchanges), vlm.encode(pictures) if pictures else None)


# --- saving and loading -----------------------------------------------------------------------------------------


def answered(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """Those that can be saved: a question that failed has no answer, and a sentence of the page is none."""
    return [item for item in exchanges if item.status != FAILED]


def picture_url(picture: Image.Image) -> str:
    """The picture as a data URL: JPEG, at most `MAX_SAVED_SIDE` pixels a side."""
    small, buffer = picture.copy(), io.BytesIO()
    small.thumbnail((MAX_SAVED_SIDE, MAX_SAVED_SIDE))
    small.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def to_json(exchanges: Sequence[Exchange]) -> str:
    """Messages as OpenAI and Hugging Face write them, pictures as data URLs: what `from_json` reads."""
    messages: list[dict] = []
    for item in answered(exchanges):
        parts: list[dict] = [{"type": "image_url", "image_url": {"url": picture_url(each)}} for each in item.pictures]
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": item.question}]})
        messages.append({"role": "assistant", "content": item.answer})
    return json.dumps({"messages": messages}, ensure_ascii=False, indent=1)


def from_json(data: bytes) -> list[Exchange]:
    """Read a saved conversation.

    Raises:
        VisGLMError: it is not one. Pictures are taken from data URLs only: a file that somebody was sent must not
            make the page open paths or addresses.
    """
    try:
        messages = json.loads(data)["messages"]
        turns, sources = messages_to_turns(messages)
    except (ValueError, TypeError, KeyError, RecursionError, VisGLMError) as error:
        raise PromptError(f"this is not a saved conversation ({error}).") from None
    if not all(isinstance(source, str) and source.startswith("data:") for source in sources):
        raise PromptError("a saved conversation holds its pictures as data URLs; this one names them otherwise.")
    pictures = iter([load_image(source) for source in sources])
    return [
        Exchange(turn.question, [next(pictures) for _ in range(turn.num_images)], turn.answer or "", "stop")
        for turn in turns
    ]


def to_markdown(exchanges: Sequence[Exchange], title: str) -> str:
    """For reading: pictures inside the file, questions in bold."""
    blocks = [f"# {title}"]
    for item in answered(exchanges):
        blocks += [f"![]({picture_url(picture)})" for picture in item.pictures]
        blocks += [f"**{item.question.strip()}**", item.answer]
    return "\n\n".join(blocks) + "\n"
