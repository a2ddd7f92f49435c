"""How many tokens a text or a conversation is, without asking the model."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from ..sampling import Sampling
from ..tokenizers import typed_ids
from .asking import service_of, visit_of
from .chat import Message
from .conversation import read
from .errors import Refusal
from .service import Question, Service
from .wire import Json, Wire, shown_by


class TokenizeRequest(Wire):
    """One of `prompt` and `messages`."""

    model_config = shown_by({"prompt": "What is this?"})
    model: str | None = None
    prompt: Annotated[str, Field(description="plain text: nothing in it is a control token")] | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None


router = APIRouter()


@router.post("/tokenize", summary="Count tokens", tags=["visglm"])
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    service = service_of(request)
    service.names.adapter(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise Refusal(400, "prompt or messages: give one of them.", "invalid_value", "prompt")
    ids = await service.run("help", ids_of, service, body, visit_of(request).owner)
    return Json({"count": len(ids), "max_model_len": service.vlm.context_length, "tokens": ids})


def ids_of(service: Service, body: TokenizeRequest, owner: str) -> list[int]:
    if body.messages is None:
        service.check_length(len(body.prompt or ""))
        text = (body.prompt or "").encode("utf-8", "replace").decode()
        return typed_ids(service.vlm.tokenizer, text)
    turns, sources = read([one.model_dump(include={"role", "content"}) for one in body.messages])
    question = Question(turns, sources, Sampling(), None, owner)
    service.check(question)
    return service.count(question)
