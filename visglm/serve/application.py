"""The FastAPI application: routes, and the doors in front of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from ..errors import VisGLMError
from . import about, chat, messages, responses, tokenizing, visualglm
from .asking import Gone
from .door import ANTHROPIC, Door, Lock
from .errors import Refusal, refusal_of, refusal_of_body
from .service import Service
from .wire import Json

ROUTERS = (chat.router, responses.router, messages.router, tokenizing.router, visualglm.router, about.router)
SENTENCES = {404: "There is nothing here. See /docs.", 405: "This method is not possible here. See /docs."}
DESCRIPTION = "Ask about pictures in Chinese and English, by the protocols of OpenAI and Anthropic."
ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        },
    },
}


def create_app(service: Service) -> FastAPI:
    """A model as an application of ASGI, complete with its doors."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="visglm", description=DESCRIPTION, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False, lifespan=lifespan,
        responses={code: {"description": "refused", "content": {"application/json": {"schema": ERROR_SCHEMA}}}
                   for code in ("4XX", "5XX")},
    )  # fmt: skip
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    for kind in (Refusal, VisGLMError):
        app.add_exception_handler(kind, tell_error)
    app.add_exception_handler(RequestValidationError, tell_invalid)
    app.add_exception_handler(HTTPException, tell_status)
    app.add_exception_handler(Gone, tell_gone)
    # The last is the outermost.
    app.add_middleware(Lock, settings=service.settings, admission=service.admission)
    if service.settings.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=[*service.settings.origins], allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=["X-Request-Id", "Retry-After"],
        )  # fmt: skip
    app.add_middleware(Door, settings=service.settings, metrics=service.metrics, admission=service.admission)
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            for ways in schema["paths"].values():
                for way in ways.values():
                    way["responses"].pop("422", None)  # what FastAPI answers by itself, and this one does not
        return app.openapi_schema or schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def answer(request: Request, refusal: Refusal) -> Response:
    return Json(refusal.body(request.url.path.startswith(ANTHROPIC)), refusal.status, headers=refusal.headers)


async def tell_error(request: Request, error: Exception) -> Response:
    return answer(request, refusal_of(error))


async def tell_invalid(request: Request, error: Exception) -> Response:
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    return answer(request, refusal_of_body(problems, getattr(error, "body", None)))


async def tell_status(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    message = SENTENCES.get(status, "The body cannot be read as JSON." if status == 400 else "This was refused.")
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_json")
    return answer(request, Refusal(status, message, code, headers=getattr(error, "headers", None)))


async def tell_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
