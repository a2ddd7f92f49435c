"""Which token comes next, by NumPy: the settings of `Sampling`, in the order in which torch's engine heeds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..sampling import NEUTRAL, RULED_OUT, Sampling

NEVER = np.float32(-np.inf)

Narrow = Callable[[np.ndarray, Sequence[int], Any], np.ndarray]  # scores, ids so far, the setting's value → scores


def repetition_penalty(scores: np.ndarray, ids: Sequence[int], value: float) -> np.ndarray:
    seen = np.unique(ids)
    scores[seen] = np.where(scores[seen] < 0, scores[seen] * value, scores[seen] / value)
    return scores


def no_repeat_ngram_size(scores: np.ndarray, ids: Sequence[int], value: int) -> np.ndarray:
    if len(ids) + 1 < value:
        return scores
    last = tuple(ids[len(ids) - value + 1 :])
    for start in range(len(ids) - value + 1):
        if tuple(ids[start : start + value - 1]) == last:
            scores[ids[start + value - 1]] = NEVER
    return scores


def temperature(scores: np.ndarray, ids: Sequence[int], value: float) -> np.ndarray:
    return scores / np.float32(value)


def top_k(scores: np.ndarray, ids: Sequence[int], value: int) -> np.ndarray:
    count = min(value, len(scores))
    return np.where(scores < np.partition(scores, -count)[-count], NEVER, scores)


def top_p(scores: np.ndarray, ids: Sequence[int], value: float) -> np.ndarray:
    order = np.argsort(scores, kind="stable")
    gone = np.cumsum(softmax(scores[order])) <= 1 - value
    gone[-1] = False
    scores[order[gone]] = NEVER
    return scores


def min_p(scores: np.ndarray, ids: Sequence[int], value: float) -> np.ndarray:
    shares = softmax(scores)
    gone = shares < value * shares.max()
    gone[scores.argmax()] = False
    return np.where(gone, NEVER, scores)


LIMITS: Mapping[str, Narrow] = {
    "repetition_penalty": repetition_penalty, "no_repeat_ngram_size": no_repeat_ngram_size,
}  # fmt: skip
WARPERS: Mapping[str, Narrow] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}


class Chooser:
    """Chooses the tokens of one answer.

    Args:
        sampling: the settings. end_ids: tokens that end an answer. prompt: ids of the prompt.
        also: settings beyond `Sampling`'s, such as a checkpoint brings.
        shape: what allows some tokens only, `Growing` of `visglm.shapes`.
        dictated: what it writes, whatever the logits say.
    """

    def __init__(
        self,
        sampling: Sampling,
        end_ids: Sequence[int],
        prompt: Sequence[int],
        also: Mapping[str, Any],
        shape: Any = None,
        dictated: Sequence[int] = (),
    ):
        self.ids = list(prompt)
        self.end_ids = list(end_ids)
        values = {**also, **vars(sampling)}
        table = {**LIMITS, **WARPERS} if sampling.draws else LIMITS
        self._steps = [(make, values[name]) for name, make in table.items() if values.get(name) is not None]
        self._steps = [(make, value) for make, value in self._steps if value != NEUTRAL[make.__name__]]
        self._biases = dict(sampling.logit_bias)
        self._shape = shape
        self._num_before_end = max(sampling.min_new_tokens, also.get("min_new_tokens") or 0)
        self._random: Any = np.random.default_rng(sampling.seed) if sampling.draws else None
        self._dictated = list(reversed(dictated))

    def choose(self, logits: np.ndarray) -> int:
        """The next token of logits `[vocabulary]`, float32; they stay as they are.

        Raises:
            ConfigError: none is left to choose.
        """
        if self._dictated:
            return self._dictated.pop()
        scores = logits.copy()
        if self._num_before_end > 0:
            scores[self.end_ids] = NEVER
        if self._shape is not None:
            scores[~self._shape.allowed(len(scores))] = NEVER
        for id_, bias in self._biases.items():
            scores[id_] += NEVER if bias <= RULED_OUT else np.float32(bias)
        if scores.max() == NEVER:
            raise ConfigError("logit_bias, and a shape if there is one, rule out every token. Leave some of them.")
        for step, value in self._steps:
            scores = step(scores, self.ids, value)
        token = int(scores.argmax()) if self._random is None else self._draw(scores)
        self._num_before_end -= 1
        if self._shape is not None:
            self._shape.take(token)
        self.ids.append(token)
        return token

    def _draw(self, scores: np.ndarray) -> int:
        sums = np.cumsum(softmax(scores).astype(np.float64))
        return int(np.searchsorted(sums, float(self._random.random() * sums[-1]), side="right"))


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()
