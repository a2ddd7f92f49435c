"""Tokenizers of the text models: ChatGLM's over sentencepiece, and those of ChatGLM2, ChatGLM3 and GLM-4."""

from __future__ import annotations

from .chatglm import VOCAB_FILE_NAME, ChatGLMTokenizer, StreamDecoder
from .glm import ChatGLM2Tokenizer, is_tiktoken, load_glm_tokenizer
from .spelling import token_bytes

__all__ = [
    "VOCAB_FILE_NAME", "ChatGLM2Tokenizer", "ChatGLMTokenizer", "StreamDecoder", "is_tiktoken", "load_glm_tokenizer",
    "token_bytes",
]  # fmt: skip
