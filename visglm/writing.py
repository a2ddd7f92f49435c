"""Tokens to the text that people read, as far as nothing that comes can change it, and to where it must stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .prompt import PromptStyle, Style, plain_punctuation, postprocess, rules_of, settled
from .tokenizers import StreamDecoder


class Writer:
    """The text of one answer while its tokens come.

    What a model thinks before it answers, and marks that it writes around words, are no part of the text.

    Args:
        tokenizer: of the tokens. style: of the prompt, which says how answers are tidied; None to only strip them.
        stops: texts that end the answer and are not part of it, whatever tokens they lie across.

    Attributes:
        thinking: what was thought so far, as far as it is settled.
        num_thinking: tokens of it.
        boxed: texts that the model put into boxes.
    """

    def __init__(self, tokenizer: Any, style: Style | None, stops: Sequence[str] = ()):
        self._tokenizer, self._style = tokenizer, style
        self._decoder = StreamDecoder(tokenizer)
        # Compared as the vocabulary has them: what is read as `：` may be written as `:`.
        self._stops = [plain_punctuation(stop, style) for stop in stops]
        self._rules = rules_of(style) if style is not None else PromptStyle({}, ())
        self._marks = {tokenizer.convert_tokens_to_ids(name): name for name in self._rules.written}
        self._text = self._thought = self._held = ""
        self._thinks = False
        self._box: int | None = None  # where the one that is open begins in the text
        self.boxed: list[str] = []
        self.num_thinking = 0
        self.has_stopped = False

    def push(self, token: int) -> bool:
        """One more token; whether a stop has come."""
        did_think = self._thinks
        if token in self._marks:  # whether the vocabulary calls it special or not
            more = self._decoder.finish() + self._marks[token]
            self._decoder = StreamDecoder(self._tokenizer)
        else:
            more = self._decoder.push([token])
        self._sort(more)
        self.num_thinking += did_think or self._thinks
        return self.has_stopped

    def _sort(self, more: str) -> None:
        """Thoughts to thoughts, marks to what they mean, words to words."""
        names = self._rules.written
        if not names:
            self._write(more)
            return
        self._held += more
        while found := [(place, name) for name in names if (place := self._held.find(name)) >= 0]:
            place, name = min(found)
            before, self._held = self._held[:place], self._held[place + len(name) :]
            self._put(before)
            self._mark(name)
        kept = max(overlap(self._held, name) for name in names)
        before, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        self._put(before)

    def _put(self, text: str) -> None:
        if self._thinks:
            self._thought += text
        else:
            self._write(text)

    def _mark(self, name: str) -> None:
        thinking, box = self._rules.thinking, self._rules.box or ("", "")
        if thinking is not None and name == thinking.start:
            self._thinks = self._thinks or not self._text.strip()  # before the answer, nowhere else
        elif thinking is not None and name == thinking.end:
            self._thinks = False
        elif name == box[0]:
            self._box = len(self._text)
        elif name == box[1] and self._box is not None:
            self.boxed.append(self._text[self._box :])
            self._box = None

    def _write(self, more: str) -> None:
        if self.has_stopped or not more:
            return
        before, self._text = len(self._text), self._text + more
        plain = plain_punctuation(self._text, self._style)
        found = [plain.find(stop, max(0, before - len(stop) + 1)) for stop in self._stops]
        if places := [place for place in found if place >= 0]:
            self._text, self.has_stopped = self._text[: min(places)], True

    @property
    def thinking(self) -> str:
        return self._thought.strip()

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
        self._sort(self._decoder.finish())
        held, self._held = self._held, ""
        self._put(held)
        return postprocess(self._text, self._style)


def overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((count for count in range(longest, 0, -1) if text.endswith(stop[:count])), 0)
