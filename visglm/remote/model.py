"""`RemoteVisGLM`: what `VisGLM` can be asked, asked of a server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ServerError
from ..pictures import load_image
from ..reply import History, Reply, Timings, parse
from ..sampling import Sampling
from .connection import Connection, understood, want
from .errors import no_server
from .messages import parts_of, reply_of, to_messages, usage_of
from .streams import RemoteStream

if TYPE_CHECKING:
    from ..explanation import Explanation


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
        self._connection, self._model = Connection(url, api_key), model
        self.url = self._connection.url

    def __repr__(self) -> str:
        return f"RemoteVisGLM({self.url!r}, model={self._model!r})"

    def close(self) -> None:
        """Let go of the connections."""
        self._connection.close()

    def models(self) -> list[str]:
        """What may answer: the base first, then its adapters.

        Raises:
            ServerError: the server cannot be asked.
        """
        told = self._connection.send("GET", "/v1/models")
        with understood(self.url):
            names = [want(str, one["id"]) for one in told["data"]]
        if not names:
            raise no_server(self.url)
        return names

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
        told = self._connection.send("POST", "/v1/chat/completions", self._body(messages, sampling))
        seconds = time.perf_counter() - started
        with understood(self.url):
            choice = told["choices"][0]
            text, reason = want(str, choice["message"]["content"]), want(str, choice["finish_reason"])
            thinking = want(str, choice["message"].get("reasoning_content") or "")
            scores = {name: float(score) for name, score in (choice.get("scores") or {}).items()}
            usage = usage_of(told["usage"])
        reply = reply_of(messages, text, reason, usage, Timings(0.0, seconds, seconds), thinking)
        return replace(reply, parsed=parse(text) if sampling.json_schema else None, scores=scores)

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
        return RemoteStream(self._connection, messages, body)

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
        from ..explanation import Explanation

        messages = to_messages(images, prompt, history)
        told = self._connection.send(
            "POST", "/v1/chat/completions", self._body(messages, Sampling(**settings)) | {"explain": True}
        )
        with understood(self.url):
            choice = told["choices"][0]
            text, heat = choice["message"]["content"], np.asarray(choice["explanation"]["heat"], np.float64)
            if heat.ndim != 2 or not heat.size or not (np.abs(heat - 0.5) <= 0.501).all():  # 0 to 1, as it is rounded
                raise ValueError("no heat map")
            heat = heat.astype(np.float32)
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
