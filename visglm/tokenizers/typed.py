"""Ids of text that anybody typed: nothing in it is read as a control token, whatever a vocabulary says of them."""

from __future__ import annotations

import importlib
import json
import weakref
from typing import Any

from ..errors import PromptError

# Of tokenizers whose files have control tokens that they do not call special: the same vocabulary without them.
_PLAIN: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def typed_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of plain text.

    A tokenizer told to leave special tokens leaves those only: GLM-4.1V's file has `<think>` as an ordinary token that
    was added, and would find it in what a user types.

    Raises:
        PromptError: the vocabulary itself spells a control token so that it cannot be kept out of this text.
    """
    added = added_ids(tokenizer)
    if not added - set(tokenizer.all_special_ids):
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    ids = plain_backend(tokenizer).encode(text, add_special_tokens=False).ids
    if not added.isdisjoint(ids):
        names = ", ".join(sorted({tokenizer.convert_ids_to_tokens(index) for index in added.intersection(ids)}))
        raise PromptError(f"the text holds {names}, which this vocabulary cannot spell in letters. Write it otherwise.")
    return ids


def added_ids(tokenizer: Any) -> set[int]:
    """Every token that was added to a vocabulary of byte pairs, special or not; of other tokenizers none, which never
    read one out of text."""
    return set(tokenizer.added_tokens_decoder) if hasattr(tokenizer, "backend_tokenizer") else set()


def plain_backend(tokenizer: Any) -> Any:
    """What makes byte pairs of text, and knows of nothing that was added to them."""
    if tokenizer not in _PLAIN:
        fields = json.loads(tokenizer.backend_tokenizer.to_str())
        fields |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        _PLAIN[tokenizer] = importlib.import_module("tokenizers").Tokenizer.from_str(json.dumps(fields))
    return _PLAIN[tokenizer]
