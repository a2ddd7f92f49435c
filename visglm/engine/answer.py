"""A prompt to what the engine is asked, and what it answers to a reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import EngineError
from ..model import VisGLMForConditionalGeneration
from ..prompt import postprocess
from ..reply import History, Reply, Timings, Usage
from ..request import Prompt
from ..sampling import Sampling
from .choosing import Chooser
from .core import Engine
from .task import Outcome, Request, Ticket

DEFAULT_NEW_TOKENS = 512  # cap on an answer when the caller names none and the context has more room
# What a checkpoint's own settings may say beyond `Sampling`. Beams are for `generate` alone.
OF_CHECKPOINT = ("no_repeat_ngram_size", "min_new_tokens")


class Asker:
    """Puts prompts to the engine of a network, and makes replies of its answers."""

    def __init__(self, engine: Engine, network: VisGLMForConditionalGeneration, tokenizer: PreTrainedTokenizerBase):
        self.engine, self.network, self.tokenizer = engine, network, tokenizer

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Answer]:
        """Ask them together.

        Raises:
            BusyError: the network is kept busy by something long.
        """
        requests = [self.request(prompt, sampling) for prompt in prompts]
        tickets = self.engine.submit(*requests)
        style = self.network.config.prompt_style
        return [Answer(prompt, ticket, self.tokenizer, style) for prompt, ticket in zip(prompts, tickets, strict=True)]

    def look(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens `[num_images, num_query_tokens, hidden_size]` of pictures `[num_images, 3, height, width]`.

        Raises:
            BusyError: as `submit`.
        """
        nothing = Chooser(Sampling(), (), [], self.network.device)
        [ticket] = self.engine.submit(Request([], 0, nothing, pixel_values=pixel_values))
        embeds = ticket.result().image_embeds
        if embeds is None:
            raise EngineError("the pictures were not looked at: the engine was stopped. Ask again.")
        return embeds

    def request(self, prompt: Prompt, sampling: Sampling) -> Request:
        ids = prompt.rendered.input_ids
        settings = self.network.generation_config
        context = self.network.config.text_config.max_position_embeddings
        return Request(
            input_ids=ids,
            room=sampling.max_new_tokens or min(DEFAULT_NEW_TOKENS, context - len(ids)),
            chooser=Chooser(
                sampling, end_ids(settings), ids, self.network.device,
                also={name: getattr(settings, name, None) for name in OF_CHECKPOINT},
            ),
            image_embeds=prompt.image_embeds,
            pixel_values=prompt.pixel_values,
            source=prompt.source,
        )  # fmt: skip


def end_ids(settings: Any) -> list[int]:
    """Tokens that end an answer, as a `GenerationConfig` has them."""
    found = settings.eos_token_id
    return list(found) if isinstance(found, list | tuple) else [] if found is None else [found]


class Answer:
    """An answer on its way."""

    def __init__(self, prompt: Prompt, ticket: Ticket, tokenizer: PreTrainedTokenizerBase, style: str):
        self.prompt, self.ticket = prompt, ticket
        self._tokenizer, self._style = tokenizer, style

    def reply(self) -> Reply:
        """Wait for it.

        Raises:
            Exception: what went wrong with it.
        """
        return to_reply(self.prompt, self.ticket.result(), self._tokenizer, self._style)


def to_reply(prompt: Prompt, outcome: Outcome, tokenizer: PreTrainedTokenizerBase, style: str) -> Reply:
    """What the chosen tokens say."""
    ids = [token.id for token in outcome.tokens]
    text = postprocess(tokenizer.decode(ids, skip_special_tokens=True), style)
    turns = (*prompt.turns[:-1], replace(prompt.turns[-1], answer=text))
    encode = outcome.encode_seconds + prompt.resize_seconds
    return Reply(
        text=text,
        history=History(turns, outcome.image_embeds, prompt.language, outcome.source),
        usage=Usage(len(prompt.rendered.input_ids), len(ids)),
        timings=Timings(encode, outcome.first_token_seconds, outcome.total_seconds),
        finish_reason=outcome.finish_reason,
        images=prompt.images,
    )
