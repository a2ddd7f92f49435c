"""OpenAI's chat completions: what is asked, and what is answered, whole and as a stream."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from ..engine import Token
from ..explanation import Explanation
from ..reply import Reply
from ..sampling import LONGEST_TEXT, MOST_TEXTS, Sampling
from .asking import STREAMS, Event, EventStream, ask, note, service_of, stream, visit_of, while_there
from .conversation import read
from .errors import Refusal, broken_off
from .libraries import answer_from, shown
from .service import Piece, Question, Service
from .wire import PIXEL, Json, Wire, shown_by

DONE = "[DONE]"
NEAREST = 2**64  # seeds are taken modulo this: OpenAI's may be negative


class ImageUrl(Wire):
    """Where a picture is: a data URL, or an address of a host that was allowed."""

    url: str
    # Pictures are seen at one size, whose cost is low.
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"detail": ("auto", "low")}


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Wire):
    type: Literal["text"]
    text: str


Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Instruction(Wire):
    """What the system or the developer says."""

    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"name": ()}


class UserMessage(Wire):
    role: Literal["user"]
    content: str | Annotated[list[Part], Field(min_length=1)]
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"name": ()}


class AssistantMessage(Wire):
    role: Literal["assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    # What a client has that sends an answer back as it got it.
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "name": (), "refusal": (), "annotations": ([],), "audio": (), "tool_calls": ([],), "function_call": (),
    }  # fmt: skip
    reasoning_content: Annotated[str, Field(description="what was thought: no history keeps it")] | None = None


Message = Annotated[Instruction | UserMessage | AssistantMessage, Field(discriminator="role")]


class NamedSchema(Wire):
    name: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None  # answers keep to it in any case


class PlainText(Wire):
    type: Literal["text"]


class JsonObject(Wire):
    type: Literal["json_object"]


class JsonSchema(Wire):
    type: Literal["json_schema"]
    json_schema: NamedSchema


Format = Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")]


class StreamOptions(Wire):
    include_usage: bool = False
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}


class ChatRequest(Wire):
    """A conversation to go on with."""

    model_config = shown_by({"model": "visglm-tiny", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "text", "text": "What is this?"},
    ]}]})  # fmt: skip
    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000, description="older name of max_completion_tokens")] | None = (
        None
    )
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    # Left out, these are the model's own.
    temperature: Annotated[float, Field(ge=0, le=5, description="0 takes the likeliest token")] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_TEXTS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    response_format: Format | None = None
    user: Annotated[str, Field(max_length=512, description="whom the client asks for; it changes nothing")] | None = (
        None
    )
    max_thinking_tokens: Annotated[
        int, Field(ge=0, le=1_000_000, description="extension: of a model that thinks before it answers; 0: at once")
    ] | None = None  # fmt: skip
    choices: Annotated[list[str], Field(description="extension: the answer is the likeliest of these")] | None = None
    explain: Annotated[bool, Field(description="extension: a heat map of the last picture comes along")] = False
    library: Annotated[str, Field(
        max_length=64, description="extension: answer from this library of the server's; the message has citations"
    )] | None = None  # fmt: skip

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "frequency_penalty": (0,), "presence_penalty": (0,), "store": (False,), "metadata": ({},), "tools": ([],),
        "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
        "parallel_tool_calls": (True, False), "modalities": (["text"],), "audio": (), "prediction": (),
        "service_tier": ("auto", "default"), "reasoning_effort": ("none",), "verbosity": ("medium",),
        "web_search_options": (), "moderation": (), "safety_identifier": (), "prompt_cache_key": (),
        "prompt_cache_retention": (), "prompt_cache_options": (),
    }  # fmt: skip

    def question(self, service: Service, owner: str) -> Question:
        """What it asks.

        Raises:
            Refusal, VisGLMError: it cannot be asked.
        """
        self.check()
        turns, sources = read([one.model_dump(include={"role", "content"}) for one in self.messages])
        return Question(turns, sources, self.sampling(), service.names.adapter(self.model), owner, self.explain)

    def check(self) -> None:
        """Raise `Refusal` for fields that do not go together."""
        both = (self.max_tokens, self.max_completion_tokens)
        for is_wrong, param, message in (
            (None not in both and both[0] != both[1], "max_tokens", "differs from max_completion_tokens"),
            (self.top_logprobs is not None and not self.logprobs, "top_logprobs", "needs logprobs"),
            (self.stream_options is not None and not self.stream, "stream_options", "needs stream"),
            (self.choices is not None and self.stream, "choices", "are scored as a whole: leave out stream"),
            (self.explain and self.stream, "explain", "comes with whole answers: leave out stream"),
            *(
                (self.library is not None and wanted, param, "does not go with library: leave it out")
                for param, wanted in self.besides_library()
            ),
        ):
            if is_wrong:
                raise Refusal(400, f"{param}: {message}.", "invalid_value", param)

    def besides_library(self) -> Iterable[tuple[str, bool]]:
        """What an answer that is held against its sources cannot be: field, and whether it was asked."""
        yield "n", self.n > 1
        yield "logprobs", self.logprobs
        yield "choices", self.choices is not None
        yield "explain", self.explain
        yield "response_format", schema_of(self.response_format) != ""

    @property
    def asked(self) -> str:
        """What the last message says in words."""
        content = self.messages[-1].content
        return (
            content
            if isinstance(content, str)
            else "\n".join(part.text for part in content if isinstance(part, TextPart))
        )

    def sampling(self) -> Sampling:
        biases = {key: value for key, value in (self.logit_bias or {}).items()}
        if wrong := next((key for key in biases if not (key.isascii() and key.isdigit() and len(key) < 10)), None):
            raise Refusal(400, f"logit_bias: {wrong[:20]!r} is no token's number.", "invalid_value", "logit_bias")
        return Sampling(
            max_new_tokens=self.max_tokens or self.max_completion_tokens, temperature=self.temperature,
            max_thinking_tokens=self.max_thinking_tokens,
            top_p=self.top_p, stop=self.stop or (), seed=None if self.seed is None else self.seed % NEAREST, n=self.n,
            logprobs=self.top_logprobs or 0, logit_bias={int(key): value for key, value in biases.items()} or (),
            json_schema=schema_of(self.response_format), choices=self.choices or (),
        )  # fmt: skip


def schema_of(form: PlainText | JsonObject | JsonSchema | None) -> Any:
    """That an answer keeps to."""
    if isinstance(form, JsonObject):
        return {"type": "object"}
    return form.json_schema.schema_ if isinstance(form, JsonSchema) else ""


router = APIRouter()


@router.post("/v1/chat/completions", summary="Answer a conversation", tags=["OpenAI"], responses=STREAMS)
async def complete(body: ChatRequest, request: Request) -> Response:
    service, visit = service_of(request), visit_of(request)
    question = body.question(service, visit.owner)
    told = Told(service, body, f"chatcmpl-{visit.id}")
    if body.library is not None:
        found = await while_there(request.receive, answer_from(service, body.library, body.asked, question))
        note(request, found)
        return told.at_once(found) if body.stream else Json(told.whole(found, None))
    if body.stream:
        return await stream(request, question, told)
    reply, explanation = await ask(request, question)
    return Json(told.whole(reply, explanation))


class Spelled:
    """Tokens as OpenAI tells them."""

    def __init__(self, service: Service):
        self._service = service

    @staticmethod
    def tokens_of(reply: Reply) -> list[Token]:
        nothing: Sequence[Any] = [()] * len(reply.ids)
        each = zip(reply.ids, reply.logprobs, reply.alternatives or nothing, strict=True)
        return [Token(*one) for one in each]

    def spelled(self, tokens: Iterable[Token]) -> list[dict[str, Any]]:
        """Without the one that ends the answer, which is no text."""
        ends = self._service.end_ids
        return [self._token(token) for token in tokens if token.id not in ends]

    def _token(self, token: Token) -> dict[str, Any]:
        top = [self._one(id_, logprob) for id_, logprob in token.alternatives]
        return {**self._one(token.id, token.logprob), "top_logprobs": top}

    def _one(self, id_: int, logprob: float) -> dict[str, Any]:
        written = self._service.spelling[id_]
        # JSON has no infinity; nothing that is shown is as unlikely as that.
        return {"token": written.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": [*written]}


class Told(Spelled):
    """An answer in OpenAI's words."""

    def __init__(self, service: Service, body: ChatRequest, id_: str):
        super().__init__(service)
        self._body = body
        self._head = {"id": id_, "created": int(time.time()), "model": body.model}
        self._wants_usage = body.stream_options is not None and body.stream_options.include_usage

    def whole(self, reply: Reply, explanation: Explanation | None) -> dict[str, Any]:
        answers = (reply, *reply.others)
        choices = [self._choice(index, one) for index, one in enumerate(answers)]
        if reply.scores:
            choices[0]["scores"] = dict(reply.scores)
        if self._body.library is not None:
            choices[0]["message"]["citations"] = [*map(shown, reply.citations)]
        if explanation is not None:
            choices[0]["explanation"] = {"overlay": png_url(explanation), "heat": explanation.heat.tolist()}
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage_of(reply)}

    def _choice(self, index: int, reply: Reply) -> dict[str, Any]:
        return {
            "index": index,
            "message": {
                "role": "assistant",
                "content": reply.text,
                "refusal": None,
                "annotations": [],
                **thought(reply),
            },
            "logprobs": self._logprobs(self.tokens_of(reply)),
            "finish_reason": reply.finish_reason,
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        return {"content": self.spelled(tokens), "refusal": None} if self._body.logprobs else None

    # --- as a stream ---

    def begin(self, prompt_tokens: int) -> Iterable[Event]:
        for index in range(self._body.n):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def tell(self, piece: Piece) -> Iterable[Event]:
        logprobs = self._logprobs(piece.tokens)
        if piece.thinking:
            yield self._chunk(piece.index, {"reasoning_content": piece.thinking})
        if piece.text or (logprobs and logprobs["content"]):
            yield self._chunk(piece.index, {"content": piece.text}, logprobs)
        if piece.finish_reason is not None:
            yield self._chunk(piece.index, {}, None, piece.finish_reason)

    def end(self, reply: Reply) -> Iterable[Event]:
        if self._wants_usage:
            yield None, {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage_of(reply)}
        yield None, DONE

    def fail(self, refusal: Refusal) -> Iterable[Event]:
        yield None, refusal.body()

    def at_once(self, reply: Reply) -> Response:
        """As a stream, what is known as a whole only: every sentence was held against its source."""

        async def events() -> AsyncIterator[Event]:
            for event in self.begin(reply.usage.prompt_tokens):
                yield event
            yield self._chunk(0, {"content": reply.text, "citations": [*map(shown, reply.citations)]})
            yield self._chunk(0, {}, None, reply.finish_reason)
            for event in self.end(reply):
                yield event

        return EventStream(events(), AsyncExitStack(), lambda: self.fail(broken_off()))

    def _chunk(
        self, index: int, delta: Mapping[str, Any], logprobs: Any = None, finish_reason: str | None = None
    ) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self._wants_usage else {}
        return None, {**self._head, "object": "chat.completion.chunk", "choices": [choice], **usage}


def usage_of(reply: Reply) -> dict[str, Any]:
    """Prompts are read once, however many answers are wanted."""
    prompt, completion = reply.usage.prompt_tokens, sum(one.usage.completion_tokens for one in (reply, *reply.others))
    told: dict[str, Any] = {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion
    }  # fmt: skip
    if thinking := sum(one.usage.thinking_tokens for one in (reply, *reply.others)):
        told["completion_tokens_details"] = {"reasoning_tokens": thinking}
    return told


def thought(reply: Reply) -> dict[str, str]:
    """What was thought before an answer, if anything was, by the name that other servers give it."""
    return {"reasoning_content": reply.thinking} if reply.thinking else {}


def png_url(explanation: Explanation) -> str:
    buffer = io.BytesIO()
    explanation.overlay().save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
