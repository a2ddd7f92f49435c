"""Ways to ask an application: as clients do, and byte by byte as no client would."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from visglm import VisGLM
from visglm.serve import Keys, Limits, Names, Service, Settings, create_app

EXAMPLES = Path(__file__).parents[2] / "examples"
KEY, OTHER_KEY = "a-key-of-the-tests-1", "a-key-of-the-tests-2"
CHAT, MODEL = "/v1/chat/completions", "visglm-tiny"


def data_url(name: str) -> str:
    return "data:image/png;base64," + base64.b64encode((EXAMPLES / name).read_bytes()).decode()


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(text: str, *urls: str) -> dict[str, Any]:
    return {"role": "user", "content": [*map(picture, urls), {"type": "text", "text": text}] if urls else text}


def asking(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A body of chat completions."""
    return {"model": MODEL, "messages": list(messages), **fields}


def endless(vlm: VisGLM, tokens: int, **fields: Any) -> dict[str, Any]:
    """One whose answer has as many tokens as that."""
    ends = vlm.model.generation_config.eos_token_id
    bias = {str(end): -100 for end in (ends if isinstance(ends, list) else [ends])}
    return asking(user("Hello"), max_tokens=tokens, logit_bias=bias, **fields)


def service_for(vlm: VisGLM, *, keys: tuple[str, ...] = (), limits: dict[str, Any] | None = None, **settings: Any):
    return Service(vlm, Names(vlm), Settings(limits=Limits(**limits or {}), keys=Keys(keys), **settings))


@contextmanager
def client_of(service: Service, key: str | None = None, host: str = "127.0.0.1"):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with TestClient(create_app(service), base_url=f"http://{host}", headers=headers) as client:
        yield client


class Answer:
    """What came back: status, headers by lower-case name, body."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 0, {}, b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def knock(
    app: Any,
    path: str,
    method: str = "GET",
    headers: list[tuple[bytes, bytes]] | None = None,
    chunks: list[bytes] | None = None,
    raw_path: bytes | None = None,
    after: Callable[[], Awaitable[None]] | None = None,
) -> Answer:
    """One request as the server's wire gives it to the application.

    Args:
        headers: all there are; by default a Host and a content type.
        after: waited for once the body was read; the client goes when it ends. By default it stays.
    """
    answer = Answer()
    left = [*(chunks or [b""])]

    async def receive() -> dict[str, Any]:
        if left:
            body = left.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(left)}
        if after is None:
            await asyncio.Event().wait()
        else:
            await after()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode() if raw_path is None else raw_path,
        "query_string": b"", "root_path": "", "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 5),
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")] if headers is None else headers,
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return answer


def events(text: str) -> list[tuple[str | None, Any]]:
    """Server-sent events: name and content each."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = lines["data"]
        found.append((lines.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found
