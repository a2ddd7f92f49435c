"""Tokens to the text that people read, as far as nothing that comes can change it, and to where it must stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .prompt import plain_punctuation, postprocess, settled
from .tokenizers import StreamDecoder


class Writer:
    """The text of one answer while its tokens come.

    Args:
        tokenizer: of the tokens. style: of the prompt, which says how answers are tidied; None to only strip them.
        stops: texts that end the answer and are not part of it, whatever tokens they lie across.
    """

    def __init__(self, tokenizer: Any, style: str | None, stops: Sequence[str] = ()):
        self._decoder, self._style = StreamDecoder(tokenizer), style
        # Compared as the vocabulary has them: what is read as `：` may be written as `:`.
        self._stops = [plain_punctuation(stop, style) for stop in stops]
        self._text = ""
        self.has_stopped = False

    def push(self, token: int) -> bool:
        """One more token; whether a stop has come."""
        self._write(self._decoder.push([token]))
        return self.has_stopped

    def _write(self, more: str) -> None:
        if self.has_stopped or not more:
            return
        before, self._text = len(self._text), self._text + more
        plain = plain_punctuation(self._text, self._style)
        found = [plain.find(stop, max(0, before - len(stop) + 1)) for stop in self._stops]
        if places := [place for place in found if place >= 0]:
            self._text, self.has_stopped = self._text[: min(places)], True

    @property
    def ready(self) -> str:
        """What stays whatever comes, and begins no stop."""
        if self.has_stopped:
            return self.finish()
        plain = plain_punctuation(self._text, self._style)
        held = max((overlap(plain, stop) for stop in self._stops), default=0)
        return settled(self._text[: len(self._text) - held], self._style)

    def finish(self) -> str:
        """The whole text, now that no token comes."""
        self._write(self._decoder.finish())
        return postprocess(self._text, self._style)


def overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((count for count in range(longest, 0, -1) if text.endswith(stop[:count])), 0)
