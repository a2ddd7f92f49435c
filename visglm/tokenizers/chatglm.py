"""ChatGLM's tokenizer over sentencepiece: text → ids and back.

Encoding gives plain pieces only: what a user types can become neither a control token nor an image slot.
Those enter a prompt by id, in `visglm.prompt`.

Source: the tokenizers published with THUDM/chatglm-6b and THUDM/visualglm-6b, whose ids are reproduced.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

from ..errors import ConfigError
from .pieces import VOCAB_FILE_NAME, Detokenizer, Pieces


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
    has_whitespace_pieces = True
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
        self.pieces = Pieces(vocab_file, kwargs.get("name_or_path"), self.has_whitespace_pieces)
        kwargs.pop("auto_map", None)  # names the remote code that this class replaces
        for name in ("remove_space", "do_lower_case"):  # in every published config, and false in each
            if kwargs.pop(name, False):
                raise ConfigError(f"{name} is true in the tokenizer's config; only false is supported.")

        named = [str(token) for token in (bos_token, eos_token, end_token, mask_token, gmask_token)]
        named += [str(token) for token in (pad_token, unk_token)]
        # The order in which ChatGLM2 puts them behind its vocabulary, which holds none of the first five.
        self._added_tokens_decoder = self._place_missing(
            (str(mask_token), str(gmask_token), "[sMASK]", str(bos_token), str(eos_token), *named)
        )
        image_token_id = self._check_image_token_id(image_token_id, str(eos_token), named)
        self._added_tokens_decoder[image_token_id] = _special(image_token)

        control = self.pieces.control
        self.pieces.reserve(image_token_id - num_image_tokens)
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

    def _place_missing(self, tokens: Iterable[str]) -> dict[int, AddedToken]:
        """Control tokens that the vocabulary lacks, at the ids behind it."""
        missing = [token for token in dict.fromkeys(tokens) if not self.pieces.has(token)]
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

    @property
    def sp_model(self) -> Any:
        """The sentencepiece processor."""
        return self.pieces.sp_model

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
        return [self.sp_model.id_to_piece(index) for index in self.pieces.encode(text)]

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
