"""What comes next, by what came after the same words before: answers quote what they were asked and shown.

Source: prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding); here over the answer, too, and
as far as it has lately been right.
"""

from __future__ import annotations

from collections.abc import Sequence

LENGTH = 3  # tokens that must be the same
FIRST, FARTHEST = 4, 16  # tokens that are guessed: at first, and at most


class Lookup:
    """Guesses the tokens of one answer.

    Args:
        prompt: its tokens. never: a token that no answer has.
    """

    def __init__(self, prompt: Sequence[int], never: int | None = None):
        self._ids: list[int] = []
        self._never = never
        self._reach = FIRST
        self._after: dict[tuple[int, ...], int] = {}  # the same words → the place behind them, the latest
        self.catch_up(prompt)
        self._num_given = len(self._ids)

    @property
    def num_taken(self) -> int:
        """Tokens of the answer so far."""
        return len(self._ids) - self._num_given

    def catch_up(self, tokens: Sequence[int]) -> None:
        """The next tokens, as they really were."""
        for token in tokens:
            self.take(token)

    def take(self, token: int) -> None:
        """One of them."""
        if len(self._ids) >= LENGTH:
            self._after[tuple(self._ids[-LENGTH:])] = len(self._ids)
        self._ids.append(token)

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that might come next; none where the words before were not said yet."""
        place = self._after.get(tuple(self._ids[-LENGTH:]))
        if place is None:
            return []
        found = self._ids[place : place + min(self._reach, most)]
        return found[: found.index(self._never)] if self._never in found else found

    def learn(self, guessed: int, right: int) -> None:
        """So many of them were right: reading some for nothing costs little, and many of them much."""
        self._reach = min(2 * self._reach, FARTHEST) if right == guessed else max(1, min(right, self._reach // 2))
