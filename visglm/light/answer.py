"""A prompt to an answer, token by token, and a reply of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import EngineError
from ..reply import History, Reply, Timings, Usage, parse, shares_of
from ..request import Prompt, lay_out
from ..sampling import OF_CHECKPOINT, Sampling
from ..shapes import Shape, shape_of, vocabulary_of
from ..tokenizers import PlainTokenizer
from ..writing import Writer
from .choosing import NEVER, Chooser
from .network import Network, Place


class Token(NamedTuple):
    """One token of an answer, with the natural logarithm of its probability and the likeliest there, with theirs."""

    id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass
class Read:
    """A prompt that the network has read, from which several answers may start."""

    logits: np.ndarray
    cache: Any
    image_embeds: np.ndarray | None
    encode_seconds: float
    started: float = field(default_factory=time.perf_counter)


class Asker:
    """Makes answers of prompts."""

    def __init__(self, network: Network, tokenizer: PlainTokenizer):
        self.network, self.tokenizer, self.manifest = network, tokenizer, network.manifest

    def ask(self, prompt: Prompt, sampling: Sampling) -> Answer:
        """An answer that nobody has begun to write.

        Raises:
            ConfigError: a setting does not go with this model.
        """
        size = self.manifest.vocab_size
        sampling.check_biases(size)
        shape = None
        if shape_of(sampling):
            vocabulary = vocabulary_of(self.tokenizer, size, self.manifest.answers["end_ids"])
            shape = Shape(vocabulary, sampling)
        return Answer(self, prompt, sampling, shape)

    def writer(self, sampling: Sampling) -> Writer:
        """What writes answers down. Those of a shape stay as they are."""
        return Writer(self.tokenizer, None if shape_of(sampling) else self.manifest.prompt_style, sampling.stop)

    def read(self, prompt: Prompt) -> Read:
        """Look at the new pictures and read the prompt, all but choosing a token."""
        started = time.perf_counter()
        embeds, seconds = prompt.image_embeds, 0.0
        if prompt.pixel_values is not None:
            seen = self.network.look(prompt.pixel_values)
            embeds = seen if embeds is None else np.concatenate([embeds, seen])
            seconds = time.perf_counter() - started
        started = time.perf_counter()
        ids = prompt.rendered.input_ids
        place, cache, logits = Place(self.manifest.positions, ids), self.network.empty_cache(), np.zeros(0, np.float32)
        slots_before = 0
        for piece, positions in place.pieces():
            own = None
            if embeds is not None:
                flat = embeds.reshape(-1, embeds.shape[-1])
                num_slots = sum(id_ == self.manifest.image_token_id for id_ in piece)
                own = flat[slots_before : slots_before + num_slots]
                slots_before += num_slots
            logits, cache = self.network.step(self.network.embed(piece, own), positions, cache)
        return Read(logits, cache, embeds, seconds + prompt.resize_seconds, started)

    def tokens(self, read: Read, prompt: Prompt, chooser: Chooser, num_alternatives: int) -> Iterator[Token]:
        """One token after the other, without end."""
        place, logits, cache = Place(self.manifest.positions, prompt.rendered.input_ids), read.logits, read.cache
        slot = self.manifest.image_token_id
        while True:
            logits = logits.copy()
            if slot is not None:
                logits[slot] = NEVER  # an image slot is no word
            largest = logits.max()
            if not math.isfinite(largest):
                raise EngineError(
                    "the network computes no numbers: its weights are none, or too large. Export the model again."
                )
            total = float(largest) + math.log(float(np.exp(logits - largest, dtype=np.float64).sum()))
            token = chooser.choose(logits)
            yield Token(token, float(logits[token]) - total, likeliest(logits, total, num_alternatives))
            logits, cache = self.network.step(self.network.embed([token]), place.go_on(), cache)


def likeliest(logits: np.ndarray, total: float, count: int) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    order = np.argsort(-logits, kind="stable")[: min(count, len(logits))]
    return tuple((int(id_), float(logits[id_]) - total) for id_ in order)


class Ticket(Iterator[Token]):
    """The tokens of one answer, computed when they are asked for."""

    def __init__(self, tokens: Iterator[Token], room: int, end_ids: Sequence[int], writer: Writer):
        self._tokens, self._room, self._end_ids, self._writer = tokens, room, end_ids, writer
        self.taken: list[Token] = []
        self.finish_reason = ""
        self.has_begun = self.is_cancelled = False
        self.started = self.first_seconds = self.total_seconds = 0.0

    def __next__(self) -> Token:
        if self.finish_reason or self.is_cancelled:
            self.finish_reason = self.finish_reason or "cancelled"
            raise StopIteration
        self.has_begun = True
        token = next(self._tokens)
        self.taken.append(token)
        self.total_seconds = time.perf_counter() - self.started
        if len(self.taken) == 1:
            self.first_seconds = self.total_seconds
        has_stopped = self._writer.push(token.id)
        if token.id in self._end_ids or has_stopped:
            self.finish_reason = "stop"
        elif len(self.taken) >= self._room:
            self.finish_reason = "length"
        return token

    def cancel(self) -> None:
        """No more tokens."""
        self.is_cancelled = True

    def text(self) -> str:
        for _ in self:
            pass
        return self._writer.finish()


class Answer:
    """An answer, or several to one question; nothing is computed before somebody asks for it."""

    def __init__(self, asker: Asker, prompt: Prompt, sampling: Sampling, shape: Shape | None):
        self._asker, self._prompt, self._sampling, self._shape = asker, prompt, sampling, shape
        self._read: Read | None = None  # which several answers share
        self.ticket = self._draw(0)

    def _draw(self, number: int) -> Ticket:
        """The answer by the seed of that number."""
        prompt, sampling, manifest = self._prompt, self._sampling, self._asker.manifest
        ids = prompt.rendered.input_ids
        context = manifest.text_config.max_position_embeddings
        room = sampling.room(context, len(ids))
        also = {name: manifest.answers.get(name) for name in OF_CHECKPOINT}
        chooser = Chooser(
            sampling.numbered(number), manifest.answers["end_ids"], ids, also, self._shape and self._shape.begin()
        )
        return self._ticket(chooser, room, manifest.answers["end_ids"])

    def _ticket(self, chooser: Chooser, room: int, end_ids: Sequence[int]) -> Ticket:
        def tokens() -> Iterator[Token]:
            ticket.started = time.perf_counter()
            if self._read is None:
                self._read = self._asker.read(self._prompt)
                ticket.started = self._read.started
            read = self._read
            yield from self._asker.tokens(read, self._prompt, chooser, self._sampling.logprobs)

        ticket = Ticket(tokens(), room, end_ids, self._asker.writer(self._sampling))
        return ticket

    def reply(self) -> Reply:
        """Write it to its end."""
        if self._sampling.choices:
            return self._choose()
        tickets = [self.ticket, *(self._draw(number) for number in range(1, self._sampling.n))]
        first, *others = (self._reply(ticket, ticket.text()) for ticket in tickets)
        return replace(first, others=tuple(others))

    def _choose(self) -> Reply:
        """The choice that the model would write most likely, with every one's share of the probability of them all."""
        asker, prompt, manifest = self._asker, self._prompt, self._asker.manifest
        tickets, scores = [], []
        for choice in self._sampling.choices:
            turns = (*prompt.turns[:-1], replace(prompt.turns[-1], answer=choice))
            whole = lay_out(
                turns, language=prompt.language, max_new_tokens=0, config=manifest, tokenizer=asker.tokenizer
            )
            dictated = whole.input_ids[len(prompt.rendered.input_ids) :]
            plain = replace(self._sampling, choices=(), min_new_tokens=0)
            ticket = self._ticket(Chooser(plain, (), (), {}, None, dictated), len(dictated), ())
            ticket.text()
            tickets.append(ticket)
            scores.append(sum(token.logprob for token in ticket.taken))
        best = scores.index(max(scores))
        told = dict(zip(self._sampling.choices, shares_of(scores), strict=True))
        reply = self._reply(tickets[best], self._sampling.choices[best])
        return replace(reply, finish_reason="stop", scores=told)

    def _reply(self, ticket: Ticket, text: str) -> Reply:
        prompt, read, tokens = self._prompt, self._read, ticket.taken
        embeds = prompt.image_embeds if read is None else read.image_embeds
        source = "" if embeds is None else self._asker.manifest.fingerprint
        turns = (*prompt.turns[:-1], replace(prompt.turns[-1], answer=text))
        is_whole_json = bool(self._sampling.json_schema) and ticket.finish_reason == "stop"
        return Reply(
            text=text,
            history=History(turns, embeds, prompt.language, source),
            usage=Usage(len(prompt.rendered.input_ids), len(tokens)),
            timings=Timings(0.0 if read is None else read.encode_seconds, ticket.first_seconds, ticket.total_seconds),
            finish_reason=ticket.finish_reason,
            images=prompt.images,
            ids=tuple(token.id for token in tokens),
            logprobs=tuple(token.logprob for token in tokens),
            alternatives=tuple(token.alternatives for token in tokens),
            parsed=parse(text) if is_whole_json else None,
        )
