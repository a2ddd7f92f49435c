"""A conversation as the page keeps it: pictures, questions and answers, whatever model gave them.

No widgets here. A conversation outlives the model: it can be saved, loaded again and gone on with by another one.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from texts import Told, as_markdown

from visglm import Explanation, History, ImageLimits, RemoteVisGLM, Reply, VisGLM, VisGLMError, load_image
from visglm.errors import PromptError
from visglm.prompt import Turn, messages_to_turns
from visglm.reply import Timings, Usage, draw_boxes

WAITING, STOPPED, FAILED = "waiting", "stopped", "failed"  # beside the finish reasons of a reply
# Pixels of the longest side of a picture that the page holds, which is far more than a model sees. Streamlit serves no
# wider one, and draws a wider one anew each time.
MAX_SIDE = 1460
# A conversation that was saved here holds no larger pictures than that; one from elsewhere may, but a few hundred bytes
# can claim to be a hundred megabytes, and a file holds many pictures.
SAVED_LIMITS = ImageLimits(max_bytes=16 * 2**20, max_pixels=16_000_000)
MAX_LOADED_PICTURES = 32
DEFAULT_LIMITS = ImageLimits()
DECODING = threading.Lock()
MAX_TITLE = 40  # characters


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
        sampling: the settings it was answered with.
        thinking: what the model thought before it answered; it is not saved, and no model is told.
        marked: the picture with the places that the answer names, if it names any.
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
    sampling: dict[str, Any] = field(default_factory=dict)
    failure: Told | None = None
    thinking: str = ""
    marked: Image.Image | None = None

    def again(self, question: str | None = None) -> Exchange:
        """The same question, or another about the same pictures, waiting. A new object: a run of the page that is
        being stopped may still write a last piece into the old one."""
        return Exchange(question or self.question, self.pictures)

    def take(self, reply: Reply) -> None:
        """The reply is the answer."""
        self.answer, self.status, self.history = reply.text, reply.finish_reason, reply.history
        self.usage, self.timings = reply.usage, reply.timings
        self.thinking = reply.thinking
        if reply.boxes and self.pictures:
            self.marked = draw_boxes(self.pictures[-1], reply.boxes)

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


def history_of(exchanges: Sequence[Exchange], vlm: VisGLM | RemoteVisGLM, model: str) -> Any:
    """What `vlm`, whose label is `model`, needs to go on behind these exchanges.

    It is the last reply's own history if this model gave it; else the pictures are encoded anew. A server is told
    everything each time.
    """
    if not exchanges:
        return None
    if isinstance(vlm, RemoteVisGLM):
        return messages_of(exchanges)
    last = exchanges[-1]
    if last.history is not None and last.model == model:
        return last.history
    pictures = pictures_of(exchanges)
    return vlm.recall(turns_of(exchanges), pictures)


# --- saving and loading -----------------------------------------------------------------------------------------


def answered(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """Those that can be saved: a question that failed has no answer, and a sentence of the page is none."""
    return [item for item in exchanges if item.status != FAILED]


def load_shrunk(source: Any, limits: ImageLimits = DEFAULT_LIMITS, allow_urls: bool = False) -> Image.Image:
    """`load_image` for the page: the picture in the size that the page holds. Addresses are fetched side by side, but
    pictures decoded one at a time: each may need hundreds of megabytes until it is small.

    Raises:
        ImageError: as `load_image`.
    """
    if allow_urls:
        return shrunk(load_image(source, limits=limits, allow_urls=True))
    with DECODING:
        return shrunk(load_image(source, limits=limits))


def shrunk(picture: Image.Image) -> Image.Image:
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture


def jpeg_of(picture: Image.Image) -> bytes:
    """The picture as a file; made once, for it is shown again at every click and kept after every answer.

    It is kept beside the picture and not in its `info`, which a copy that is drawn upon takes along.
    """
    if "as_jpeg" not in vars(picture):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        vars(picture)["as_jpeg"] = buffer.getvalue()
    return vars(picture)["as_jpeg"]


def picture_url(picture: Image.Image) -> str:
    """The picture as a data URL."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg_of(picture)).decode()


def title_of(exchanges: Sequence[Exchange]) -> str:
    """What a list shows of a conversation: how it began, on one line."""
    words = " ".join(exchanges[0].question.split()) if exchanges else ""
    return words if len(words) <= MAX_TITLE else words[: MAX_TITLE - 1] + "…"


def shown_to(vlm: VisGLM | RemoteVisGLM, pictures: Sequence[Image.Image]) -> list[Any]:
    """Pictures as this model takes them: a server always by the same bytes, so that it knows them again."""
    return [picture_url(picture) for picture in pictures] if isinstance(vlm, RemoteVisGLM) else list(pictures)


def to_json(exchanges: Sequence[Exchange], whole: bool = False) -> str:
    """Messages as OpenAI and Hugging Face write them, pictures as data URLs: what `from_json` reads.

    Args:
        whole: with the last question, though it has no answer. Only what is kept here needs that.
    """
    messages = messages_of(exchanges if whole else answered(exchanges))
    return json.dumps({"messages": messages}, ensure_ascii=False, indent=1)


def messages_of(exchanges: Sequence[Exchange]) -> list[dict]:
    messages: list[dict] = []
    for item in exchanges:
        parts: list[dict] = [{"type": "image_url", "image_url": {"url": picture_url(each)}} for each in item.pictures]
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": item.question}]})
        if item.status not in (WAITING, FAILED):
            message = {"role": "assistant", "content": item.answer, "model": item.model, "finish_reason": item.status}
            messages.append(message)
    return messages


def from_json(data: bytes | str, most: int | None = MAX_LOADED_PICTURES) -> list[Exchange]:
    """Read a saved conversation.

    Args:
        most: pictures in it; None for what this page has kept itself.

    Raises:
        VisGLMError: it is not one. Pictures are taken from data URLs only: a file that somebody was sent must not
            make the page open paths or addresses.
    """
    try:
        messages = json.loads(data)["messages"]
        turns, sources = messages_to_turns(messages)
        "".join(text for turn in turns for text in (turn.question, turn.answer or "")).encode()  # see `is_text`
    except (ValueError, TypeError, KeyError, RecursionError, VisGLMError) as error:
        raise PromptError(f"this is not a saved conversation ({type(error).__name__}).") from None
    if not all(isinstance(source, str) and source.startswith("data:") for source in sources):
        raise PromptError("a saved conversation holds its pictures as data URLs; this one names them otherwise.")
    if most is not None and len(sources) > most:
        raise PromptError(f"this conversation has {len(sources)} pictures; at most {most} are loaded.")
    pictures = iter([load_shrunk(source, SAVED_LIMITS) for source in sources])
    remarks = [message for message in messages if message["role"] == "assistant"]
    exchanges = []
    for index, turn in enumerate(turns):
        remark = remarks[index] if index < len(remarks) else {}
        reason, model = remark.get("finish_reason", "stop"), remark.get("model", "")
        exchanges.append(
            Exchange(
                turn.question,
                [next(pictures) for _ in range(turn.num_images)],
                turn.answer or "",
                STOPPED if turn.answer is None else reason if reason in ("stop", "length", STOPPED) else "stop",
                model if isinstance(model, str) and is_text(model) else "",
            )
        )
    return exchanges


def is_text(text: str) -> bool:
    """Whether every character is whole; half of one ("\\ud800") can be neither sent to a browser nor kept."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_markdown(exchanges: Sequence[Exchange], title: str) -> str:
    """For reading: pictures inside the file, questions in bold. What was written is text: no markup of it counts, and
    no picture that it names is fetched by whoever opens the file."""
    blocks = [f"# {as_markdown(title)}"]
    for item in answered(exchanges):
        blocks += [f"![]({picture_url(picture)})" for picture in item.pictures]
        blocks += [f"**{as_markdown(item.question.strip())}**", as_markdown(item.answer)]
    return "\n\n".join(blocks) + "\n"
