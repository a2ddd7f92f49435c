"""How the next token is chosen: settings that `VisGLM` takes and the command line shows. Loads nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import ConfigError
from .settings import Rule, shorten

LOWEST_TEMPERATURE = 0.01  # below, logits divided by it leave float32, and the answer is the likeliest one anyway
DEFAULT_NEW_TOKENS = 512  # cap on an answer when the caller names none and the context has more room
THINKING_TOKENS = 8192  # the same where a model thinks before it answers
RULED_OUT = -100.0  # as a bias: the token does not come
# What leaves everything as it is, of the settings that narrow a choice.
NEUTRAL = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
}  # fmt: skip
# What is taken for a setting that nobody gave, neither who asks nor the model: the likeliest token, nothing narrowed.
GREEDY: Mapping[str, float] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
# What a checkpoint's own settings may say beyond `Sampling`. Beams are for `generate` alone.
OF_CHECKPOINT = ("no_repeat_ngram_size", "min_new_tokens")

# Setting → what it may be. Out of range is an error, never a clamp.
RULES: Mapping[str, Rule] = {
    "max_new_tokens": Rule(int, 1, 1_000_000, optional=True),
    "max_thinking_tokens": Rule(int, 0, 1_000_000, optional=True),
    "temperature": Rule(
        float, LOWEST_TEMPERATURE, 5.0, optional=True, or_zero=True, hint="0 takes the likeliest token every time."
    ),
    "top_p": Rule(float, 0.0, 1.0, optional=True),
    "top_k": Rule(int, 0, 1_000_000, optional=True),
    "min_p": Rule(float, 0.0, 1.0, optional=True),
    "repetition_penalty": Rule(float, 0.1, 10.0, optional=True),
    "min_new_tokens": Rule(int, 0, 1_000_000),
    "seed": Rule(int, 0, 2**64 - 1, optional=True),
    "n": Rule(int, 1, 128),
    "logprobs": Rule(int, 0, 64),
}
MOST_TEXTS, LONGEST_TEXT = 128, 4096  # of a list of texts, and characters of one
MOST_BIASES = 4096
LONGEST_SHAPE = 65_536  # characters of a schema or a regular expression


def as_texts(name: str, value: Any) -> tuple[str, ...]:
    """A text, or a list of some."""
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else None
    if texts is None or len(texts) > MOST_TEXTS or not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(f"{name} must be a text or a list of up to {MOST_TEXTS}, none empty; got {shorten(value)}.")
    if any(len(text) > LONGEST_TEXT for text in texts):
        raise ConfigError(f"a text of {name} has more than {LONGEST_TEXT} characters.")
    return texts


def as_choices(name: str, value: Any) -> tuple[str, ...]:
    texts = as_texts(name, value)
    if isinstance(value, str) or len(texts) == 1 or len(set(texts)) < len(texts):
        raise ConfigError(f"{name} must be a list of two texts or more, all different; got {shorten(value)}.")
    return texts


def as_biases(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, Mapping | list | tuple):
        raise ConfigError(f"{name} must map tokens to what is added to their logits; got {shorten(value)}.")
    pairs = tuple(value.items()) if isinstance(value, Mapping) else tuple(value)
    id_rule, rule = Rule(int, 0, 2**31), Rule(float, -100.0, 100.0)
    if len(pairs) > MOST_BIASES:
        raise ConfigError(f"{name} has {len(pairs)} tokens; {MOST_BIASES} are possible.")
    return tuple((id_rule.take(f"a token of {name}", id_), rule.take(f"{name}[{id_}]", bias)) for id_, bias in pairs)


def as_schema(name: str, value: Any) -> str:
    """As JSON."""
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is no JSON ({error}); got {shorten(value)}.") from None
    if not isinstance(schema, dict) or len(text) > LONGEST_SHAPE:
        raise ConfigError(f"{name} must be a JSON object of up to {LONGEST_SHAPE} characters; got {shorten(value)}.")
    return text


def as_expression(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_SHAPE:
        raise ConfigError(f"{name} must be a text of up to {LONGEST_SHAPE} characters; got {shorten(value)}.")
    return value


# Setting → what makes of a value the one that is kept; the command line does not show these.
OTHERS: Mapping[str, Callable[[str, Any], Any]] = {
    "stop": as_texts, "choices": as_choices, "json_schema": as_schema, "regex": as_expression, "logit_bias": as_biases,
}  # fmt: skip
SHAPES = ("choices", "json_schema", "regex")
HIDDEN = {"command_line": False}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Of `temperature`, `top_p`, `top_k`, `min_p` and `repetition_penalty`, None is the model's own (`VisGLM.defaults`):
    GLM-4.1V, GLM-4.6V and GLM-OCR take what their `generation_config.json` says. What it does not say, and any other
    model, takes the likeliest token of all.

    Args:
        max_new_tokens: longest answer, in tokens; None for what the context leaves, at most 512.
        max_thinking_tokens: of a model that thinks before it answers, the most tokens for that; 0 has it answer at
            once, None leaves it to the model.
        temperature: 0 takes the likeliest token every time; from 0.01 to 5 samples, flatter the higher.
        top_p: sample among the likeliest tokens that hold this share of the probability, 0 to 1.
        top_k: sample among this many likeliest tokens; 0 for all.
        min_p: sample among tokens at least this share as likely as the likeliest, 0 to 1; 0 for all.
        repetition_penalty: above 1 makes tokens that occurred before less likely.
        min_new_tokens: shortest answer, in tokens.
        seed: makes sampling repeatable, alone or in a batch, whatever else draws numbers; 0 to 2**64 - 1.
        n: answers to the same question, by `seed`, `seed + 1` …; the others are the reply's `others`.
        logprobs: how many of the likeliest tokens are told at each place, beside the one that was chosen.
        stop: texts that end an answer; they are not part of it.
        choices: the answer is one of these texts, the likeliest; the reply's `scores` say how likely each is.
        json_schema: the answer is JSON of this schema, a mapping or a text, which the reply's `parsed` holds.
        regex: the answer matches this regular expression, from its start to its end.
        logit_bias: what is added to the logit of a token, by its id; -100 rules it out.
    """

    max_new_tokens: int | None = None
    max_thinking_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_new_tokens: int = 0
    seed: int | None = None
    n: int = field(default=1, metadata=HIDDEN)
    logprobs: int = field(default=0, metadata=HIDDEN)
    stop: Sequence[str] | str = field(default=(), metadata=HIDDEN)
    choices: Sequence[str] = field(default=(), metadata=HIDDEN)
    json_schema: Mapping[str, Any] | str = field(default="", metadata=HIDDEN)
    regex: str = field(default="", metadata=HIDDEN)
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = field(default=(), metadata=HIDDEN)

    def __post_init__(self):
        for name, rule in RULES.items():
            object.__setattr__(self, name, rule.take(name, getattr(self, name)))
        for name, make in OTHERS.items():
            value = getattr(self, name)
            nothing = type(self).__dataclass_fields__[name].default
            object.__setattr__(self, name, nothing if value in (None, nothing) else make(name, value))
        if len(given := [name for name in SHAPES if getattr(self, name)]) > 1:
            raise ConfigError(f"an answer has one shape; got {' and '.join(given)}.")
        if self.min_new_tokens and (self.json_schema or self.regex):
            raise ConfigError("a shape says itself when an answer is complete: leave out min_new_tokens.")
        if self.choices and (self.n > 1 or self.stop or self.draws):
            raise ConfigError("choices are scored, not drawn: leave out n, stop and temperature.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Sampling:
        """Settings by name.

        Raises:
            ConfigError: there is none of that name, or it is out of its range.
        """
        known = {**RULES, **OTHERS}
        if unknown := [name for name in settings if name not in known]:
            raise ConfigError(f"there is no setting {', '.join(map(repr, unknown))}; known: {', '.join(known)}.")
        return cls(**settings)

    @property
    def draws(self) -> bool:
        """Whether chance has a part in the answer."""
        return bool(self.temperature)

    def settled(self, own: Mapping[str, float]) -> Sampling:
        """With what a model takes for settings that are not given.

        Args:
            own: of the keys of `GREEDY`, what the model's own files say.
        """
        given: dict[str, Any] = {name: value for name, value in own.items() if getattr(self, name) is None}
        return replace(self, **given)

    def room(self, context_length: int, num_prompt_tokens: int, thinks: bool = False) -> int:
        """Tokens that an answer may have, and what is thought before it."""
        most = THINKING_TOKENS if thinks else DEFAULT_NEW_TOKENS
        return self.max_new_tokens or min(most, context_length - num_prompt_tokens)

    @property
    def thinks(self) -> bool:
        """Whether the model may think before it answers: not where the answer's shape is settled, nor without room."""
        return self.max_thinking_tokens != 0 and not any(getattr(self, name) for name in SHAPES)

    def numbered(self, number: int) -> Sampling:
        """Those of an answer among several, from 0 on: each has a seed of its own, if any."""
        return self if self.seed is None else replace(self, seed=(self.seed + number) % 2**64)

    def check_biases(self, vocab_size: int) -> None:
        """Raise `ConfigError` for a token that the vocabulary does not have."""
        if unknown := [token for token in dict(self.logit_bias) if token >= vocab_size]:
            raise ConfigError(f"logit_bias names the token {unknown[0]}; this vocabulary has {vocab_size}, from 0 on.")
