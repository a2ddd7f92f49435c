"""What every request passes before anything else looks at it, and every answer on its way out."""

from __future__ import annotations

import asyncio
import logging
import traceback
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from starlette.datastructures import Headers, MutableHeaders

from ..errors import printable
from .errors import Refusal
from .limits import BODY_SECONDS, MOST_VALUES, Admission, Limits, count_values
from .metrics import Metrics
from .settings import Settings, host_of, is_address
from .wire import Json

LOG = logging.getLogger("visglm.serve")
# Exactly these, as they came over the wire, answer without a key.
OPEN = frozenset({b"/health", b"/ready"})
ANTHROPIC = "/v1/messages"
SILENT_SECONDS = 5  # without a byte of a body that is thrown away; the end of the server waits as long, at the most
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}


@dataclass
class Visit:
    """One request. It is in the scope under "visglm"."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    owner: str = ""  # of the key it came with
    started: float = field(default_factory=perf_counter)
    status: int = 0
    has_come: bool = False  # all of its body
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Door:
    """Turns away who called by another name, gives each request a number, logs it without what was said, and answers
    for whatever failed behind it. HEAD is GET for all behind it; the server leaves out the body.

    Args:
        app: behind it. settings: of the operator. metrics: that count. admission: that knows when the server ends.
    """

    def __init__(self, app: Any, settings: Settings, metrics: Metrics, admission: Admission):
        self.app, self.settings, self.metrics, self.admission = app, settings, metrics, admission

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = Visit()
        scope = {**scope, "visglm": visit, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}

        async def received() -> dict[str, Any]:
            message = await receive()
            visit.has_come = message["type"] == "http.disconnect" or not message.get("more_body")
            return message

        async def sent(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in {**HEADERS, "X-Request-Id": visit.id}.items():
                    headers[name] = value
            await send(message)

        self.metrics.in_flight.inc()
        try:
            refusal = refuse_caller(Headers(scope=scope), self.settings)
            if refusal is not None:
                await tell(refusal, scope, received, sent)
            else:
                await self.app(scope, received, sent)
        except asyncio.CancelledError:
            if not self.admission.is_closing:
                raise
            LOG.error("%s was broken off: the server ends", visit.id)
        except Exception as error:
            LOG.error("%s failed: %s", visit.id, where(error))
            if not visit.status:
                await tell(Refusal(500, "Something failed inside the server.", "internal"), scope, received, sent)
        finally:
            self.metrics.in_flight.dec()
            self.note(scope, visit)

    def note(self, scope: Mapping[str, Any], visit: Visit) -> None:
        """Which route it was, never which words: a path may be made of anything."""
        route = getattr(scope.get("route"), "path_format", "-")
        seconds = perf_counter() - visit.started
        self.metrics.requests.labels(route, str(visit.status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        LOG.info(
            "%s %s %s %d %.0f ms, %d + %d tokens", visit.id, printable(scope["method"])[:10], route, visit.status,
            1000 * seconds, visit.prompt_tokens, visit.completion_tokens,
        )  # fmt: skip


class Lock:
    """Lets in who has a key, while there is room, and the body only when all of it has come.

    Args:
        app: behind it. settings: of the operator. admission: that counts.
    """

    def __init__(self, app: Any, settings: Settings, admission: Admission):
        self.app, self.keys, self.limits, self.admission = app, settings.keys, settings.limits, admission

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self.check_key(scope)
            if scope["method"] in ("GET", "OPTIONS"):
                await self.app(scope, receive, send)
                return
            with self.admission.enter():
                body = await read_body(Headers(scope=scope), receive, self.limits)
                if body is not None:
                    await self.app(scope, replay(body, receive), send)
        except Refusal as refusal:
            await tell(refusal, scope, receive, send)

    def check_key(self, scope: dict[str, Any]) -> None:
        """Raise `Refusal` without one, unless the route is open to all."""
        if (scope.get("raw_path") or scope["path"].encode()) in OPEN and not scope.get("root_path"):
            return
        owners = [owner for key in keys_of(Headers(scope=scope)) if (owner := self.keys.owner(key)) is not None]
        if not owners:
            raise Refusal(
                401, "An API key is needed, and this is none: Authorization: Bearer KEY.", "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        scope["visglm"].owner = owners[0]


def refuse_caller(headers: Headers, settings: Settings) -> Refusal | None:
    """By the name that it called, and the page that it comes from."""
    names = headers.getlist("host")
    host = host_of(names[0]) if len(names) == 1 else None
    if host is None:
        return Refusal(400, "The Host header is missing or malformed.", "invalid_host")
    if settings.hosts is not None and host not in settings.hosts and not is_address(host):
        return Refusal(421, "This server is not called by that name. Whoever runs it can allow it: --allowed-host.",
                       "unknown_host")  # fmt: skip
    origin = headers.get("origin")
    if origin is not None and not comes_from(origin, names[0], settings.origins):
        return Refusal(403, "Pages of this origin may not ask here. Whoever runs the server can allow it: "
                       "--allowed-origin.", "unknown_origin")  # fmt: skip
    return None


def comes_from(origin: str, host: str, origins: Collection[str]) -> bool:
    """Whether a page is this server's own, or one of those that were allowed."""
    return origin in origins or origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


def keys_of(headers: Headers) -> list[str | None]:
    """As OpenAI's clients send them, and as Anthropic's."""
    found: list[str | None] = [
        value[7:].strip() for value in headers.getlist("authorization") if value[:7].lower() == "bearer "
    ]
    return [*found[:1], *headers.getlist("x-api-key")[:1]] or [None]


async def read_body(headers: Headers, receive: Any, limits: Limits) -> bytes | None:
    """The whole body; None where the client has gone.

    Raises:
        Refusal: it is too large, or too slow.
    """
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > limits.max_body:
        raise too_large(limits)
    try:
        body = await asyncio.wait_for(collect(receive, limits), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Refusal(408, f"The body did not come within {BODY_SECONDS} seconds.", "too_slow") from None
    if body is not None and count_values(body) > MOST_VALUES:
        raise Refusal(413, f"The body has over {MOST_VALUES:,} values.", "too_many_values")
    return body


async def collect(receive: Any, limits: Limits) -> bytes | None:
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limits.max_body:
            raise too_large(limits)
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)


def too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"The body has over {limits.max_body:,} bytes. Send smaller pictures.", "body_too_large")


def replay(body: bytes, receive: Any) -> Any:
    """`receive` of a request whose body was read."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Any:
        return messages.pop() if messages else await receive()

    return receive_again


async def tell(refusal: Refusal, scope: dict[str, Any], receive: Any, send: Any) -> None:
    """As the answer, in the shape that this path's clients read.

    What is left of the body is thrown away before the answer ends: many clients read nothing until they have sent it
    all, and a connection that is closed before loses them the answer.
    """
    is_anthropic = scope["path"].startswith(ANTHROPIC)

    async def hold(message: Any) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    await Json(refusal.body(is_anthropic), refusal.status, headers=refusal.headers)(scope, receive, hold)
    if "expect" not in Headers(scope=scope):  # who waits to be asked for the body is not
        with suppress(asyncio.TimeoutError):
            await throw_away(scope["visglm"], receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def throw_away(visit: Visit, receive: Any) -> None:
    """Raise `asyncio.TimeoutError` where nothing comes any more."""
    clock = asyncio.get_running_loop().time
    until = clock() + BODY_SECONDS  # and no `wait_for` around the other: one would swallow the other's end
    while not visit.has_come and clock() < until:
        await asyncio.wait_for(receive(), SILENT_SECONDS)


def where(error: BaseException) -> str:
    """Kind and place of a failure. What it says may hold what somebody asked."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return f"{type(error).__name__} at " + " > ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)
