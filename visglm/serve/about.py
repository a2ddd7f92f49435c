"""What the server tells of itself: whether it lives, what it has, how much it did, how to ask."""

from __future__ import annotations

import html
import json
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from .asking import service_of
from .service import Service
from .wire import Json

router = APIRouter()
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code,pre{font-family:ui-monospace,monospace;font-size:.9em}pre{overflow:auto;padding:.7em;border:1px solid #8884}"
    "table{border-collapse:collapse}td{padding:.2em 1em .2em 0;vertical-align:top}h2{margin-top:2em}"
)


@router.get("/health", summary="Whether the engine lives", tags=["server"])
async def health(request: Request) -> Response:
    failed = service_of(request).has_failed
    return Json({"status": "failed" if failed else "ok"}, 503 if failed else 200)


@router.get("/ready", summary="Whether it takes requests", tags=["server"])
async def ready(request: Request) -> Response:
    is_ready = service_of(request).is_ready
    return Json({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)


@router.get("/metrics", summary="Numbers for Prometheus", tags=["server"], response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models", summary="The base and its adapters", tags=["OpenAI"])
async def models(request: Request) -> Response:
    service = service_of(request)
    return Json({"object": "list", "data": [card(service, name) for name in service.names]})


@router.get("/v1/models/{model:path}", summary="One of them", tags=["OpenAI"])
async def model(model: str, request: Request) -> Response:
    service = service_of(request)
    service.names.adapter(model)
    return Json(card(service, model))


def card(service: Service, name: str) -> dict[str, Any]:
    names = service.names
    parent = None if name == names.default else names.default
    return {
        "id": name, "object": "model", "created": service.started, "owned_by": "visglm", "parent": parent,
        "max_model_len": service.vlm.context_length,
        **({"libraries": [*service.libraries]} if [*service.libraries] else {}),
    }  # fmt: skip


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    return Json(request.app.openapi())


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    return HTMLResponse(page(request.app))


def page(app: FastAPI) -> str:
    """The schema for people, without a script: it is read where no other host is in reach."""
    schema = app.openapi()
    parts = [f"<h1>{html.escape(schema['info']['title'])}</h1><p>{html.escape(schema['info']['description'])}</p>"]
    for path, ways in schema["paths"].items():
        for method, way in ways.items():
            parts.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(way['summary'])}</p>"
            )
            body = way.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            if name := body.get("$ref", "").rpartition("/")[2]:
                fields = schema["components"]["schemas"][name]
                parts += [f"<pre>{html.escape(example(one))}</pre>" for one in fields.get("examples", ())]
                parts.append(table(fields))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>visglm</title><style>{STYLE}</style>'
        f'{"".join(parts)}<p>The same for programs: <a href="openapi.json">openapi.json</a></p></html>'
    )


def example(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, indent=1)


def table(schema: dict[str, Any]) -> str:
    rows = []
    for name, field in schema["properties"].items():
        told = field.get("description") or next(
            (one["description"] for one in field.get("anyOf", ()) if "description" in one), ""
        )
        need = "needed" if name in schema.get("required", ()) else f"default {json.dumps(field.get('default'))}"
        rows.append(f"<tr><td><code>{html.escape(name)}</code></td><td>{need}</td><td>{html.escape(told)}</td></tr>")
    return f"<table>{''.join(rows)}</table>"
