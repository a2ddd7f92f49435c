"""Prompts: how text models were taught (`styles`), conversation to ids (`render`), what others write (`messages`)."""

from __future__ import annotations

from .messages import messages_to_turns
from .render import (
    IGNORE_INDEX,
    IMAGE_PLACEHOLDER,
    Reference,
    Rendered,
    Turn,
    fit,
    render,
    render_blank,
    render_raw,
    render_text,
    training_rows,
)
from .styles import (
    CHINESE,
    LANGUAGES,
    PROMPT_STYLES,
    Control,
    PromptStyle,
    Segments,
    detect_language,
    plain_punctuation,
    postprocess,
    settled,
)

__all__ = [
    "CHINESE", "IGNORE_INDEX", "IMAGE_PLACEHOLDER", "LANGUAGES", "PROMPT_STYLES", "Control", "PromptStyle",
    "Reference", "Rendered", "Segments", "Turn", "detect_language", "fit", "messages_to_turns", "plain_punctuation",
    "postprocess", "render", "render_blank", "render_raw", "render_text", "settled", "training_rows",
]  # fmt: skip
