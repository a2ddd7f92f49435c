"""The bytes that each token of a vocabulary writes, for whoever checks spelling token by token."""

from __future__ import annotations

from typing import Any

from .pieces import BYTE_PIECES, CONTROL_PIECES, WHITESPACE_PIECES, WORD_START, control_ids


def token_bytes(tokenizer: Any, size: int) -> list[bytes]:
    """Of the tokens 0 to `size - 1`; nothing for those that write none: control tokens, slots of pictures, ids beyond
    the vocabulary."""
    silent = control_ids(tokenizer)
    spell = piece_bytes if hasattr(tokenizer, "detokenizer") else letter_bytes
    first, last = getattr(tokenizer, "num_image_tokens", 0), min(size, len(tokenizer), tokenizer.vocab_size)
    pieces = tokenizer.convert_ids_to_tokens(list(range(last)))
    spelled = [
        b"" if number in silent or number < first or piece in CONTROL_PIECES else spell(piece)
        for number, piece in enumerate(pieces)
    ]
    return spelled + [b""] * (size - last)


def piece_bytes(piece: str) -> bytes:
    """Of sentencepiece with fallback to bytes."""
    if piece in BYTE_PIECES:
        return BYTE_PIECES[piece]
    return (WHITESPACE_PIECES.get(piece) or piece.replace(WORD_START, " ")).encode()


def letter_bytes(piece: str) -> bytes:
    """Of a vocabulary that writes each byte as a letter."""
    return bytes(LETTERS[letter] for letter in piece) if all(letter in LETTERS for letter in piece) else b""


def letters() -> dict[str, int]:
    """Letter → byte, as GPT-2 chose them: printable ones stand for themselves, the others from 256 on."""
    themselves = [*range(33, 127), *range(161, 173), *range(174, 256)]
    found = {chr(byte): byte for byte in themselves}
    others = [byte for byte in range(256) if byte not in themselves]
    return found | {chr(256 + place): byte for place, byte in enumerate(others)}


LETTERS = letters()
