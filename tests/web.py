"""A web server on this machine that counts what it is asked, for the tests of downloads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Page = Callable[[BaseHTTPRequestHandler], None]


class Web:
    """Pages by path; each is a function that writes its whole answer through the request handler."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[str] = []
        self.connections = 0
        self.hosts: list[str | None] = []
        self.port = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def page(self, path: str, body: bytes = b"", status: int = 200, **headers: str) -> str:
        """Serve this body and headers (`Content_Length="5"`); returns the URL."""
        self.pages[path] = page_of(body, status, **headers)
        return self.url(path)


def page_of(body: bytes = b"", status: int = 200, **headers: str) -> Page:
    """A page of this body and headers (`Content_Length="5"`)."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextmanager
def serve() -> Iterator[Web]:
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def setup(self) -> None:
            web.connections += 1
            super().setup()

        def do_GET(self) -> None:
            web.requests.append(self.path)
            web.hosts.append(self.headers["Host"])
            with suppress(OSError):  # the client hangs up after too much or too long, as it should
                web.pages[self.path](self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    web.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
