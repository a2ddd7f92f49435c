"""Tokenizers of ChatGLM2, ChatGLM3 (sentencepiece) and GLM-4 (byte pairs, as tiktoken or `tokenizer.json`)."""

from __future__ import annotations

import base64
import binascii
import heapq
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..errors import CheckpointError
from ..untrusted import from_pretrained, told
from .chatglm import ChatGLMTokenizer

VOCABULARY, FAST_VOCABULARY = "tokenizer.model", "tokenizer.json"
IMAGE_TOKEN = "<|image|>"
SLOT = {"image_token": IMAGE_TOKEN}  # room for pictures; its id is the next one
# In the order in which the published tokenizers put them behind their vocabularies.
BLANK_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
GLM4_TOKENS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *ROLE_TOKENS),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
)
MAX_VOCABULARY_BYTES = 2**24  # GLM-4's has 2.6 million
# How GLM-4 cuts text before it looks for byte pairs.
GLM4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


class ChatGLM2Tokenizer(ChatGLMTokenizer):
    """Tokenizer of ChatGLM2-6B and ChatGLM3-6B: plain sentencepiece with byte fallback, control tokens behind it.

    As in `ChatGLMTokenizer`, nothing that someone typed becomes a control token.

    Args:
        vocab_file: path of `tokenizer.model`.
        role_tokens: the control tokens of ChatGLM3's conversations come last.
    """

    vocab_files_names = {"vocab_file": VOCABULARY}
    has_whitespace_pieces = False

    def __init__(self, vocab_file: str, role_tokens: bool = False, **kwargs: Any) -> None:
        self._behind = (*BLANK_TOKENS, *(ROLE_TOKENS if role_tokens else ()), IMAGE_TOKEN)
        defaults = {
            "bos_token": "sop", "eos_token": "</s>", "end_token": "eop", "gmask_token": "[gMASK]",
            "mask_token": "[MASK]", "pad_token": "<unk>", "unk_token": "<unk>", "image_token": IMAGE_TOKEN,
        }  # fmt: skip
        super().__init__(vocab_file, role_tokens=role_tokens, **{**kwargs, **defaults})

    def _place_missing(self, tokens: Iterable[str]) -> dict[int, AddedToken]:
        return super()._place_missing(self._behind)

    def _check_image_token_id(self, image_token_id: int | None, eos_token: str, named: Iterable[str]) -> int:
        return self._id_of(IMAGE_TOKEN)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`[gMASK] sop text`, and `</s>` behind a pair."""
        start = [self.gmask_token_id, self.bos_token_id, *token_ids_0]
        return start if token_ids_1 is None else [*start, *token_ids_1, self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        mask = [1, 1] + [0] * len(token_ids_0)
        return mask if token_ids_1 is None else [*mask, *[0] * len(token_ids_1), 1]


def load_glm_tokenizer(folder: Path, style: str) -> Any:
    """The tokenizer in a folder of ChatGLM2, ChatGLM3 or GLM-4.

    Raises:
        CheckpointError: there is no vocabulary, or the file under its name is something else.
    """
    if (folder / FAST_VOCABULARY).is_file():
        return from_pretrained(PreTrainedTokenizerFast, folder, padding_side="left", extra_special_tokens=SLOT)
    vocabulary = folder / VOCABULARY
    if not vocabulary.is_file():
        raise CheckpointError(
            folder,
            [f"the tokenizer's vocabulary is missing: neither {VOCABULARY} nor {FAST_VOCABULARY} is there"],
            "Copy it from the model's release, or name the folder that has it with tokenizer=….",
        )
    if is_tiktoken(vocabulary):
        return build_glm4_tokenizer(vocabulary)
    return ChatGLM2Tokenizer(str(vocabulary), role_tokens=style == "chatglm3")


def is_tiktoken(vocabulary: Path) -> bool:
    """Whether the file lists byte strings in base64 with their ranks, one a line."""
    with vocabulary.open("rb") as file:
        return re.fullmatch(rb"[A-Za-z0-9+/=]+ \d+\s*", file.readline(256)) is not None


def build_glm4_tokenizer(vocabulary: Path) -> PreTrainedTokenizerFast:
    """GLM-4's tokenizer from its tiktoken file.

    Raises:
        CheckpointError: a line of it cannot be read, or it is larger than a vocabulary can be.
    """
    ranks: dict[bytes, int] = {}
    if (size := vocabulary.stat().st_size) > MAX_VOCABULARY_BYTES:
        raise CheckpointError(
            vocabulary, [f"{size:,} bytes, expected at most {MAX_VOCABULARY_BYTES:,}"], "Download it again."
        )
    for number, line in enumerate(vocabulary.read_bytes().splitlines(), start=1):
        try:
            word, rank = line.split()
            ranks[base64.b64decode(word, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise CheckpointError(
                vocabulary, [f"line {number} is no byte string with its rank"], "Download it again; it may be cut off."
            ) from None
    letters = bytes_to_unicode()

    def spell(word: bytes) -> str:
        return "".join(letters[byte] for byte in word)

    merges: Any = [
        tuple(map(spell, _last_merge(ranks, word))) for word in sorted(ranks, key=ranks.__getitem__) if len(word) > 1
    ]
    with told(vocabulary, "the vocabulary", "Download it again; it may be cut off."):
        tokenizer = Tokenizer(BPE({spell(word): rank for word, rank in ranks.items()}, merges, fuse_unk=False))
    cut = pre_tokenizers.Split(Regex(GLM4_PATTERN), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in GLM4_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", padding_side="left",
        extra_special_tokens=SLOT,
    )  # fmt: skip


def _last_merge(ranks: Mapping[bytes, int], word: bytes) -> tuple[bytes, bytes]:
    """The two parts whose merging, in order of rank and from left to right, makes `word`."""
    parts: list[bytes] = [word[place : place + 1] for place in range(len(word))]
    after, before = list(range(1, len(word) + 1)), list(range(-1, len(word) - 1))  # places of the neighbours
    waiting: list[tuple[int, int, bytes]] = []

    def look_at(place: int) -> None:
        if place >= 0 and after[place] < len(word):
            pair = parts[place] + parts[after[place]]
            heapq.heappush(waiting, (ranks.get(pair, len(ranks)), place, pair))

    for place in range(len(word)):
        look_at(place)
    for _ in range(len(word) - 2):
        while True:  # leave out pairs one half of which has gone into another since
            _, place, pair = heapq.heappop(waiting)
            if parts[place] and after[place] < len(word) and parts[place] + parts[after[place]] == pair:
                break
        gone = after[place]
        parts[place], parts[gone], after[place] = pair, b"", after[gone]
        if after[place] < len(word):
            before[after[place]] = place
        look_at(before[place])
        look_at(place)
    return parts[0], parts[after[0]]
