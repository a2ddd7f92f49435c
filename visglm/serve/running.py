"""The application on a socket of this machine, until it is told to end."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from typing import Any

import uvicorn

from .application import create_app
from .service import Service

BACKLOG = 1024  # connections that the system holds while nobody has taken them


class Server(uvicorn.Server):
    """Turns new requests away from the moment it is told to end."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._service.admission.is_closing = True
        super().handle_exit(sig, frame)


def run(service: Service, sock: socket.socket) -> None:
    """Answer until SIGTERM or Ctrl-C, then end what was begun, up to the limit for that."""
    log_to_stderr()
    config = uvicorn.Config(
        create_app(service), log_config=None, access_log=False, server_header=False, proxy_headers=False, ws="none",
        http="h11", lifespan="on", backlog=BACKLOG, timeout_graceful_shutdown=service.settings.limits.drain_seconds,
    )  # fmt: skip
    before = {number: signal.signal(number, ended) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        Server(config, service).run(sockets=[sock])
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
