"""What each token writes, held against what its tokenizer makes of many."""

from __future__ import annotations

import base64
import random

from visglm.tokenizers import token_bytes
from visglm.tokenizers.glm import build_glm4_tokenizer


def test_byte_pairs_are_spelled(tmp_path):
    words = [*(bytes([byte]) for byte in range(256)), b"ab", "猫".encode()[:2], "猫".encode(), b" t", b" th"]
    path = tmp_path / "tokenizer.model"
    path.write_text("".join(f"{base64.b64encode(word).decode()} {rank}\n" for rank, word in enumerate(words)))
    tokenizer = build_glm4_tokenizer(path)
    spelled = token_bytes(tokenizer, len(tokenizer) + 5)
    assert spelled[: len(words)] == words
    assert set(spelled[len(words) :]) == {b""} and len(spelled) == len(tokenizer) + 5
    ids = random.Random(0).choices(range(len(words)), k=300)
    assert tokenizer.decode(ids) == b"".join(spelled[number] for number in ids).decode("utf-8", "replace")
