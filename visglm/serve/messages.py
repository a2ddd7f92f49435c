"""Anthropic's messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from ..reply import Reply
from ..sampling import MOST_TEXTS, Sampling
from .asking import STREAMS, Event, ask, service_of, stream, visit_of
from .chat import Stop
from .conversation import read
from .errors import Refusal
from .service import Piece, Question, Service
from .wire import PIXEL, Json, Wire, shown_by

CACHED: Mapping[str, tuple[Any, ...]] = {"cache_control": ({"type": "ephemeral"},)}  # a hint; pictures are remembered

WHERE: Mapping[str, Any] = {"cache_creation": None, "inference_geo": None, "service_tier": "standard"}


class TextBlock(Wire):
    type: Literal["text"]
    text: str
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {**CACHED, "citations": ([],)}


class Base64Source(Wire):
    type: Literal["base64"]
    media_type: Literal["image/png", "image/jpeg", "image/gif", "image/webp"]
    data: str


class UrlSource(Wire):
    """An address of a host that was allowed."""

    type: Literal["url"]
    url: str


class ImageBlock(Wire):
    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = CACHED

    @property
    def url(self) -> str:
        source = self.source
        return source.url if isinstance(source, UrlSource) else f"data:{source.media_type};base64,{source.data}"


class AnthropicMessage(Wire):
    role: Literal["user", "assistant"]
    content: str | Annotated[list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]], Field(min_length=1)]

    def plain(self) -> dict[str, Any]:
        """As chat completions have it."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        parts = [
            {"type": "text", "text": block.text}
            if isinstance(block, TextBlock)
            else {"type": "image_url", "image_url": {"url": block.url}}
            for block in self.content
        ]
        return {"role": self.role, "content": parts}


class Metadata(Wire):
    user_id: str | None = None  # it changes nothing


class MessagesRequest(Wire):
    """A conversation to go on with."""

    model_config = shown_by({"model": "visglm-tiny", "max_tokens": 50, "messages": [{"role": "user", "content": [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
        {"type": "text", "text": "What is this?"},
    ]}]})  # fmt: skip
    model: str
    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)]
    system: str | list[TextBlock] | None = None
    stream: bool = False
    # Left out, these are the model's own.
    temperature: Annotated[float, Field(ge=0, le=1, description="0 takes the likeliest token")] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=MOST_TEXTS)] = []
    metadata: Metadata | None = None
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "tools": ([],), "tool_choice": ({"type": "none"}, {"type": "auto"}), "thinking": ({"type": "disabled"},),
        "service_tier": ("auto", "standard_only"), "container": (), "mcp_servers": ([],), "output_config": ({},),
        "context_management": (), "inference_geo": (), "cache_control": CACHED["cache_control"],
    }  # fmt: skip

    def question(self, service: Service, owner: str) -> Question:
        """What it asks.

        Raises:
            Refusal, VisGLMError: it cannot be asked.
        """
        system = self.system if isinstance(self.system, str | None) else "\n".join(one.text for one in self.system)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        turns, sources = read([*messages, *(one.plain() for one in self.messages)])
        sampling = Sampling(
            max_new_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k,
            stop=self.stop_sequences,
        )  # fmt: skip
        return Question(turns, sources, sampling, service.names.adapter(self.model), owner)


router = APIRouter()


@router.post(
    "/v1/messages", summary="Answer, in the words of Anthropic's messages", tags=["Anthropic"], responses=STREAMS
)
async def answer(body: MessagesRequest, request: Request) -> Response:
    service, visit = service_of(request), visit_of(request)
    question = body.question(service, visit.owner)
    told = Told(service, body, question.sampling, f"msg_{visit.id}")
    if body.stream:
        return await stream(request, question, told)
    reply, _ = await ask(request, question)
    return Json(told.whole(reply))


class Told:
    """An answer in Anthropic's words."""

    def __init__(self, service: Service, body: MessagesRequest, sampling: Sampling, id_: str):
        self._service, self._sampling = service, sampling
        self._head = {"id": id_, "type": "message", "role": "assistant", "model": body.model, "container": None}

    def whole(self, reply: Reply) -> dict[str, Any]:
        usage = usage_of(reply.usage.prompt_tokens, reply.usage.completion_tokens)
        return {**self._head, "content": [text_block(reply.text)], **self._stop(reply), "usage": {**usage, **WHERE}}

    def _stop(self, reply: Reply) -> dict[str, Any]:
        stop = self._service.stop_of(reply, self._sampling)
        reason = (
            "stop_sequence" if stop is not None else "max_tokens" if reply.finish_reason == "length" else "end_turn"
        )
        return {"stop_reason": reason, "stop_sequence": stop, "stop_details": None}

    # --- as a stream ---

    def begin(self, prompt_tokens: int) -> Iterable[Event]:
        nothing: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "stop_details": None}
        usage = {**usage_of(prompt_tokens, 0), **WHERE}
        yield event("message_start", message={**self._head, **nothing, "usage": usage})
        yield event("content_block_start", index=0, content_block=text_block(""))

    def tell(self, piece: Piece) -> Iterable[Event]:
        if piece.text:
            yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece.text})

    def end(self, reply: Reply) -> Iterable[Event]:
        yield event("content_block_stop", index=0)
        usage = usage_of(reply.usage.prompt_tokens, reply.usage.completion_tokens)
        yield event("message_delta", delta={**self._stop(reply), "container": None}, usage=usage)
        yield event("message_stop")

    def fail(self, refusal: Refusal) -> Iterable[Event]:
        yield "error", refusal.body(is_anthropic=True)


def text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": None}


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": prompt_tokens, "output_tokens": completion_tokens, "output_tokens_details": None,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "server_tool_use": None,
    }  # fmt: skip


def event(kind: str, **content: Any) -> Event:
    return kind, {"type": kind, **content}
