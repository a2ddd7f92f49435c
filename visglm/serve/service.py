"""Requests to the engine and back, for an event loop: nothing here waits but the threads that may."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from PIL import Image

from ..chat import VisGLM
from ..engine import Answer, Asker, Token, Writer, worn
from ..errors import PromptError
from ..explain import explain
from ..explanation import Explanation
from ..prompt import Rendered, Turn
from ..reply import PictureShape, Reply
from ..request import Prompt, check_eyes, lay_out
from ..sampling import Sampling
from ..tokenizers import token_bytes
from .errors import Refusal, broken_off
from .libraries import Libraries
from .limits import Admission
from .metrics import Metrics
from .names import Names
from .pictures import check_source, decode, download, is_data
from .settings import Settings

DECODERS, HELPERS, FETCHERS = 2, 2, 8  # threads: a large picture takes 200 MB each while it is decoded
LONGEST_TOKEN = 128  # characters: those of blanks are the longest of these vocabularies
Result = TypeVar("Result")


@dataclass(frozen=True)
class Question:
    """What a request asks, whatever protocol it came in.

    Args:
        turns: the conversation; the last has no answer.
        sources: of its pictures, in order: data URLs and addresses.
        sampling: how answers are chosen.
        adapter: of the network, None for the base.
        owner: whose it is.
        explains: whether to tell where in the last picture the answer comes from.
    """

    turns: tuple[Turn, ...]
    sources: tuple[str, ...]
    sampling: Sampling
    adapter: str | None
    owner: str
    explains: bool = False


@dataclass(frozen=True)
class Piece:
    """Some of an answer.

    Args:
        index: which of the answers. text: what is new. tokens: it was made of.
        finish_reason: at its end, else None.
        thinking: what was thought since the last.
    """

    index: int
    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None
    thinking: str = ""


class Service:
    """A model, its adapters, and what may be asked of them.

    Args:
        vlm: the model. It is the server's alone while that runs.
        names: what it and its adapters are called.
        settings: what the operator decided.
    """

    def __init__(self, vlm: VisGLM, names: Names, settings: Settings):
        self.vlm, self.names, self.settings = vlm, names, settings
        self.started = int(time.time())
        self.libraries = Libraries(settings.libraries)
        self.metrics = Metrics()
        self.admission = Admission(max(vlm.engine.slots + settings.limits.max_waiting, settings.limits.max_answers))
        self._asker = Asker(vlm.engine, vlm.model, vlm.tokenizer, vlm.adapters)
        self._pools = {
            name: ThreadPoolExecutor(count, f"visglm-{name}")
            for name, count in (("decode", DECODERS), ("help", HELPERS), ("fetch", FETCHERS))
        }

    @property
    def is_ready(self) -> bool:
        """Whether it answers, and will go on to."""
        return not self.admission.is_closing and not self.has_failed

    @property
    def has_failed(self) -> bool:
        return self.vlm.engine.has_failed

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer and are no part of its text."""
        return self._asker.end_ids

    @cached_property
    def spelling(self) -> list[bytes]:
        """What each token writes."""
        return token_bytes(self.vlm.tokenizer, self.vlm.model.config.text_config.vocab_size)

    def close(self) -> None:
        self.admission.is_closing = True
        for pool in (*self._pools.values(), self.libraries.pool):
            pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, pool: str, act: Callable[..., Result], *arguments: Any) -> Result:
        """In a thread of a pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pools[pool], act, *arguments)

    # --- asking ---

    def check(self, question: Question) -> None:
        """Hold it against the limits, before anything is opened.

        Raises:
            Refusal: it is beyond one. ImageError: a source of a picture is none that is opened here.
        """
        limits, sampling = self.settings.limits, question.sampling
        for what, param, got, most in (
            ("pictures in a conversation", "messages", len(question.sources), limits.max_pictures),
            ("answers to a request", "n", sampling.n, limits.max_answers),
            ("choices", "choices", len(sampling.choices), limits.max_answers),
            ("tokens of an answer", "max_tokens", sampling.max_new_tokens or 0, limits.max_new_tokens),
            ("characters of a schema", "response_format", len(str(sampling.json_schema)), limits.max_schema),
        ):
            if got > most:
                raise Refusal(400, f"{got} are too many {what}; at most {most} are allowed here.", "too_many", param)
        if question.explains and not question.sources:
            raise Refusal(400, "explain: there is no picture to be explained. Send one.", "invalid_value", "explain")
        self.check_length(sum(len(turn.question) + len(turn.answer or "") for turn in question.turns))
        for source in question.sources:
            check_source(source, self.settings.picture_hosts)
        check_eyes(len(question.sources), self._asker.manner)

    def check_length(self, num_characters: int) -> None:
        """Raise `Refusal` for a text that no vocabulary fits into the context, without making tokens of megabytes."""
        if num_characters > LONGEST_TOKEN * self.vlm.context_length:
            raise Refusal(
                400, f"{num_characters:,} characters are more than {self.vlm.context_length:,} tokens can hold.",
                "context_length_exceeded", "messages",
            )  # fmt: skip

    @asynccontextmanager
    async def ask(self, question: Question) -> AsyncIterator[Asked]:
        """The answer on its way, inside the `with`; the model stops where that is left before the end.

        Raises:
            Refusal: a limit forbids it. VisGLMError: something is wrong with it.
        """
        self.check(question)
        extra = max(question.sampling.n, len(question.sampling.choices)) - 1
        with self.admission.take(extra):
            async with self.answering(question) as asked:
                yield asked

    @asynccontextmanager
    async def answering(self, question: Question) -> AsyncIterator[Asked]:
        """`ask`, for a question that was checked and let in."""
        found = await asyncio.gather(*(self.fetch(source) for source in question.sources))
        question, prompt = await self.run("decode", self._prepare, question, found)
        asked = Asked(self, question, prompt)
        try:
            if question.sampling.choices or question.sampling.json_schema:
                await self.run("help", asked.submit)
            else:
                asked.submit()
            yield asked
        finally:
            asked.leave()

    async def fetch(self, source: str) -> str | bytes:
        if is_data(source):
            return source
        return await self.run("fetch", download, source, self.settings.picture_hosts, self.vlm.image_limits)

    def _prepare(self, question: Question, found: Sequence[str | bytes]) -> tuple[Question, Prompt]:
        """The prompt, its pictures decoded one by one and no more of them kept than the network needs; and the question
        with an answer no longer than the context has room for: in all protocols the length is an upper bound."""
        if not question.turns[-1].question.strip() and not question.turns[-1].num_images:
            raise PromptError("the last message must not be empty. Add a question.")
        # Where all pictures have as many tokens, what is too long is refused before one is decoded.
        rendered = self._lay_out(question, 1, ()) if self._asker.manner.num_query_tokens is not None else None
        pictures: list[Image.Image] = []
        values: list[torch.Tensor] = []
        shapes: list[PictureShape] = []
        for source in found:
            picture = decode(source, self.vlm.image_limits, self.settings.limits.max_body)
            values += self.vlm.processor.pixels([picture])
            shapes += self.vlm.processor.shapes([picture])
            pictures += [picture] if question.explains else []
        rendered = rendered or self._lay_out(question, 1, shapes)
        room, sampling = self.vlm.context_length - len(rendered.input_ids), question.sampling
        most = min(room, self.settings.limits.max_new_tokens)
        if self._asker.room(sampling, len(rendered.input_ids)) > most:
            question = replace(question, sampling=replace(sampling, max_new_tokens=most))
        return question, Prompt(
            question.turns, rendered, images=tuple(pictures), pixel_values=values or None, language="auto",
            shapes=tuple(shapes),
        )  # fmt: skip

    def _lay_out(self, question: Question, room: int, shapes: Sequence[PictureShape]) -> Rendered:
        return lay_out(
            question.turns, max_new_tokens=room, config=self._asker.manner, tokenizer=self.vlm.tokenizer,
            shapes=shapes, thinks=question.sampling.thinks,
        )  # fmt: skip

    def submit(self, prompt: Prompt, question: Question, on_news: Callable[[], None]) -> Answer:
        [answer] = self._asker.submit(
            [prompt], question.sampling, adapter=question.adapter or "", owner=question.owner, on_news=on_news
        )
        return answer

    def writer(self, sampling: Sampling) -> Writer:
        return self._asker.writer(sampling)

    def explain(self, prompt: Prompt, answer: str, adapter: str | None) -> Explanation:
        """Where in the last picture an answer comes from, by the adapter that gave it."""
        turns = (*prompt.turns[:-1], Turn(prompt.turns[-1].question, answer, prompt.turns[-1].num_images))
        with self.vlm.engine.turns.take(), worn(self.vlm.adapters, adapter):
            return explain(self.vlm.model, self.vlm.processor, turns, prompt.images)

    def stop_of(self, reply: Reply, sampling: Sampling) -> str | None:
        """The text of `stop` that ended an answer, if one did."""
        found: list[tuple[int, str]] = []
        if reply.finish_reason == "stop" and (not reply.ids or reply.ids[-1] not in self.end_ids):
            for stop in sampling.stop:
                writer = Writer(self.vlm.tokenizer, self._asker.style, [stop])
                if any(writer.push(token) for token in reply.ids):
                    found.append((len(writer.finish()), stop))
        return min(found)[1] if found else None

    def count(self, question: Question) -> list[int]:
        """The prompt's ids.

        Raises:
            Refusal: they depend on the size of a picture that nobody has sent.
        """
        shapes: list[PictureShape] = []
        if self._asker.manner.num_query_tokens is None:
            if any(not is_data(source) for source in question.sources):
                raise Refusal(400, "send pictures as data: URLs to have their tokens counted.", "invalid_value")
            for source in question.sources:
                picture = decode(source, self.vlm.image_limits, self.settings.limits.max_body)
                shapes += self.vlm.processor.shapes([picture])
        return self._lay_out(question, 0, shapes).input_ids


@dataclass
class Bell:
    """Wakes a reader in an event loop, from whatever thread; rung again before it was heard, it is heard once."""

    loop: asyncio.AbstractEventLoop
    event: asyncio.Event = field(default_factory=asyncio.Event)
    _is_rung: bool = False

    def ring(self) -> None:
        if self._is_rung:
            return
        self._is_rung = True
        with suppress(RuntimeError):  # the loop has ended, and its readers with it
            self.loop.call_soon_threadsafe(self._hear)

    def _hear(self) -> None:
        self._is_rung = False
        self.event.set()


class Asked:
    """A question that was put to the engine."""

    def __init__(self, service: Service, question: Question, prompt: Prompt):
        self._service, self.question, self.prompt = service, question, prompt
        self._bell = Bell(asyncio.get_running_loop())
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self._has_left = False

    def submit(self) -> None:
        """In a thread that may wait where there is a schema to be compiled, or choices to be laid out."""
        answer = self._service.submit(self.prompt, self.question, self._bell.ring)
        with self._lock:
            self._answer = answer
            has_left = self._has_left
        if has_left:
            self._cancel(answer)

    def leave(self) -> None:
        """Whoever asked does not want it any more, or has all of it."""
        with self._lock:
            self._has_left, answer = True, self._answer
        if answer is not None and not answer.is_done:
            self._service.metrics.cancelled.inc()
            self._cancel(answer)

    @staticmethod
    def _cancel(answer: Answer) -> None:
        for ticket in answer.tickets:
            ticket.cancel(wait=False)

    async def pieces(self) -> AsyncIterator[Piece]:
        """What comes, as it comes.

        Raises:
            VisGLMError: what went wrong with it.
        """
        answer = self._answer
        if answer is None:
            return
        sampling, bell = self.question.sampling, self._bell
        shown = [Shown(self._service.writer(sampling)) for _ in answer.tickets]
        while True:
            for index, ticket in enumerate(answer.tickets):
                if ticket.has_ended:
                    continue
                tokens = ticket.read()
                if ticket.has_ended:
                    reason = ticket.result().finish_reason
                    if reason == "cancelled":
                        raise broken_off()
                    yield shown[index].end(index, tokens, reason)
                elif tokens and (piece := shown[index].more(index, tokens)):
                    yield piece
            if all(ticket.has_ended for ticket in answer.tickets):
                return
            await bell.event.wait()
            bell.event.clear()

    async def reply(self) -> Reply:
        """The whole. Those to `n` are its `others`.

        Raises:
            VisGLMError: what went wrong with it.
        """
        answer, bell = self._answer, self._bell
        if answer is None:
            raise Refusal(500, "nothing was asked")
        while not answer.is_done:
            await bell.event.wait()
            bell.event.clear()
        reply = answer.reply()
        if reply.finish_reason == "cancelled":
            raise broken_off()
        self._service.metrics.count(reply)
        return reply

    async def explanation(self, answer: str) -> Explanation:
        return await self._service.run(
            "help", partial(self._service.explain, self.prompt, answer, self.question.adapter)
        )


class Shown:
    """How much of one answer was told."""

    def __init__(self, writer: Writer):
        self._writer = writer
        self._length = self._num_thought = 0
        self._held: list[Token] = []  # whose text is not settled yet

    def more(self, index: int, tokens: Sequence[Token]) -> Piece | None:
        self._take(tokens)
        text, thought = self._writer.ready[self._length :], self._thought()
        if not text and not thought:
            return None
        self._length += len(text)
        held, self._held = tuple(self._held), []
        return Piece(index, text, held, thinking=thought)

    def end(self, index: int, tokens: Sequence[Token], finish_reason: str) -> Piece:
        self._take(tokens)
        text = self._writer.finish()[self._length :]
        return Piece(index, text, tuple(self._held), finish_reason, self._thought())

    def _thought(self) -> str:
        start, self._num_thought = self._num_thought, len(self._writer.thinking)
        return self._writer.thinking[start:]

    def _take(self, tokens: Sequence[Token]) -> None:
        self._held += tokens
        for token in tokens:
            self._writer.push(token.id)
