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
    GMASK,
    LANGUAGES,
    PROMPT_STYLES,
    SOP,
    Control,
    Mark,
    PromptStyle,
    Segments,
    Slots,
    Style,
    Thinking,
    detect_language,
    plain_punctuation,
    postprocess,
    rules_of,
    settled,
)

__all__ = [
    "CHINESE", "GMASK", "IGNORE_INDEX", "IMAGE_PLACEHOLDER", "LANGUAGES", "PROMPT_STYLES", "SOP", "Control", "Mark",
    "PromptStyle", "Reference", "Rendered", "Segments", "Slots", "Style", "Thinking", "Turn", "detect_language", "fit",
    "messages_to_turns", "plain_punctuation", "postprocess", "render", "render_blank", "render_raw", "render_text",
    "rules_of", "settled", "training_rows",
]  # fmt: skip
