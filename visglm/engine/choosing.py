"""Which token comes next: one row's settings, its own random numbers, and whatever narrows its choice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..sampling import NEUTRAL, RULED_OUT, Sampling

# Setting, in the order that they have a say → what it makes of its value. `WARPERS` shape the draw, and have no say
# where the likeliest token is taken.
Maker = Callable[[Any], LogitsProcessor]
LIMITS: Mapping[str, Maker] = {
    "repetition_penalty": lambda value: RepetitionPenaltyLogitsProcessor(float(value)),
    "no_repeat_ngram_size": lambda value: NoRepeatNGramLogitsProcessor(value),
}
WARPERS: Mapping[str, Maker] = {
    "temperature": lambda value: TemperatureLogitsWarper(value),
    "top_k": lambda value: TopKLogitsWarper(value),
    "top_p": lambda value: TopPLogitsWarper(value),
    "min_p": lambda value: MinPLogitsWarper(value),
}


class Thoughts:
    """What is thought before an answer, which ends after so many tokens.

    Args:
        start, end: tokens around it. most: tokens between them.
    """

    def __init__(self, start: int, end: int, most: int):
        self.start, self.end, self._left = start, end, most
        self._is_thinking = False

    @property
    def must_end(self) -> bool:
        """Whether nothing but the end may come next."""
        return self._is_thinking and self._left <= 0

    def take(self, token: int) -> None:
        """What was chosen."""
        if token == self.end:
            self._is_thinking = False
        elif self._is_thinking:
            self._left -= 1
        elif token == self.start:
            self._is_thinking = True


class Chooser:
    """Chooses the tokens of one answer.

    Args:
        sampling: the settings.
        end_ids: tokens that end an answer.
        prompt: ids of the prompt.
        device: of the logits.
        shape: what allows some tokens only, `Growing` of `shapes`.
        thoughts: ends what is thought before an answer in time, if it must.
        also: settings beyond `Sampling`'s, keys of `LIMITS`, such as a checkpoint brings.
    """

    def __init__(
        self,
        sampling: Sampling,
        end_ids: Collection[int],
        prompt: list[int],
        device: torch.device,
        also: Mapping[str, Any] | None = None,
        shape: Any = None,
        thoughts: Thoughts | None = None,
    ):
        self.ids = list(prompt)
        self.end_ids = frozenset(end_ids)
        self.num_alternatives = sampling.logprobs
        self._device = device
        values = {**(also or {}), **vars(sampling)}
        table = {**LIMITS, **WARPERS} if sampling.draws else LIMITS
        self._processors = [
            make(values[name]) for name, make in table.items() if values.get(name) not in (None, NEUTRAL[name])
        ]
        self._shape, self._thoughts = shape, thoughts
        if sampling.logit_bias:
            self._processors.insert(0, Bias(dict(sampling.logit_bias), device))
        self._num_before_end = max(sampling.min_new_tokens, (also or {}).get("min_new_tokens") or 0)
        self._generator = new_generator(sampling.seed, device) if sampling.draws else None

    @property
    def takes_likeliest(self) -> bool:
        """Whether it takes the likeliest token, whatever came before."""
        return not self._processors and self._generator is None and self._shape is None and not self._must_end_thinking

    @property
    def _must_end_thinking(self) -> bool:
        return self._thoughts is not None and self._thoughts.must_end

    @property
    def forbidden(self) -> list[int]:
        """What cannot be the next token: too early for an end."""
        return sorted(self.end_ids) if self._num_before_end > 0 else []

    def is_end(self, token: int) -> bool:
        return token in self.end_ids

    def choose(self, logits: Tensor) -> int:
        """The next token.

        Args:
            logits: `[vocabulary]`, float32; they stay as they are.
        """
        if self._thoughts is not None and self._thoughts.must_end:
            return self._thoughts.end
        scores = logits[None].clone()
        ids = torch.tensor([self.ids], device=self._device)
        if self._shape is not None:
            allowed = torch.from_numpy(self._shape.allowed(scores.shape[-1])).to(self._device)
            scores = scores.masked_fill(~allowed, -torch.inf)
        for processor in self._processors:
            scores = processor(ids, scores)
        if self._generator is None:
            return int(scores[0].argmax())
        return int(torch.multinomial(scores[0].softmax(-1), 1, generator=self._generator))

    def take(self, token: int) -> None:
        """What was chosen."""
        self._num_before_end -= 1
        if self._shape is not None:
            self._shape.take(token)
        if self._thoughts is not None:
            self._thoughts.take(token)
        if self._processors or self._generator is not None or self._shape is not None:
            self.ids.append(token)


class Bias(LogitsProcessor):
    """Adds to the logits of some tokens."""

    def __init__(self, biases: Mapping[int, float], device: torch.device):
        values = [-torch.inf if bias <= RULED_OUT else bias for bias in biases.values()]
        self._ids = torch.tensor(list(biases), device=device)
        self._values = torch.tensor([values], dtype=torch.float32, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_add(1, self._ids, self._values)


class Dictated(Chooser):
    """Writes what it was given, to see how likely the model takes it to be."""

    def __init__(self, tokens: list[int], sampling: Sampling, device: torch.device):
        super().__init__(replace(sampling, min_new_tokens=0), (), [], device)
        self._left = list(reversed(tokens))

    takes_likeliest = False

    def choose(self, logits: Tensor) -> int:
        return self._left.pop()


def new_generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()  # from the operating system
    else:
        generator.manual_seed(seed)
    return generator
