"""A prompt to what the engine is asked, and what it answers to a reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters import Adapters
from ..errors import ConfigError, EngineError
from ..families import family_of
from ..prompt import Thinking, rules_of
from ..reply import History, Reply, Timings, Usage, find_boxes, parse, shares_of
from ..request import Prompt, lay_out
from ..sampling import OF_CHECKPOINT, Sampling
from ..shapes import Shape, shape_of, vocabulary_of
from ..writing import Writer
from .choosing import Chooser, Dictated, Thoughts
from .core import Engine
from .task import Outcome, Request, Ticket


class Asker:
    """Puts prompts to the engine of a network, and makes replies of its answers."""

    def __init__(
        self,
        engine: Engine,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        adapters: Adapters | None = None,
    ):
        self.engine, self.network, self.tokenizer, self.adapters = engine, network, tokenizer, adapters
        self.manner = family_of(network.config).manner(network.config)
        self.style = self.manner.prompt_style
        self.end_ids = end_ids(network.generation_config)
        self.own = family_of(network.config).sampling(network.generation_config)  # for settings that are not given

    def submit(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        adapter: str | None = None,
        owner: str = "",
        on_news: Callable[[], None] | None = None,
    ) -> list[Answer]:
        """Ask them together.

        Args:
            adapter: that answers, whichever is in use; "" for the base alone, None for the one in use then.
            owner, on_news: see `Request`.

        Raises:
            BusyError: the network is kept busy by something long.
            ConfigError: a setting does not go with this model, or there is no such adapter.
        """
        if adapter:
            names = () if self.adapters is None else self.adapters.names
            check_adapter(adapter, names)
        common: dict[str, Any] = {
            "adapter": adapter, "adapters": self.adapters, "owner": owner, "on_news": on_news
        }  # fmt: skip
        many = self._choices if sampling.choices else self._draws
        asked = [[replace(request, **common) for request in many(prompt, sampling)] for prompt in prompts]
        tickets = iter(self.engine.submit(*(request for requests in asked for request in requests)))
        return [
            Answer(self, prompt, sampling, [next(tickets) for _ in requests])
            for prompt, requests in zip(prompts, asked, strict=True)
        ]

    def look(self, pixel_values: Sequence[Tensor] | Tensor) -> Any:
        """Visual tokens `[tokens, hidden_size]` of each picture, as the family's histories keep them.

        Args:
            pixel_values: each picture as the network takes it.

        Raises:
            BusyError: as `submit`.
        """
        nothing = Chooser(Sampling(), (), [], self.network.device)
        [ticket] = self.engine.submit(Request([], 0, nothing, pixel_values=pixel_values))
        embeds = ticket.result().image_embeds
        if embeds is None:
            raise EngineError("the pictures were not looked at: the engine was stopped. Ask again.")
        return embeds

    def room(self, sampling: Sampling, num_prompt_tokens: int) -> int:
        """Tokens that an answer may have, and what is thought before it."""
        context = self.network.config.text_config.max_position_embeddings
        return sampling.room(context, num_prompt_tokens, sampling.thinks and self._thinking is not None)

    def writer(self, sampling: Sampling) -> Writer:
        """What writes answers down. Those of a shape stay as they are."""
        return Writer(self.tokenizer, None if shape_of(sampling) else self.style, sampling.stop)

    def _draws(self, prompt: Prompt, sampling: Sampling) -> list[Request]:
        """As many answers as are wanted, each by a seed of its own."""
        ids = prompt.rendered.input_ids
        room = self.room(sampling, len(ids))
        settings, sampling = self.network.generation_config, sampling.settled(self.own)
        also = {name: getattr(settings, name, None) for name in OF_CHECKPOINT}
        sampling.check_biases(self.network.config.text_config.vocab_size)
        shape, found = self._shape(sampling), []
        for number in range(sampling.n):
            chooser = Chooser(
                sampling.numbered(number), self.end_ids, ids, self.network.device, also, shape and shape.begin(),
                self._thoughts(sampling),
            )  # fmt: skip
            has_ended = self.writer(sampling).push if sampling.stop else None
            found.append(self._request(prompt, room, chooser, has_ended))
        return found

    @property
    def _thinking(self) -> Thinking | None:
        return rules_of(self.style).thinking

    def _thoughts(self, sampling: Sampling) -> Thoughts | None:
        """What ends thinking in time.

        Raises:
            ConfigError: there is no token that could.
        """
        thinking, most = self._thinking, sampling.max_thinking_tokens
        if thinking is None or most is None:
            return None
        start, end = (self.tokenizer.convert_tokens_to_ids(name) for name in (thinking.start, thinking.end))
        if {start, end} & {None, self.tokenizer.unk_token_id}:
            raise ConfigError(
                f"max_thinking_tokens={most} cannot be kept: this vocabulary has no token {thinking.end}. Bound the "
                "whole answer, with max_new_tokens."
            )
        return Thoughts(start, end, most)

    def _choices(self, prompt: Prompt, sampling: Sampling) -> list[Request]:
        """What each of the choices would have been chosen with."""
        found = []
        for choice in sampling.choices:
            turns = (*prompt.turns[:-1], replace(prompt.turns[-1], answer=choice))
            whole = lay_out(
                turns, language=prompt.language, max_new_tokens=0, config=self.manner, tokenizer=self.tokenizer,
                shapes=prompt.shapes, thinks=False,
            )  # fmt: skip
            answer = whole.input_ids[len(prompt.rendered.input_ids) :]
            chooser = Dictated(answer, sampling, self.network.device)
            found.append(self._request(prompt, len(answer), chooser))
        return found

    def _shape(self, sampling: Sampling) -> Shape | None:
        if not shape_of(sampling):
            return None
        vocabulary = vocabulary_of(self.tokenizer, self.network.config.text_config.vocab_size, self.end_ids)
        return Shape(vocabulary, sampling)

    def _request(
        self, prompt: Prompt, room: int, chooser: Chooser, has_ended: Callable[[int], bool] | None = None
    ) -> Request:
        return Request(
            input_ids=prompt.rendered.input_ids, room=room, chooser=chooser, image_embeds=prompt.image_embeds,
            pixel_values=prompt.pixel_values, source=prompt.source,
            has_ended=has_ended, shapes=prompt.shapes,
        )  # fmt: skip


def check_adapter(name: Any, names: Sequence[str]) -> None:
    if name not in names:
        raise ConfigError(
            f'there is no adapter {name!r}; there are: {", ".join(names) or "none"}, and "" for the base.'
        )


def end_ids(settings: Any) -> list[int]:
    """Tokens that end an answer, as a `GenerationConfig` has them."""
    found = settings.eos_token_id
    return list(found) if isinstance(found, list | tuple) else [] if found is None else [found]


class Answer:
    """An answer on its way, or several to one question."""

    def __init__(self, asker: Asker, prompt: Prompt, sampling: Sampling, tickets: list[Ticket]):
        self.tickets = tickets
        self._prompt, self._sampling = prompt, sampling
        self._writer = partial(asker.writer, sampling)

    @property
    def ticket(self) -> Ticket:
        """The first's."""
        return self.tickets[0]

    @property
    def is_done(self) -> bool:
        return all(ticket.is_done for ticket in self.tickets)

    def reply(self) -> Reply:
        """Wait for it.

        Raises:
            Exception: what went wrong with it.
        """
        outcomes = [ticket.result() for ticket in self.tickets]
        if self._sampling.choices:
            return self._likeliest(outcomes)
        first, *others = (self._written(outcome) for outcome in outcomes)
        return replace(first, others=tuple(others))

    def _written(self, outcome: Outcome) -> Reply:
        """What its tokens say."""
        writer = self._writer()
        for token in outcome.tokens:
            writer.push(token.id)
        reply = self._reply(outcome, writer.finish())
        usage = replace(reply.usage, thinking_tokens=writer.num_thinking)
        boxes = find_boxes(writer.boxed, self._prompt.shapes)
        return replace(reply, usage=usage, thinking=writer.thinking, boxes=boxes)

    def _likeliest(self, outcomes: Sequence[Outcome]) -> Reply:
        """The choice that the model would write most likely, with every one's share of the probability of them all."""
        scores = [sum(token.logprob for token in outcome.tokens) for outcome in outcomes]
        best = scores.index(max(scores))
        reply = self._reply(outcomes[best], self._sampling.choices[best])
        told = dict(zip(self._sampling.choices, shares_of(scores), strict=True))
        return replace(reply, finish_reason="stop", scores=told)

    def _reply(self, outcome: Outcome, text: str) -> Reply:
        prompt, tokens = self._prompt, outcome.tokens
        turns = (*prompt.turns[:-1], replace(prompt.turns[-1], answer=text))
        return Reply(
            text=text,
            history=History(turns, outcome.image_embeds, prompt.language, outcome.source, prompt.shapes),
            usage=Usage(len(prompt.rendered.input_ids), len(tokens)),
            timings=Timings(
                outcome.encode_seconds + prompt.resize_seconds, outcome.first_token_seconds, outcome.total_seconds
            ),
            finish_reason=outcome.finish_reason,
            images=prompt.images,
            ids=tuple(token.id for token in tokens),
            logprobs=tuple(token.logprob for token in tokens),
            alternatives=tuple(token.alternatives for token in tokens),
            parsed=parse(text) if self._sampling.json_schema and outcome.finish_reason == "stop" else None,
        )
