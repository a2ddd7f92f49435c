"""Tokenizers without transformers, of what `visglm export` wrote of one: the ids that prompts and answers need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import require
from ..untrusted import told
from .pieces import Detokenizer, Pieces


class PlainTokenizer(ABC):
    """What `visglm.prompt` renders with and answers are decoded with.

    Args:
        fields: `tokens` by name, `special_ids`, and the ids `eos_token_id`, `unk_token_id` and `image_token_id`, of
            which the last two may be None.
    """

    def __init__(self, fields: Mapping[str, Any]):
        self.tokens: dict[str, int] = dict(fields["tokens"])
        self._names = {index: name for name, index in self.tokens.items()}
        self.all_special_ids: list[int] = list(fields["special_ids"])
        self.eos_token_id: int = fields["eos_token_id"]
        self.unk_token_id: int | None = fields["unk_token_id"]
        self.image_token_id: int | None = fields["image_token_id"]

    @abstractmethod
    def encode(self, text: str, **options: Any) -> list[int]:
        """Ids of plain text, in which nothing is read as a control token, whatever the options."""

    @abstractmethod
    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of ids, without control tokens."""

    @abstractmethod
    def __len__(self) -> int:
        """How many tokens there are, those of control among them."""

    def convert_tokens_to_ids(self, name: str) -> int | None:
        """The id of a control token; without one, that of what is unknown."""
        return self.tokens.get(name, self.unk_token_id)


class PieceTokenizer(PlainTokenizer):
    """Over sentencepiece.

    Args:
        pieces: the vocabulary. fields: as of `PlainTokenizer`, with `num_image_tokens`.
    """

    def __init__(self, pieces: Pieces, fields: Mapping[str, Any]):
        super().__init__(fields)
        self.pieces = pieces
        self.num_image_tokens: int = fields["num_image_tokens"]
        slot = self.image_token_id
        pieces.reserve(None if slot is None else slot - self.num_image_tokens)
        self.vocab_size = len(pieces) + self.num_image_tokens

    def __len__(self) -> int:
        return max(self.vocab_size, *(index + 1 for index in self.tokens.values()))

    def encode(self, text: str, **options: Any) -> list[int]:
        return [index + self.num_image_tokens for index in self.pieces.encode(text)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        detokenizer, special = Detokenizer(), set(self.all_special_ids)
        names = self.convert_ids_to_tokens([index for index in ids if index not in special])
        return "".join(map(detokenizer.feed, names)) + detokenizer.flush()

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self._name(index) for index in ids]

    def _name(self, index: int) -> str:
        if index in self._names:
            return self._names[index]
        if index < self.num_image_tokens:
            return f"<image_{index}>"
        if index >= self.vocab_size:  # the embedding may have more rows than the vocabulary has pieces
            return "<unk>"
        return self.pieces.sp_model.id_to_piece(index - self.num_image_tokens)

    def detokenizer(self) -> Detokenizer:
        """What spells pieces one by one, for `StreamDecoder`."""
        return Detokenizer()


class PairTokenizer(PlainTokenizer):
    """Over byte pairs, GLM-4's, by the library `tokenizers`."""

    def __init__(self, tokenizer: Any, fields: Mapping[str, Any]):
        super().__init__(fields)
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # what is typed stays text
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        return [self._tokenizer.id_to_token(index) for index in ids]

    def encode(self, text: str, **options: Any) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        special = set(self.all_special_ids)
        return self._tokenizer.decode([index for index in ids if index not in special], skip_special_tokens=False)


def load_plain(path: Path, fields: Mapping[str, Any]) -> PlainTokenizer:
    """The tokenizer of a vocabulary's file.

    Args:
        fields: as `visglm export` writes them: those of the class, and `kind`.

    Raises:
        CheckpointError: the file is damaged. MissingDependencyError: GLM-4's needs the package `tokenizers`.
    """
    if fields["kind"] == "byte pairs":
        library = require("glm4", "tokenizers", distribution="visglm-light")
        with told(path.parent, "the vocabulary"):
            return PairTokenizer(library.Tokenizer.from_file(str(path)), fields)
    return PieceTokenizer(Pieces(str(path), None, fields["kind"] == "sentencepiece with whitespace"), fields)
