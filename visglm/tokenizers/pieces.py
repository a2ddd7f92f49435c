"""Sentencepiece as these vocabularies want it: plain text → ids and back, for tokenizers with transformers or without.

Encoding gives plain pieces only: what a user types can become neither a control token nor an image slot.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from ..errors import CheckpointError, ConfigError
from ..untrusted import check_file, told

VOCAB_FILE_NAME = "ice_text.model"
DOWNLOAD = "Download it again: a web page or a Git LFS pointer saved under this name looks like this."
WORD_START = "▁"  # sentencepiece writes a space as this character
NEWLINE, TAB = "<n>", "<|tab|>"
BLANKS = {f"<|blank_{length}|>": " " * length for length in range(2, 81)}
WHITESPACE_PIECES = {NEWLINE: "\n", TAB: "\t"} | BLANKS
BYTE_PIECES = {f"<0x{value:02X}>": bytes([value]) for value in range(256)}

# Pieces that steer the model. Where a vocabulary holds one, sentencepiece finds it in ordinary text as well.
CONTROL_PIECES = (
    *("<unk>", "<s>", "</s>", "<pad>", "[MASK]", "[gMASK]", "[sMASK]"),
    *("<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"),
)


class Pieces:
    """A vocabulary file, and what of it plain text may become. Ids are sentencepiece's own.

    Args:
        vocab_file: path of the sentencepiece model.
        folder: it belongs to, for errors.
        has_whitespace: newlines, tabs and runs of spaces have pieces of their own, as in ChatGLM's first generation.

    Attributes:
        control: pieces of the vocabulary that steer the model.

    Raises:
        CheckpointError: the vocabulary file is missing or is no sentencepiece model.
        ConfigError: it has no newline where it should.
    """

    def __init__(self, vocab_file: str | None, folder: str | None = None, has_whitespace: bool = True):
        self.vocab_file = vocab_file
        self.sp_model = load_sentencepiece(vocab_file, folder)
        self.control = [piece for piece in CONTROL_PIECES if self.has(piece)]
        self._whitespace = self._find_whitespace() if has_whitespace else {}
        self._whitespace_ids = {self.sp_model.piece_to_id(piece) for piece in self._whitespace.values()}
        longest_first = sorted(self._whitespace, key=len, reverse=True)
        self._whitespace_text = re.compile(f"({'|'.join(longest_first)})")
        self._whitespace_piece = re.compile("|".join(map(re.escape, self._whitespace.values())))
        self._spelled: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.sp_model)

    def has(self, piece: str) -> bool:
        """Whether the vocabulary holds a piece of that name."""
        return self.sp_model.id_to_piece(self.sp_model.piece_to_id(piece)) == piece

    def _find_whitespace(self) -> dict[str, str]:
        """Whitespace that has a piece of its own in this vocabulary → that piece."""
        if not self.has(NEWLINE):
            raise ConfigError(
                f"The vocabulary {self.vocab_file} has no piece {NEWLINE}: newlines would become spaces. "
                f"Expected a ChatGLM vocabulary; sentencepiece makes one with user_defined_symbols={NEWLINE}."
            )
        return {text: piece for piece, text in WHITESPACE_PIECES.items() if self.has(piece)}

    def reserve(self, image_slot: int | None) -> None:
        """From now on text never becomes a control piece, nor the piece that the image slot hides (`<ENC>` in the
        published vocabulary): they are spelled, letter by letter."""
        reserved = self._whitespace_ids | {self.sp_model.piece_to_id(piece) for piece in self.control}
        if image_slot is not None and image_slot < len(self):
            reserved.add(image_slot)
        reserved.discard(self.sp_model.unk_id())
        self._spelled = {index: self._spell(self.sp_model.id_to_piece(index)) for index in reserved}

    def _spell(self, text: str) -> list[int]:
        ids = []
        for character in text:
            if self.has(character):
                ids.append(self.sp_model.piece_to_id(character))
            else:
                ids.extend(self.sp_model.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode())
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        parts = self._whitespace_text.split(text) if self._whitespace else [text]
        parts[1::2] = [self._whitespace[part] for part in parts[1::2]]  # odd places hold what becomes a piece
        ids = self.sp_model.encode("".join(parts))
        if self._spelled.keys().isdisjoint(ids):
            return ids
        from_whitespace = iter(self._whitespace_origins(parts))
        result: list[int] = []
        for index in ids:
            if index not in self._spelled or (index in self._whitespace_ids and next(from_whitespace)):
                result.append(index)
            else:
                result.extend(self._spelled[index])
        return result

    def _whitespace_origins(self, parts: list[str]) -> list[bool]:
        """For each whitespace piece of a text in order: was it whitespace (or was `<n>` typed as such)?"""
        origins: list[bool] = []
        for place, part in enumerate(parts):
            if place % 2:
                origins.append(True)
            elif part and self._whitespace:  # normalized, because a full-width `＜n＞` matches as well
                origins.extend([False] * len(self._whitespace_piece.findall(self.sp_model.normalize(part))))
        return origins


def load_sentencepiece(vocab_file: str | None, folder: str | None) -> sentencepiece.SentencePieceProcessor:
    if vocab_file is None or not Path(vocab_file).is_file():
        raise CheckpointError(
            vocab_file or folder or "The tokenizer",
            [f"the vocabulary file {VOCAB_FILE_NAME} is missing"],
            f"Copy {VOCAB_FILE_NAME} from the model's release to its folder; nothing else can replace it.",
        )
    with told(vocab_file, "the vocabulary", DOWNLOAD):
        check_file(Path(vocab_file))
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
    except RuntimeError as error:
        raise CheckpointError(
            vocab_file,
            [f"it is no sentencepiece model ({Path(vocab_file).stat().st_size:,} bytes)"],
            DOWNLOAD,
        ) from error


class Detokenizer:
    """Pieces → text one at a time, holding bytes back until they make a whole character."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True

    def feed(self, piece: str) -> str:
        if piece in BYTE_PIECES:
            text = self._utf8.decode(BYTE_PIECES[piece])
        else:
            text = self.flush()
            if self._at_start and not text:
                piece = piece.removeprefix(WORD_START)  # encoding puts a space in front of every text
            text += WHITESPACE_PIECES.get(piece) or piece.replace(WORD_START, " ")
        self._at_start = self._at_start and not text
        return text

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def control_ids(tokenizer: Any) -> set[int]:
    """Ids that write nothing: control tokens and slots of pictures.

    `all_special_ids` of transformers holds only those that have a name in its configuration, of GLM-4's two in fifteen.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}


class StreamDecoder:
    """Decode ids while they are generated, never yielding part of a character.

    All that `push` and `finish` return, joined, is `tokenizer.decode(ids, skip_special_tokens=True)`.

    Args:
        tokenizer: the tokenizer the ids are of.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Of tokenizers that know no pieces, all ids are decoded each time.
        self._detokenizer = tokenizer.detokenizer() if hasattr(tokenizer, "detokenizer") else None
        self._special_ids = control_ids(tokenizer)
        self._ids: list[int] = []
        self._num_shown = 0

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; it may be empty."""
        kept = [index for index in map(int, ids) if index not in self._special_ids]
        if self._detokenizer is None:
            self._ids += kept
            return self._new_text(self._tokenizer.decode(self._ids, skip_special_tokens=True).rstrip("\ufffd"))
        return "".join(map(self._detokenizer.feed, self._tokenizer.convert_ids_to_tokens(kept)))

    def finish(self) -> str:
        """What is left at the end: a replacement character if one was cut short, else nothing."""
        if self._detokenizer is None:
            return self._new_text(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        return self._detokenizer.flush()

    def _new_text(self, text: str) -> str:
        start, self._num_shown = self._num_shown, max(self._num_shown, len(text))
        return text[start:]
