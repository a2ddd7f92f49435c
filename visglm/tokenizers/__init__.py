"""Tokenizers of the text models: ChatGLM's over sentencepiece, and those of ChatGLM2, ChatGLM3 and GLM-4.

`pieces`, `plain`, `spelling` and `typed` know nothing of transformers; what needs it is loaded when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .pieces import VOCAB_FILE_NAME, Pieces, StreamDecoder, control_ids
from .plain import PlainTokenizer, load_plain
from .spelling import token_bytes
from .typed import typed_ids

if TYPE_CHECKING:
    from .chatglm import ChatGLMTokenizer
    from .glm import ChatGLM2Tokenizer, is_tiktoken, load_glm_tokenizer

# Name → the module that has it, which imports transformers.
_MODULES = {
    "ChatGLMTokenizer": "chatglm",
    "ChatGLM2Tokenizer": "glm",
    "is_tiktoken": "glm",
    "load_glm_tokenizer": "glm",
}

__all__ = [
    "VOCAB_FILE_NAME", "ChatGLM2Tokenizer", "ChatGLMTokenizer", "Pieces", "PlainTokenizer", "StreamDecoder",
    "control_ids", "is_tiktoken", "load_glm_tokenizer", "load_plain", "token_bytes", "typed_ids",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
