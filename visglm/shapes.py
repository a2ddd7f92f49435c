"""Answers of a shape: of all tokens only those are allowed that keep an answer on its way to it.

Grammars are llguidance's (https://github.com/guidance-ai/llguidance). It is given what each token writes and never a
tokenizer: sentencepiece would put a space in front of every text, and nothing would match.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import ConfigError, EngineError, require
from .sampling import Sampling
from .tokenizers import token_bytes

# Without limits a schema of a few lines may take minutes and gigabytes. The units are the library's own steps.
LIMITS = {"max_grammar_size": 100_000, "max_lexer_states": 50_000, "initial_lexer_fuel": 1_000_000}
# Of a first word or a first line, as the vocabularies write them; answers are stripped of it.
START = "start: START_OF_TEXT? shape\nSTART_OF_TEXT: /[ \\n]/\n"


def shape_of(sampling: Sampling) -> str:
    """The grammar that an answer must keep to, or "" for none."""
    if sampling.json_schema:
        # Spaces that may be written may be written until the limit.
        schema = json.loads(str(sampling.json_schema))
        options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        return f"{START}shape: %json {json.dumps(schema | {'x-guidance': options})}\n"
    if sampling.regex:
        return f"{START}shape: SHAPE\nSHAPE: /{escape(sampling.regex)}/\n"
    return ""


def escape(expression: str) -> str:
    """Between slashes and on one line."""
    return expression.replace("\n", "\\n").replace("\\/", "/").replace("/", "\\/")


class Spelling:
    """A vocabulary as llguidance wants one.

    Args:
        tokens: what each writes. end_ids: those that end an answer.
    """

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], end_ids: Sequence[int]):
        self.tokens = list(tokens)
        self.eos_token_id = end_ids[0]
        self.special_token_ids = list(end_ids)
        self._ids = {token: number for number, token in enumerate(tokens) if token}
        self._longest = max(map(len, self._ids))
        for number in end_ids:
            self.tokens[number] = b"<end %d>" % number

    def __call__(self, text: bytes | str) -> list[int]:
        """The longest token first, then the next."""
        rest, found = text.encode() if isinstance(text, str) else bytes(text), []
        while rest:
            length = next((n for n in range(min(self._longest, len(rest)), 0, -1) if rest[:n] in self._ids), 0)
            if length:
                found.append(self._ids[rest[:length]])
            rest = rest[max(1, length) :]
        return found


VOCABULARIES: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def vocabulary_of(tokenizer: Any, size: int, end_ids: Sequence[int]) -> Any:
    """llguidance's tokenizer of a vocabulary, made once.

    Raises:
        MissingDependencyError: the extra "shapes" is not installed. ConfigError: no token ends an answer.
    """
    guidance = require("shapes", "llguidance")
    if not end_ids:
        raise ConfigError("this model has no token that ends an answer, so that no shape could be complete.")
    known = VOCABULARIES.setdefault(tokenizer, {})
    if (key := (size, *end_ids)) not in known:
        wrapper = guidance.TokenizerWrapper(Spelling(token_bytes(tokenizer, size), end_ids))
        known[key] = guidance.LLTokenizer(wrapper, n_vocab=size, eos_token=list(end_ids))
    return known[key]


class Shape:
    """A shape, ready for as many answers as are wanted.

    Raises:
        ConfigError: the schema or the expression cannot be used, or is too large.
    """

    def __init__(self, vocabulary: Any, sampling: Sampling):
        guidance = require("shapes", "llguidance")
        grammar = guidance.grammar_from("lark", shape_of(sampling))
        limits = guidance.LLParserLimits(**LIMITS, verbose_errors=False)
        self._matcher = guidance.LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
        if self._matcher.is_error():
            name = "json_schema" if sampling.json_schema else "regex"
            reason = self._matcher.get_error().strip().splitlines()[0]
            raise ConfigError(f"{name} cannot be used: {reason}. Make it simpler, or ask without it.")

    def begin(self) -> Growing:
        """For one answer."""
        return Growing(self._matcher.deep_copy())


class Growing:
    """How far one answer has come."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    def allowed(self, size: int) -> np.ndarray:
        """Which of the tokens 0 to `size - 1` do not lead away from the shape: bool `[size]`.

        Raises:
            EngineError: it became too large to be followed.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        known = np.unpackbits(bits, bitorder="little")[:size].astype(bool)
        return np.pad(known, (0, size - len(known)))

    def take(self, token: int) -> None:
        """What was chosen."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"the shape cannot be followed any more: {self._matcher.get_error().splitlines()[0]}")
