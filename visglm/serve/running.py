"""The application on a socket of this machine, until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .application import create_app
from .limits import BODY_SECONDS
from .service import Service

BACKLOG = 1024  # connections that the system holds while nobody has taken them


class Punctual(H11Protocol):
    """Lets go of a connection on which no request comes, or only dribbles: others may need its place.

    uvicorn has a time limit between two requests alone, which any byte ends. This one begins with the connection and
    with the end of an answer, and ends with the next request; the body of that is the door's concern.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._relax()

    def on_response_complete(self) -> None:
        self._expect()  # before the next request, which may be there already
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relax()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._relax()
        self._deadline = self.loop.call_later(BODY_SECONDS, self.transport.close)

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()


class Server(uvicorn.Server):
    """Turns new requests away from the moment it is told to end."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._service.admission.is_closing = True
        super().handle_exit(sig, frame)


def config_of(service: Service) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(service), log_config=None, access_log=False, server_header=False, proxy_headers=False, ws="none",
        http=Punctual, lifespan="on", backlog=BACKLOG, timeout_graceful_shutdown=service.settings.limits.drain_seconds,
    )  # fmt: skip


def run(service: Service, sock: socket.socket) -> None:
    """Answer until SIGTERM or Ctrl-C, then end what was begun, up to the limit for that."""
    log_to_stderr()
    before = {number: signal.signal(number, ended) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        Server(config_of(service), service).run(sockets=[sock])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        service.close()


def ended(number: int, frame: Any) -> None:
    """uvicorn raises the signal once more when it has ended; it has been heeded."""


def log_to_stderr() -> None:
    """One line a request, without what was said; of uvicorn only what went wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name, level in (("visglm.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
