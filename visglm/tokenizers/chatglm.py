"""ChatGLM's tokenizer over sentencepiece: text → ids and back.

Encoding gives plain pieces only: what a user types can become neither a control token nor an image slot.
Those enter a prompt by id, in `visglm.prompt`.

Source: the tokenizers published with THUDM/chatglm-6b and THUDM/visualglm-6b, whose ids are reproduced.
"""

from __future__ import annotations

import codecs
import re
import shutil
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import AddedToken, PreTrainedTokenizer

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


class ChatGLMTokenizer(PreTrainedTokenizer):
    """Tokenizer of ChatGLM-6B and VisualGLM-6B.

    Newlines, tabs and runs of spaces have pieces of their own, so code and lists survive the round trip. The
    vocabulary turns full-width punctuation into ASCII (`：` into `:`). With special tokens, `[gMASK] <sop>`
    follows the text. Batches are padded on the left.

    Unlike in the original, control tokens (`[gMASK]`, `<eop>`, `<|image|>` …) and whitespace pieces (`<n>` …)
    that someone typed stay the characters they are.

    Args:
        vocab_file: path of the sentencepiece model, `ice_text.model`.
        bos_token: start of what the model writes; everything before it is seen both ways.
        eos_token: end of what the model writes.
        end_token: end of a document in pre-training.
        gmask_token: stands where text is to be written, at the end.
        mask_token: stands where text is to be written, in the middle.
        pad_token: fills up the shorter rows of a batch.
        unk_token: stands for what the vocabulary cannot spell.
        image_token: name of an image slot.
        image_token_id: id of an image slot, used by nothing else; the next one above `eos_token` if None.
        num_image_tokens: ids before the text vocabulary: 20000 in the first ChatGLM-6B release, 0 since.

    Raises:
        CheckpointError: the vocabulary file is missing or is no sentencepiece model.
        ConfigError: the vocabulary has no newline, or `image_token_id` is the id of another control token.
    """

    vocab_files_names = {"vocab_file": VOCAB_FILE_NAME}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"
    SPECIAL_TOKENS_ATTRIBUTES = [
        *PreTrainedTokenizer.SPECIAL_TOKENS_ATTRIBUTES,
        *("end_token", "gmask_token", "image_token"),
    ]

    def __init__(
        self,
        vocab_file: str,
        bos_token: str = "<sop>",
        eos_token: str = "<eop>",
        end_token: str = "</s>",
        gmask_token: str = "[gMASK]",
        mask_token: str = "[MASK]",
        pad_token: str = "<pad>",
        unk_token: str = "<unk>",
        image_token: str = "<|image|>",
        image_token_id: int | None = None,
        num_image_tokens: int = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_file = vocab_file
        self.num_image_tokens = num_image_tokens
        self.sp_model = _load_sentencepiece(vocab_file, kwargs.get("name_or_path"))
        kwargs.pop("auto_map", None)  # names the remote code that this class replaces
        for name in ("remove_space", "do_lower_case"):  # in every published config, and false in each
            if kwargs.pop(name, False):
                raise ConfigError(f"{name} is true in the tokenizer's config; only false is supported.")

        self._whitespace = self._find_whitespace_pieces()
        self._whitespace_ids = {self.sp_model.piece_to_id(piece) for piece in self._whitespace.values()}
        longest_first = sorted(self._whitespace, key=len, reverse=True)
        self._whitespace_text = re.compile(f"({'|'.join(longest_first)})")
        self._whitespace_piece = re.compile("|".join(map(re.escape, self._whitespace.values())))

        named = [str(token) for token in (bos_token, eos_token, end_token, mask_token, gmask_token)]
        named += [str(token) for token in (pad_token, unk_token)]
        # The order in which ChatGLM2 puts them behind its vocabulary, which holds none of the first five.
        self._added_tokens_decoder = self._place_missing(
            (str(mask_token), str(gmask_token), "[sMASK]", str(bos_token), str(eos_token), *named)
        )
        image_token_id = self._check_image_token_id(image_token_id, str(eos_token), named)
        self._added_tokens_decoder[image_token_id] = _special(image_token)

        control = [piece for piece in CONTROL_PIECES if self._has_piece(piece)]
        self._spelled = self._spell_reserved_pieces(control, image_token_id)
        unnamed = [piece for piece in control if piece not in named and self._id_of(piece) != image_token_id]
        extra = map(str, kwargs.pop("extra_special_tokens", None) or ())
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            end_token=end_token,
            gmask_token=gmask_token,
            mask_token=mask_token,
            pad_token=pad_token,
            unk_token=unk_token,
            image_token=image_token,
            image_token_id=image_token_id,
            num_image_tokens=num_image_tokens,
            extra_special_tokens=list(dict.fromkeys((*extra, *unnamed))),
            **kwargs,
        )

    # --- the vocabulary ----------------------------------------------------------------------------

    def _has_piece(self, piece: str) -> bool:
        return self.sp_model.id_to_piece(self.sp_model.piece_to_id(piece)) == piece

    def _find_whitespace_pieces(self) -> dict[str, str]:
        """Whitespace that has a piece of its own in this vocabulary → that piece."""
        if not self._has_piece(NEWLINE):
            raise ConfigError(
                f"The vocabulary {self.vocab_file} has no piece {NEWLINE}: newlines would become spaces. "
                f"Expected a ChatGLM vocabulary; sentencepiece makes one with user_defined_symbols={NEWLINE}."
            )
        return {text: piece for piece, text in WHITESPACE_PIECES.items() if self._has_piece(piece)}

    def _place_missing(self, tokens: Iterable[str]) -> dict[int, AddedToken]:
        """Control tokens that the vocabulary lacks, at the ids behind it."""
        missing = [token for token in dict.fromkeys(tokens) if not self._has_piece(token)]
        return {self.vocab_size + offset: _special(token) for offset, token in enumerate(missing)}

    def _id_of(self, token: str) -> int:
        added = {str(added): index for index, added in self._added_tokens_decoder.items()}
        return added[token] if token in added else self._convert_token_to_id(token)

    def _check_image_token_id(self, image_token_id: int | None, eos_token: str, named: Iterable[str]) -> int:
        owner = {self._id_of(token): token for token in named}
        default = next(index for index in count(self._id_of(eos_token) + 1) if index not in owner)
        image_token_id = default if image_token_id is None else image_token_id
        if image_token_id in owner or image_token_id < self.num_image_tokens:
            taken_by = owner.get(image_token_id, "an image piece of the first release")
            raise ConfigError(
                f"image_token_id is {image_token_id}, the id of {taken_by}. "
                f"An image slot needs an id of its own; leave image_token_id out to take {default}."
            )
        return image_token_id

    def _spell_reserved_pieces(self, control: Iterable[str], image_token_id: int) -> dict[int, list[int]]:
        """Ids that typed text must not produce → the ids of their characters, one by one."""
        reserved = self._whitespace_ids | {self.sp_model.piece_to_id(piece) for piece in control}
        if image_token_id < self.vocab_size:  # the slot hides a piece, `<ENC>` in the published vocabulary
            reserved.add(image_token_id - self.num_image_tokens)
        reserved.discard(self.sp_model.unk_id())
        return {index: self._spell(self.sp_model.id_to_piece(index)) for index in reserved}

    def _spell(self, text: str) -> list[int]:
        ids = []
        for character in text:
            if self._has_piece(character):
                ids.append(self.sp_model.piece_to_id(character))
            else:
                ids.extend(self.sp_model.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode())
        return ids

    @property
    def vocab_size(self) -> int:
        """Number of ids that the vocabulary file gives, with `num_image_tokens` and without added tokens."""
        return len(self.sp_model) + self.num_image_tokens

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id. An image slot that takes the id of a piece takes its place."""
        offset = self.num_image_tokens
        pieces = self.sp_model.id_to_piece(list(range(len(self.sp_model))))
        tokens = [f"<image_{index}>" for index in range(offset)] + pieces
        for index, token in self._added_tokens_decoder.items():
            if index < len(tokens):
                tokens[index] = token.content
        return {token: index for index, token in enumerate(tokens)} | self._added_tokens_encoder

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp_model.piece_to_id(token) + self.num_image_tokens

    def _convert_id_to_token(self, index: int) -> str:
        if index < self.num_image_tokens:
            return f"<image_{index}>"
        if index >= self.vocab_size:  # the embedding may have more rows than the vocabulary has pieces
            return str(self.unk_token)
        return self.sp_model.id_to_piece(index - self.num_image_tokens)

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Nothing can be added: what someone types is never read as a token, and the model has no rows for new ones.

        Raises:
            ConfigError: one of them is not in the vocabulary.
        """
        tokens = [str(token) for token in (new_tokens if isinstance(new_tokens, list | tuple) else [new_tokens])]
        known = self.get_vocab()
        if new := [token for token in tokens if token not in known]:
            raise ConfigError(
                f"{type(self).__name__} takes no new tokens; got {', '.join(map(repr, new))}. What is typed is never "
                "read as a control token here: put existing ones into a prompt by id, as visglm.prompt does."
            )
        return 0

    # --- text → ids --------------------------------------------------------------------------------

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Split text into plain pieces. No part of it is read as a control token, whatever the options."""
        return self._tokenize(text)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self.sp_model.id_to_piece(index) for index in self._encode_text(text)]

    def _encode_text(self, text: str) -> list[int]:
        """Sentencepiece ids of plain text (without the image id offset)."""
        parts = self._whitespace_text.split(text)  # odd places hold the whitespace that becomes a piece
        parts[1::2] = [self._whitespace[part] for part in parts[1::2]]
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
            elif part:  # normalized, because a full-width `＜n＞` matches as well
                origins.extend([False] * len(self._whitespace_piece.findall(self.sp_model.normalize(part))))
        return origins

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`text [gMASK] <sop>`, or `text [gMASK] <sop> answer <eop>` for a pair."""
        ids = [*token_ids_0, self.gmask_token_id, self.bos_token_id]
        return ids if token_ids_1 is None else [*ids, *token_ids_1, self.eos_token_id]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        mask = [0] * len(token_ids_0) + [1, 1]
        return mask if token_ids_1 is None else [*mask, *[0] * len(token_ids_1), 1]

    # --- ids → text --------------------------------------------------------------------------------

    def detokenizer(self) -> Detokenizer:
        """What spells pieces one by one, for `StreamDecoder`."""
        return Detokenizer()

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        detokenizer = Detokenizer()
        return "".join(map(detokenizer.feed, tokens)) + detokenizer.flush()

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write the sentencepiece model into a folder and return its path."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory) / (prefix + self.vocab_files_names["vocab_file"])
        if not target.exists() or not target.samefile(self.vocab_file):
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)


def _special(token: str) -> AddedToken:
    return AddedToken(str(token), special=True, normalized=False)


def _load_sentencepiece(vocab_file: str | None, folder: str | None) -> sentencepiece.SentencePieceProcessor:
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
        self._special_ids = set(tokenizer.all_special_ids)
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
            return self._new_text(self._tokenizer.decode(self._ids))
        return self._detokenizer.flush()

    def _new_text(self, text: str) -> str:
        start, self._num_shown = self._num_shown, max(self._num_shown, len(text))
        return text[start:]
