"""A model that `visglm serve` has elsewhere, asked as `VisGLM` is."""

from __future__ import annotations

import base64
import io
import json
import mimetypes
import os
import socket
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ConfigError, ContextLengthError, ImageError, PromptError, ServerError, printable, require, shorten
from .pictures import DEFAULT_LIMITS, load_image
from .prompt import Turn, messages_to_turns
from .reply import History, Reply, Timings, Usage, parse
from .sampling import Sampling
from .stream import TEXT, THINKING

if TYPE_CHECKING:
    from .explanation import Explanation

VARIABLE = "VISGLM_API_KEY"
CONNECT_SECONDS, SILENT_SECONDS = 5.0, 120.0  # until a server is taken for gone, and for stuck
# Code of an error → what it is; others are by their status.
CODES: Mapping[str, type[Exception]] = {"context_length_exceeded": ContextLengthError, "invalid_image": ImageError}
# Status → reason, and what to do.
REASONS: Mapping[int, tuple[str, str]] = {
    401: ("key", "Give the right key: --api-key-file on the command line, api_key=… in Python, or VISGLM_API_KEY."),
    403: ("key", "This key may not do that."),
    404: ("missing", "See what `models()` lists, and whether the address is that of `visglm serve`."),
    421: ("missing", "Start the server with --allowed-host for the name by which you call it."),
    429: ("full", "It has as many requests waiting as it takes. Ask again in a moment."),
    503: ("ending", "It ends, or is busy with something long. Ask again later, or ask another server."),
}


@dataclass(frozen=True, eq=False)
class RemoteHistory(History):
    """A conversation with a server, which keeps none: its pictures are sent again with every question.

    Args:
        messages: as OpenAI writes them, pictures as URLs or data URLs.
    """

    messages: tuple[Mapping[str, Any], ...] = ()


class RemoteVisGLM:
    """Chat by a running `visglm serve`. Any number of threads may share one.

    Args:
        url: where it listens, such as `http://127.0.0.1:8000`.
        api_key: that it asks for; None for what VISGLM_API_KEY in the environment says.
        model: the name of the base or an adapter, of those that `models()` lists; None for the base.

    Raises:
        ConfigError: it is no address.
        MissingDependencyError: the extra "remote" is not installed.
    """

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None):
        httpx = require("remote", "httpx")
        url = url.strip().rstrip("/").removesuffix("/v1")
        key = os.environ.get(VARIABLE, "") if api_key is None else api_key
        if not url.lower().startswith(("http://", "https://")) or not url.isascii() or not url.isprintable():
            raise ConfigError(f"the server's address must be such as http://127.0.0.1:8000; got {shorten(url)}.")
        if not key.isascii() or not key.isprintable():
            raise ConfigError("an API key has printable ASCII characters only; this one has others.")
        self.url, self._model = url, model
        try:
            self._client = httpx.Client(
                base_url=url, headers={"Authorization": f"Bearer {key}"} if key else {}, follow_redirects=False,
                timeout=httpx.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS, pool=None),
                limits=httpx.Limits(max_connections=None),
            )  # fmt: skip
        except httpx.InvalidURL:
            raise ConfigError(
                f"the server's address must be such as http://127.0.0.1:8000; got {shorten(url)}."
            ) from None

    def __repr__(self) -> str:
        return f"RemoteVisGLM({self.url!r}, model={self._model!r})"

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def models(self) -> list[str]:
        """What may answer: the base first, then its adapters.

        Raises:
            ServerError: the server cannot be asked.
        """
        told = self._send("GET", "/v1/models")
        try:
            return [one["id"] for one in told["data"]]
        except (KeyError, TypeError):
            raise no_server(self.url) from None

    @property
    def abilities(self) -> tuple[str, ...]:
        """What may be asked of a server; one whose model cannot do it says so."""
        return ("chat", "explain")

    @property
    def model(self) -> str:
        """The name of what answers."""
        if self._model is None:
            self._model = self.models()[0]
        return self._model

    def chat(
        self,
        images: Any,
        prompt: str,
        history: History | Iterable[Any] | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        choices: Sequence[str] = (),
        json_schema: Mapping[str, Any] | str = "",
    ) -> Reply:
        """Answer one question, as `VisGLM.chat` does; the settings are those that OpenAI's protocol has a word for.

        Args:
            images: one picture, a list of them, or None. Files and data URLs are sent as they are, other URLs as URLs,
                everything else as PNG.
            prompt: the question.
            history: `reply.history` of the turn before, pairs, or messages, with their pictures.
            max_new_tokens: longest answer, in tokens.
            temperature: 0 takes the likeliest token every time; None is the model's own, of `top_p` as well.
            top_p: sample among the likeliest tokens that hold this share of the probability.
            seed: makes sampling repeatable.
            stop: texts that end the answer.
            choices: the answer is the likeliest of these.
            json_schema: the answer is JSON of this schema.

        Raises:
            ServerError: the server cannot be asked, or does not answer; `reason` says which.
            ImageError, ContextLengthError, PromptError: as of `VisGLM.chat`.
        """
        sampling = Sampling(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop, choices=choices,
            json_schema=json_schema,
        )  # fmt: skip
        messages = to_messages(images, prompt, history)
        started = time.perf_counter()
        told = self._send("POST", "/v1/chat/completions", self._body(messages, sampling))
        seconds = time.perf_counter() - started
        try:
            choice, usage = told["choices"][0], told["usage"]
            text, reason = choice["message"]["content"], choice["finish_reason"]
            thinking = choice["message"].get("reasoning_content") or ""
            reply = reply_of(messages, text, reason, usage, Timings(0.0, seconds, seconds), thinking)
        except (KeyError, TypeError, IndexError):
            raise no_server(self.url) from None
        parsed = parse(text) if sampling.json_schema else None
        return replace(reply, parsed=parsed, scores=choice.get("scores", {}))

    def stream_chat(
        self,
        images: Any,
        prompt: str,
        history: History | Iterable[Any] | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        json_schema: Mapping[str, Any] | str = "",
    ) -> RemoteStream:
        """As `chat`, but an iterator over text as it comes; then `.reply`. Closing it stops the model."""
        sampling = Sampling(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop,
            json_schema=json_schema,
        )  # fmt: skip
        messages = to_messages(images, prompt, history)
        body = self._body(messages, sampling) | {"stream": True, "stream_options": {"include_usage": True}}
        return RemoteStream(self, messages, body)

    def explain(
        self, images: Any, prompt: str, answer: str, history: History | Iterable[Any] | None = None, **settings: Any
    ) -> Explanation:
        """Where in the last picture an answer comes from.

        Args:
            images: the pictures of this question; those before it are in `history`.
            prompt: the question.
            answer: that it gave. history, settings: as it was asked.

        Raises:
            ServerError: the server cannot be asked, or gives another answer now.
        """
        from .explanation import Explanation

        messages = to_messages(images, prompt, history)
        told = self._send(
            "POST", "/v1/chat/completions", self._body(messages, Sampling(**settings)) | {"explain": True}
        )
        try:
            choice = told["choices"][0]
            text, heat = choice["message"]["content"], np.asarray(choice["explanation"]["heat"], np.float32)
        except (KeyError, TypeError, IndexError, ValueError):
            raise no_server(self.url) from None
        if text != answer:
            raise ServerError(
                f"{self.url} gives another answer now, and explains its own alone. Answers with a seed or at "
                "temperature 0 can be explained.", "refused",
            )  # fmt: skip
        last = next(part["image_url"]["url"] for one in reversed(messages) for part in reversed(parts_of(one))
                    if part["type"] == "image_url")  # fmt: skip
        return Explanation(heat, load_image(last), answer)

    def _body(self, messages: Sequence[Mapping[str, Any]], sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": list(messages)}
        given: dict[str, Any] = {
            "temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_new_tokens,
            "stop": list(sampling.stop), "choices": list(sampling.choices),
            # The wire's seeds have a sign, and are taken modulo 2**64.
            "seed": None if sampling.seed is None else (sampling.seed + 2**63) % 2**64 - 2**63,
        }  # fmt: skip
        if sampling.json_schema:
            schema = {"name": "answer", "schema": json.loads(str(sampling.json_schema))}
            given["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body | {name: value for name, value in given.items() if value not in (None, [])}

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        with self._open(method, path, body) as response:
            return read_json(self.url, read_whole(self.url, response))

    def _open(self, method: str, path: str, body: Any = None) -> Opened:
        return Opened(self.url, self._client, self._client.build_request(method, path, content=to_json(body)))


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


class RemoteStream(Iterator[str]):
    """Pieces of an answer as they come; `.reply` is the whole when it has ended. The server is asked when the first
    piece is. Closing it, from whatever thread, or leaving the loop and dropping it, stops the model."""

    def __init__(self, remote: RemoteVisGLM, messages: Sequence[Mapping[str, Any]], body: Mapping[str, Any]):
        self._remote, self._messages, self._body = remote, messages, body
        self._response: Any = None
        self._has_ended = self._is_closed = False
        self._text = self.thinking = ""  # the answer, and what was thought before it, so far
        self._reason, self._usage = "cancelled", {"prompt_tokens": 0, "completion_tokens": 0}
        self._timings = Timings(0.0, 0.0, 0.0)
        self._pieces = self._read()

    def __next__(self) -> str:
        return next(piece for kind, piece in self._pieces if kind == TEXT)

    def parts(self) -> Iterator[tuple[str, str]]:
        """Pieces with what they are: "thinking", or "text" of the answer."""
        return self._pieces

    def close(self) -> None:
        """Stop."""
        self._is_closed = True
        try:
            self._pieces.close()
        except ValueError:  # it is being read by another thread, which only the end of its connection wakes
            with suppress(Exception):
                sock = self._response.extensions["network_stream"].get_extra_info("socket")
                sock.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        self.close()

    @property
    def reply(self) -> Reply:
        """The whole answer; of a stream that was closed, the part there is, its `finish_reason` "cancelled".

        Raises:
            ServerError: it has not ended, or failed.
        """
        if not self._has_ended and not self._is_closed:
            raise ServerError("there is no reply: read the stream to its end first, and without an error.", "failed")
        return reply_of(self._messages, self._text, self._reason, self._usage, self._timings, self.thinking)

    def _read(self) -> Generator[tuple[str, str], None, None]:
        httpx, url = require("remote", "httpx"), self._remote.url
        started = time.perf_counter()
        try:
            with self._remote._open("POST", "/v1/chat/completions", self._body) as self._response:
                reason = "cancelled"
                for event in events_of(self._response):
                    if event == "[DONE]":
                        break
                    told = read_json(url, event.encode())
                    if "error" in told:
                        raise error_of(url, 500, event.encode())
                    self._usage = told.get("usage") or self._usage
                    for choice in told["choices"]:
                        reason = choice["finish_reason"] or reason
                        thought, piece = (choice["delta"].get(name) or "" for name in ("reasoning_content", "content"))
                        self.thinking, self._text = self.thinking + thought, self._text + piece
                        if thought or piece:
                            now = time.perf_counter() - started
                            self._timings = Timings(0.0, self._timings.first_token or now, now)
                        yield from ((kind, part) for kind, part in ((THINKING, thought), (TEXT, piece)) if part)
                else:
                    raise unreachable(url, "it broke off")
        except (ServerError, httpx.HTTPError, httpx.StreamError, OSError) as error:
            if self._is_closed:
                return
            raise (error if isinstance(error, ServerError) else unreachable(url, error)) from None
        self._has_ended, self._reason = True, reason


def events_of(response: Any) -> Iterator[str]:
    """The data of server-sent events."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line[6:]


def to_json(body: Any) -> bytes:
    text = "" if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


# --- conversations ---------------------------------------------------------------------------------------------------


def to_messages(images: Any, prompt: Any, history: Any) -> tuple[Mapping[str, Any], ...]:
    """A question and what was said before it, as OpenAI writes them."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptError(f"the question must be a text that says something; got {shorten(repr(prompt))}.")
    new = [] if images is None else list(images) if isinstance(images, list | tuple) else [images]
    parts = [{"type": "image_url", "image_url": {"url": to_url(image)}} for image in new]
    question = {"role": "user", "content": [*parts, {"type": "text", "text": prompt}] if parts else prompt}
    return (*past_messages(history), question)


def past_messages(history: Any) -> tuple[Mapping[str, Any], ...]:
    if isinstance(history, RemoteHistory):
        return history.messages
    items = [] if history is None or isinstance(history, History) else list(history)
    if items and all(isinstance(item, Mapping) for item in items):
        turns, sources = messages_to_turns(items)
        if turns[-1].answer is None:
            raise PromptError("the history ends with a message that nobody has answered. Pass it as the question.")
        pictures = iter(sources)
        return tuple(message for turn in turns for message in of_turn(turn, pictures))
    past = History.of(history)
    if past.num_images:
        raise PromptError(
            "this history has its pictures as one model saw them; a server must be shown them. Go on from a reply of "
            "this server, or give messages that hold them."
        )
    return tuple(message for turn in past.turns for message in of_turn(turn, iter(())))


def of_turn(turn: Turn, sources: Iterator[Any]) -> Iterator[Mapping[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": to_url(next(sources))}} for _ in range(turn.num_images)]
    yield {"role": "user", "content": [*parts, {"type": "text", "text": turn.question}]}
    yield {"role": "assistant", "content": turn.answer or ""}


def parts_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    return message["content"] if isinstance(message["content"], list) else []


def to_url(source: Any) -> str:
    """A picture as a server takes it.

    Raises:
        ImageError: there is no such picture.
    """
    if isinstance(source, str) and source[:8].lower().startswith(("data:", "http://", "https://")):
        return source
    if isinstance(source, str | os.PathLike) and os.path.isfile(source):
        if os.path.getsize(source) > DEFAULT_LIMITS.max_bytes:
            raise ImageError(f"{shorten(os.fsdecode(source))} has over {DEFAULT_LIMITS.max_bytes:,} bytes.")
        kind, data = mimetypes.guess_type(os.fsdecode(source))[0] or "image/png", Path(source).read_bytes()
    elif isinstance(source, bytes):
        kind, data = "image/png", source  # what it is, its first bytes say
    else:
        out = io.BytesIO()
        load_image(source).save(out, "PNG")
        kind, data = "image/png", out.getvalue()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def reply_of(
    messages: Sequence[Mapping[str, Any]], text: str, reason: str, usage: Mapping[str, Any], timings: Timings,
    thinking: str = "",
) -> Reply:  # fmt: skip
    whole = (*messages, {"role": "assistant", "content": text})
    history = RemoteHistory(tuple(messages_to_turns(whole)[0]), messages=whole)
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    told = Usage(usage["prompt_tokens"], usage["completion_tokens"], thought)
    return Reply(text, history, told, timings, reason, thinking=thinking)


# --- what goes wrong -------------------------------------------------------------------------------------------------


def read_whole(url: str, response: Any) -> bytes:
    httpx = require("remote", "httpx")
    try:
        return response.read()
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise unreachable(url, error) from None


def read_json(url: str, data: bytes) -> Any:
    try:
        told = json.loads(data)
    except ValueError:
        raise no_server(url) from None
    if not isinstance(told, dict):
        raise no_server(url)
    return told


def unreachable(url: str, error: Any) -> ServerError:
    what = error if isinstance(error, str) else type(error).__name__
    return ServerError(
        f"{url} does not answer ({what}). Is `visglm serve` running there, and is the address right?", "unreachable"
    )


def no_server(url: str) -> ServerError:
    return ServerError(f"{url} answers, but not as `visglm serve` does. Is the address right?", "missing")


def error_of(url: str, status: int, body: bytes, retry_after: str = "") -> Exception:
    """What a server says went wrong, as the library's own error where it has one."""
    try:
        told = json.loads(body)["error"]
        message, code = printable(str(told["message"])[:500]), told.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = "", None
    if code in CODES:
        return CODES[code](message)
    if code == "shutting_down":
        status = 503
    reason, advice = REASONS.get(status, ("refused" if 400 <= status < 500 else "failed", ""))
    wait = float(retry_after) if retry_after.isdecimal() else None
    said = " ".join(filter(None, (message or f"It says {status}.", advice)))
    return ServerError(f"{url} does not answer. {said}", reason, wait)
