"""The way to a server: requests, their answers, and the key that goes with them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ConfigError, ServerError, VisGLMError, require, shorten
from .errors import error_of, no_server, unreachable

VARIABLE = "VISGLM_API_KEY"
CONNECT_SECONDS, SILENT_SECONDS = 5.0, 120.0  # until a server is taken for gone, and for stuck
LONGEST = 64 * 2**20  # bytes of an answer, a streamed one too: a heat map is some of them, a token some hundred bytes


# A few bytes that are packed may be as many gigabytes.
UNPACKED = {"Accept-Encoding": "identity"}


class Connection:
    """To one server; any number of threads may share it.

    Args:
        url: where it listens.
        api_key: None for what the environment says.

    Raises:
        ConfigError: it is no address, or no key.
        MissingDependencyError: the extra "remote" is not installed.
    """

    def __init__(self, url: str, api_key: str | None):
        httpx = require("remote", "httpx")
        url = url.strip().rstrip("/").removesuffix("/v1")
        key = os.environ.get(VARIABLE, "") if api_key is None else api_key
        if not url.lower().startswith(("http://", "https://")) or not url.isascii() or not url.isprintable():
            raise no_address(url)
        if not key.isascii() or not key.isprintable():
            raise ConfigError("an API key has printable ASCII characters only; this one has others.")
        self.url = url
        try:
            self._client = httpx.Client(
                base_url=url, headers={**UNPACKED, **({"Authorization": f"Bearer {key}"} if key else {})},
                follow_redirects=False,
                timeout=httpx.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS, pool=None),
                limits=httpx.Limits(max_connections=None),
            )  # fmt: skip
        except httpx.InvalidURL:
            raise no_address(url) from None

    def close(self) -> None:
        self._client.close()

    def open(self, method: str, path: str, body: Any = None) -> Opened:
        """A request that is sent when it is entered."""
        return Opened(self.url, self._client, self._client.build_request(method, path, content=to_json(body)))

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON object that is answered."""
        with self.open(method, path, body) as response:
            return read_json(self.url, read_whole(self.url, response))


def no_address(url: str) -> ConfigError:
    return ConfigError(f"the server's address must be such as http://127.0.0.1:8000; got {shorten(url)}.")


class Opened:
    """A request on its way; entered, its response, of which only the head is there."""

    def __init__(self, url: str, client: Any, request: Any):
        self._url, self._client, self._request = url, client, request
        request.headers["Content-Type"] = "application/json"
        self.response: Any = None

    def __enter__(self) -> Any:
        httpx = require("remote", "httpx")
        try:
            self.response = self._client.send(self._request, stream=True)
        except httpx.HTTPError as error:
            raise unreachable(self._url, error) from None
        if self.response.status_code != 200:
            try:
                raise error_of(self._url, self.response.status_code, read_whole(self._url, self.response),
                               self.response.headers.get("Retry-After", ""))  # fmt: skip
            finally:
                self.response.close()
        return self.response

    def __exit__(self, *exception: object) -> None:
        self.response.close()


def read_whole(url: str, response: Any) -> bytes:
    httpx = require("remote", "httpx")
    try:
        return b"".join(chunks_of(url, response))
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise unreachable(url, error) from None


def chunks_of(url: str, response: Any) -> Iterator[bytes]:
    """What comes, up to as much as an answer may be.

    Raises:
        ServerError: it is more, or packed.
    """
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise no_server(url)
    size = 0
    for chunk in response.iter_raw():
        size += len(chunk)
        if size > LONGEST:
            raise ServerError(f"{url} answers with over {LONGEST:,} bytes. Is the address right?", "failed")
        yield chunk


def read_json(url: str, data: bytes) -> Any:
    with understood(url):
        return want(dict, json.loads(data))


def want(kind: type, value: Any) -> Any:
    """The value, which is of this kind.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(kind.__name__)
    return value


@contextmanager
def understood(url: str) -> Iterator[None]:
    """What is read inside the `with` was said by a server; another one than ours may say anything."""
    try:
        yield
    except VisGLMError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        raise no_server(url) from None


def events_of(url: str, response: Any) -> Iterator[str]:
    """The data of server-sent events."""
    data: list[str] = []
    for line in lines_of(chunks_of(url, response)):
        name, _, value = line.decode("utf-8", "replace").partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data.clear()


def lines_of(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Those that have ended."""
    begun: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        begun.append(first)
        if others:
            yield from (line.removesuffix(b"\r") for line in (b"".join(begun), *others[:-1]))
            begun = [others[-1]]


def to_json(body: Any) -> bytes:
    text = "" if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
