"""What stands around the page: headers, the visitor's key, icons, and how much may be sent. `visglm app` starts this.

    streamlit run demos/server.py -- --model FOLDER

Streamlit serves the page; this is what Streamlit itself does not set.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from visitors import COOKIE, VISITOR_UPLOADS, close_those_who_left, is_key, new_key, uploaded_bytes

HERE = Path(__file__).parent
YEAR = 365 * 24 * 3600  # seconds
HEAD = """
<link rel="manifest" href="./page/manifest.json">
<link rel="apple-touch-icon" href="./page/icon-180.png">
<meta name="apple-mobile-web-app-title" content="visglm">
<meta name="apple-mobile-web-app-capable" content="yes">
<meta name="mobile-web-app-capable" content="yes">
<meta name="theme-color" media="(prefers-color-scheme: light)" content="#fbf8f2">
<meta name="theme-color" media="(prefers-color-scheme: dark)" content="#191614">
<script src="./page/page.js" defer></script>
"""
# Scripts of this server only; Streamlit's components come as blobs, its charts compile what they draw, and its styles
# are written into the page. Pictures from elsewhere are never fetched, whoever wrote their address.
POLICY = {
    "default-src": "'self'",
    "script-src": "'self' blob: 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' blob:",
    "font-src": "'self' data:",
    "worker-src": "'self' blob:",
    "connect-src": "'self'",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'self'",
}
HEADERS = {
    "X-Frame-Options": "SAMEORIGIN",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
UPLOAD = re.compile(r"/_stcore/upload_file/([^/]+)/[^/]+$")


class Door:
    """Everything that comes in and goes out passes here.

    Args:
        app: the ASGI application behind it.
    """

    def __init__(self, app: Any):
        self.app = app
        self.coming: Counter[str] = Counter()  # session → bytes of files on their way

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        upload = UPLOAD.search(scope["path"])
        if upload and scope["method"] == "PUT":
            await self.receive_file(upload[1], scope, receive, send)
            return
        if "text/html" in Headers(scope=scope).get("accept", ""):
            # Its text is changed on the way: it must come whole and plain, and no older copy of it is good.
            unwanted = {b"accept-encoding", b"if-none-match", b"if-modified-since", b"range"}
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] not in unwanted]}
        await self.app(scope, receive, Answer(scope, send))

    async def receive_file(self, session: str, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Unless this visitor has left too much here already, what is on its way included."""
        length = Headers(scope=scope).get("content-length", "")
        size = int(length) if length.isdecimal() else VISITOR_UPLOADS  # whoever does not say may send anything
        if uploaded_bytes(session) + self.coming[session] + size > VISITOR_UPLOADS:
            refuse = PlainTextResponse("You have sent too many files. Remove some of them first.", 413)
            await refuse(scope, receive, send)
            return
        self.coming[session] += size
        try:
            await self.app(scope, receive, Answer(scope, send))
        finally:
            self.coming[session] -= size
            if not self.coming[session]:
                del self.coming[session]


class Answer:
    """`send` of one answer: adds the headers, and to the page's HTML its head and the visitor's key."""

    def __init__(self, scope: dict[str, Any], send: Any):
        self.scope, self.send = scope, send
        self.start: dict[str, Any] | None = None  # of an answer in HTML, held back until all of it is there
        self.body = b""

    async def __call__(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if headers.get("content-type", "").startswith("text/html") and message["status"] == 200:
                self.start = message
                return
            headers["Content-Security-Policy"] = policy()
        elif self.start is not None and message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                await self.finish()
            return
        await self.send(message)

    async def finish(self) -> None:
        headers = MutableHeaders(scope=self.start)
        headers["Content-Security-Policy"] = policy(self.body)
        for name in ("etag", "last-modified"):
            del headers[name]
        headers["Cache-Control"] = "no-store"
        if not is_key(cookie_parser(Headers(scope=self.scope).get("cookie", "")).get(COOKIE, "")):
            headers.append("Set-Cookie", cookie(new_key(), self.scope["scheme"] == "https"))
        body = self.body.replace(b"<title>Streamlit</title>", b"<title>visglm</title>")
        if self.scope["method"] != "HEAD":
            body = body.replace(b"</head>", HEAD.encode() + b"</head>", 1)
            headers["Content-Length"] = str(len(body))
        await self.send(self.start)
        await self.send({"type": "http.response.body", "body": body})


def policy(page: bytes = b"") -> str:
    """The header's value; the scripts that stand inside the page are allowed by what they say."""
    hashes = "".join(
        f" 'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
        for script in INLINE_SCRIPT.findall(page)
    )
    rules = {**POLICY, "script-src": POLICY["script-src"] + hashes}
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def cookie(key: str, secure: bool) -> str:
    """The visitor's key for the browser: no script reads it, and no other site's page makes it be sent."""
    jar = SimpleCookie({COOKIE: key})
    jar[COOKIE].update({"path": "/", "max-age": YEAR, "httponly": True, "samesite": "Strict", "secure": secure})
    return jar[COOKIE].OutputString()


@asynccontextmanager
async def lifespan(app: st.App) -> AsyncIterator[None]:
    janitor = asyncio.create_task(close_those_who_left())
    yield
    janitor.cancel()


app = st.App(
    HERE / "streamlit_app.py",
    lifespan=lifespan,
    routes=[Mount("/page", StaticFiles(directory=HERE / "static"))],
    middleware=[Middleware(Door)],
)
