"""Byte pairs out of a tiktoken file: the merge that made each word, in a number of steps that its length bounds."""

from __future__ import annotations

import base64
import random

import pytest

from visglm.errors import CheckpointError
from visglm.tokenizers import glm
from visglm.tokenizers.glm import build_glm4_tokenizer


class Counted(dict):
    num_looks = 0

    def get(self, key, default=None):
        self.num_looks += 1
        return super().get(key, default)


def by_trying_all(ranks, word):
    parts = [word[place : place + 1] for place in range(len(word))]
    while len(parts) > 2:
        pairs = [ranks.get(first + second, len(ranks)) for first, second in zip(parts, parts[1:], strict=False)]
        best = pairs.index(min(pairs))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return tuple(parts)


def test_the_last_merge_is_that_of_trying_all_pairs():
    dice = random.Random(0)
    words = {bytes(dice.choices(b"abc", k=dice.randrange(2, 12))) for _ in range(3000)}
    ranks = {word: rank for rank, word in enumerate(dice.sample(sorted(words), len(words)))}
    assert all(glm._last_merge(ranks, word) == by_trying_all(ranks, word) for word in words)


def test_a_long_word_takes_steps_in_proportion_to_its_length():
    ranks = Counted({bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abab": 257})
    word = b"ab" * 8000
    first, second = glm._last_merge(ranks, word)
    assert first + second == word and ranks.num_looks < 4 * len(word)


def test_a_vocabulary_with_a_long_word_is_read(tmp_path):
    words = [*(bytes([byte]) for byte in range(256)), *(b"ab" * 2**power for power in range(14))]
    path = tmp_path / "tokenizer.model"
    path.write_text("".join(f"{base64.b64encode(word).decode()} {rank}\n" for rank, word in enumerate(words)))
    tokenizer = build_glm4_tokenizer(path)
    assert tokenizer.decode(tokenizer.encode("abc", add_special_tokens=False)) == "abc"
    with path.open("r+b") as file:
        file.truncate(2**25)
    with pytest.raises(CheckpointError, match="expected at most"):
        build_glm4_tokenizer(path)
