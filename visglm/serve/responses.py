"""OpenAI's responses, without a memory: everything that counts comes with the request."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from ..engine import Token
from ..reply import Reply
from ..sampling import Sampling
from .asking import STREAMS, Event, ask, service_of, stream, visit_of
from .chat import JsonObject, NamedSchema, PlainText, Spelled
from .conversation import read
from .errors import Refusal
from .service import Piece, Question, Service
from .wire import PIXEL, Json, Wire, shown_by

LOGPROBS = "message.output_text.logprobs"


class InputText(Wire):
    type: Literal["input_text"]
    text: str


class OutputText(Wire):
    """Of an answer that is sent back."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputImage(Wire):
    """A data URL, or an address of a host that was allowed."""

    type: Literal["input_image"]
    image_url: str
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"detail": ("auto", "low"), "file_id": ()}


class Item(Wire):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: (
        str
        | Annotated[
            list[Annotated[InputText | OutputText | InputImage, Field(discriminator="type")]], Field(min_length=1)
        ]
    )
    id: str | None = None  # as an answer had it that is sent back
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    def plain(self) -> dict[str, Any]:
        """As chat completions have it."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        parts = [
            {"type": "image_url", "image_url": {"url": part.image_url}}
            if isinstance(part, InputImage)
            else {"type": "text", "text": part.text}
            for part in self.content
        ]
        return {"role": self.role, "content": parts}


class JsonSchema(NamedSchema):
    type: Literal["json_schema"]


class TextOptions(Wire):
    format: Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")] | None = None
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}


class ResponsesRequest(Wire):
    """A question, or a conversation to go on with. Nothing is kept: `store` is false."""

    model_config = shown_by({"model": "visglm-tiny", "input": [{"role": "user", "content": [
        {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"},
        {"type": "input_text", "text": "What is this?"},
    ]}]})  # fmt: skip
    model: str
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    stream: bool = False
    max_output_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    # Left out, these are the model's own.
    temperature: Annotated[float, Field(ge=0, le=5, description="0 takes the likeliest token")] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    text: TextOptions | None = None
    include: list[Literal["message.output_text.logprobs"]] = []
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = None
    user: Annotated[str, Field(max_length=512, description="whom the client asks for; it changes nothing")] | None = (
        None
    )
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "store": (False,), "previous_response_id": (), "conversation": (), "tools": ([],), "background": (False,),
        "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False), "truncation": ("disabled",),
        "reasoning": ({}, {"effort": None}, {"effort": None, "summary": None}), "max_tool_calls": (), "prompt": (),
        "service_tier": ("auto", "default"), "stream_options": ({}, {"include_obfuscation": False}),
        "safety_identifier": (), "prompt_cache_key": (), "prompt_cache_retention": (), "moderation": (),
        "context_management": (), "prompt_cache_options": (),
    }  # fmt: skip

    @property
    def form(self) -> dict[str, Any]:
        """Of the answer."""
        form = self.text.format if self.text is not None else None
        return {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)

    def question(self, service: Service, owner: str) -> Question:
        """What it asks.

        Raises:
            Refusal, VisGLMError: it cannot be asked.
        """
        if self.top_logprobs and LOGPROBS not in self.include:
            raise Refusal(400, f"top_logprobs: needs {LOGPROBS} in include.", "invalid_value", "top_logprobs")
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        messages += [one if isinstance(one, dict) else one.plain() for one in items]
        turns, sources = read(messages)
        schema = {"json_schema": self.form.get("schema", ""), "json_object": {"type": "object"}, "text": ""}
        sampling = Sampling(
            max_new_tokens=self.max_output_tokens, temperature=self.temperature, top_p=self.top_p,
            logprobs=self.top_logprobs, json_schema=schema[self.form["type"]],
        )  # fmt: skip
        return Question(turns, sources, sampling, service.names.adapter(self.model), owner)


router = APIRouter()


@router.post("/v1/responses", summary="Answer, in the words of OpenAI's responses", tags=["OpenAI"], responses=STREAMS)
async def respond(body: ResponsesRequest, request: Request) -> Response:
    service, visit = service_of(request), visit_of(request)
    question = body.question(service, visit.owner)
    told = Told(service, body, visit.id)
    if body.stream:
        return await stream(request, question, told)
    reply, _ = await ask(request, question)
    return Json(told.whole(reply))


class Told(Spelled):
    """An answer as a response."""

    def __init__(self, service: Service, body: ResponsesRequest, id_: str):
        super().__init__(service)
        self._body, self._message_id = body, f"msg_{id_}"
        self._wants_logprobs = LOGPROBS in body.include
        self._number = 0
        self._text = ""
        now = int(time.time())
        # What was left open is told as it was taken, the model's own.
        taken = {name: value for name, value in service.vlm.defaults.items() if getattr(body, name, 0) is None}
        self._head: dict[str, Any] = {
            "id": f"resp_{id_}", "object": "response", "created_at": now, "model": body.model,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
            "temperature": body.temperature, "top_p": body.top_p, **taken, "top_logprobs": body.top_logprobs,
            "text": {"format": body.form}, "metadata": body.metadata or {}, "store": False, "background": False,
            "previous_response_id": None, "tools": [], "tool_choice": "none", "parallel_tool_calls": False,
            "truncation": "disabled", "reasoning": {"effort": None, "summary": None},
            "service_tier": "default", "max_tool_calls": None, "presence_penalty": 0, "frequency_penalty": 0,
            "safety_identifier": None, "prompt_cache_key": None, **({} if body.user is None else {"user": body.user}),
        }  # fmt: skip

    def whole(self, reply: Reply) -> dict[str, Any]:
        """The response as it is in the end."""
        status = self._status(reply)
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        prompt, completion = reply.usage.prompt_tokens, reply.usage.completion_tokens
        usage = {
            "input_tokens": prompt, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": completion, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        }  # fmt: skip
        end = {"completed_at": int(time.time())} if status == "completed" else {"completed_at": None}
        return {
            **self._head, **end, "status": status, "error": None, "incomplete_details": incomplete,
            "output": [self._message(reply, status)], "usage": usage,
        }  # fmt: skip

    @staticmethod
    def _status(reply: Reply) -> str:
        return "incomplete" if reply.finish_reason == "length" else "completed"

    def _message(self, reply: Reply, status: str) -> dict[str, Any]:
        part = self._part(reply.text, self.tokens_of(reply))
        return {"type": "message", "id": self._message_id, "status": status, "role": "assistant", "content": [part]}

    def _part(self, text: str, tokens: Iterable[Token]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs(tokens)}

    def _logprobs(self, tokens: Iterable[Token]) -> list[dict[str, Any]]:
        return self.spelled(tokens) if self._wants_logprobs else []

    # --- as a stream ---

    def begin(self, prompt_tokens: int) -> Iterable[Event]:
        start = {
            **self._head, "completed_at": None, "status": "in_progress", "error": None, "incomplete_details": None,
            "output": [], "usage": None,
        }  # fmt: skip
        yield self._event("response.created", response=start)
        yield self._event("response.in_progress", response=start)
        item = {"type": "message", "id": self._message_id, "status": "in_progress", "role": "assistant", "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place(), part=self._part("", ()))

    def tell(self, piece: Piece) -> Iterable[Event]:
        if piece.text:
            self._text += piece.text
            yield self._event(
                "response.output_text.delta", **self._place(), delta=piece.text, logprobs=self._logprobs(piece.tokens)
            )

    def end(self, reply: Reply) -> Iterable[Event]:
        tokens, status = self.tokens_of(reply), self._status(reply)
        yield self._event(
            "response.output_text.done", **self._place(), text=reply.text, logprobs=self._logprobs(tokens)
        )
        yield self._event("response.content_part.done", **self._place(), part=self._part(reply.text, tokens))
        yield self._event("response.output_item.done", output_index=0, item=self._message(reply, status))
        yield self._event(f"response.{status}", response=self.whole(reply))

    def fail(self, refusal: Refusal) -> Iterable[Event]:
        yield self._event("error", code=refusal.code, message=refusal.message, param=refusal.param)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **content: Any) -> Event:
        self._number += 1
        return kind, {"type": kind, "sequence_number": self._number - 1, **content}
