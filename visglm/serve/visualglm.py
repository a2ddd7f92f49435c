"""`POST /` as VisualGLM-6B's own api.py had it, for those who still call it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from ..prompt import Turn
from ..sampling import Sampling
from .asking import ask, service_of, visit_of
from .service import Question, Service
from .wire import PIXEL, Json, Wire, shown_by

Pair = Annotated[list[str], Field(min_length=2, max_length=2)]


class LegacyRequest(Wire):
    """A picture as base64, a question, and the questions and answers before. The picture belongs to the first."""

    model_config = shown_by({"text": "这是什么？", "image": PIXEL, "history": []})
    text: str
    image: str | None = None
    history: list[Pair] = []
    max_length: Annotated[int, Field(ge=1, le=1_000_000, description="of prompt and answer, in tokens")] = 2048
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.8
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.4
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] = 1.2

    # What it knew besides and nothing here has a use for.
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"num_beams": (1,), "min_length": (0, 50)}

    def question(self, service: Service, owner: str) -> Question:
        source = (
            ()
            if not self.image
            else (self.image if self.image[:5].lower() == "data:" else f"data:;base64,{self.image}",)
        )
        pairs = [(question, answer) for question, answer in self.history]
        turns = [*(Turn(question, answer) for question, answer in pairs), Turn(self.text)]
        if source:
            turns[0] = Turn(turns[0].question, turns[0].answer, num_images=1)
        adapter = service.names.adapter(None)
        plain = Question(tuple(turns), source, Sampling(), adapter, owner)
        service.check(plain)
        used = len(service.count(plain))
        room = min(max(1, self.max_length - used), service.settings.limits.max_new_tokens)
        sampling = Sampling(
            max_new_tokens=room, temperature=self.temperature,
            top_p=self.top_p, top_k=self.top_k, repetition_penalty=self.repetition_penalty,
        )  # fmt: skip
        return Question(tuple(turns), source, sampling, adapter, owner)


router = APIRouter()


@router.post("/", summary="Answer as VisualGLM-6B's own server did", tags=["VisualGLM"])
async def answer(body: LegacyRequest, request: Request) -> Response:
    service = service_of(request)
    question = await service.run("help", body.question, service, visit_of(request).owner)
    reply, _ = await ask(request, question)
    return Json(
        {
            "result": reply.text,
            "response": reply.text,  # as its README called it
            "history": [*body.history, [body.text, reply.text]],
            "status": 200,
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
    )
