"""One question of a request: its whole answer, or a stream of events; either ends when the client has gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from ..explanation import Explanation
from ..reply import Reply
from .door import Visit, where
from .errors import Refusal, broken_off, refusal_of
from .service import Piece, Question, Service
from .wire import to_bytes

LOG = logging.getLogger("visglm.serve")
STUCK_SECONDS = 60.0  # that a client may read nothing; it holds a place that others wait for
Result = TypeVar("Result")
# Of a route that streams where it is asked to.
STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
Event = tuple[str | None, Any]  # name and what goes as JSON; or a plain text


class Gone(Exception):
    """Nobody is there any more to be answered."""


class Teller(Protocol):
    """Words an answer for one protocol, event by event."""

    def begin(self, prompt_tokens: int) -> Iterable[Event]: ...

    def tell(self, piece: Piece) -> Iterable[Event]: ...

    def end(self, reply: Reply) -> Iterable[Event]: ...

    def fail(self, refusal: Refusal) -> Iterable[Event]: ...


def service_of(request: Request) -> Service:
    return request.app.state.service


def visit_of(request: Request) -> Visit:
    return request.scope["visglm"]


async def while_there(
    receive: Any, act: Coroutine[Any, Any, Result] | Awaitable[Result], is_stuck: Callable[[], bool] | None = None
) -> Result:
    """What `act` gives, unless the client goes before, or is stuck.

    Raises:
        Gone: it went; `act` was cancelled.
    """
    work, watch = asyncio.ensure_future(act), asyncio.ensure_future(until_gone(receive, is_stuck))
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise Gone
    finally:
        for task in (work, watch):
            task.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)


async def until_gone(receive: Any, is_stuck: Callable[[], bool] | None = None) -> None:
    async def until_told() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    told = asyncio.ensure_future(until_told())
    try:
        while not told.done() and not (is_stuck is not None and is_stuck()):
            await asyncio.wait({told}, timeout=None if is_stuck is None else STUCK_SECONDS / 4)
    finally:
        told.cancel()


async def ask(request: Request, question: Question) -> tuple[Reply, Explanation | None]:
    """The whole answer, and where it comes from if that was asked.

    Raises:
        Gone: the client went. VisGLMError, Refusal: there is no answer.
    """

    async def act() -> tuple[Reply, Explanation | None]:
        async with service_of(request).ask(question) as asked:
            reply = await asked.reply()
            return reply, await asked.explanation(reply.text) if question.explains else None

    reply, explanation = await while_there(request.receive, act())
    note(request, reply)
    return reply, explanation


async def stream(request: Request, question: Question, teller: Teller) -> Response:
    """The answer as events. What is wrong before the first of them is an error like any other."""
    stack = AsyncExitStack()
    try:
        asked = await while_there(request.receive, stack.enter_async_context(service_of(request).ask(question)))
        pieces = asked.pieces()
        first = await while_there(request.receive, anext(pieces))
    except BaseException:
        await stack.aclose()
        raise

    async def events() -> AsyncIterator[Event]:
        try:
            for event in teller.begin(len(asked.prompt.rendered.input_ids)):
                yield event
            for event in teller.tell(first):
                yield event
            async for piece in pieces:
                for event in teller.tell(piece):
                    yield event
            reply = await asked.reply()
            note(request, reply)
            for event in teller.end(reply):
                yield event
        except Exception as error:
            LOG.error("%s failed in its stream: %s", visit_of(request).id, where(error))
            for event in teller.fail(refusal_of(error)):
                yield event

    return EventStream(events(), stack, lambda: teller.fail(broken_off()))


def note(request: Request, reply: Reply) -> None:
    visit = visit_of(request)
    visit.prompt_tokens = reply.usage.prompt_tokens
    visit.completion_tokens = sum(one.usage.completion_tokens for one in (reply, *reply.others))


class EventStream(Response):
    """Server-sent events.

    Args:
        events: as they come. stack: closed at their end, however that comes.
        give_up: what is told where the server ends before they do.
    """

    def __init__(self, events: AsyncIterator[Event], stack: AsyncExitStack, give_up: Callable[[], Iterable[Event]]):
        super().__init__(media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._stack, self._give_up = events, stack, give_up

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        clock, sending_since = asyncio.get_running_loop().time, [float("inf")]

        async def write_one(message: dict[str, Any]) -> None:
            sending_since[0] = clock()
            await send(message)
            sending_since[0] = float("inf")

        async def write() -> None:
            await write_one({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for name, content in self._events:
                await write_one({"type": "http.response.body", "body": frame(name, content), "more_body": True})
            await write_one({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await while_there(receive, write(), lambda: clock() - sending_since[0] > STUCK_SECONDS)
        except (Gone, OSError):
            pass
        except asyncio.CancelledError:  # the deadline: whoever reads is told before the connection ends
            for name, content in self._give_up():
                await send({"type": "http.response.body", "body": frame(name, content), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise
        finally:
            await self._stack.aclose()


def frame(name: str | None, content: Any) -> bytes:
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + (content.encode() if isinstance(content, str) else to_bytes(content)) + b"\n\n"
