"""What a model is loaded with: every argument held against its rule, then the checkpoint read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from ..errors import ConfigError
from ..pictures import ImageLimits
from ..settings import Rule, check_call

# A torch.dtype or torch.device by its name.
RULES: Mapping[str, Rule] = {
    "name_or_path": Rule(Path, optional=True),
    "device": Rule(str, hint='"auto" takes the fastest there is.'),
    "dtype": Rule(
        str,
        names=("auto", "float32", "bfloat16", "float16", "float64", "float", "half", "double"),
        hint='For weights in fewer bits, see quantize: "int8", "int4" or "nf4".',
    ),
    "image_size": Rule(int, 1, 8192, optional=True),
    "tokenizer": Rule(Path, optional=True),
    "base": Rule(Path, optional=True),
    "quantize": Rule(str, optional=True),
    "quantize_vision": Rule(bool),
    "allow_urls": Rule(bool),
    "image_limits": Rule(ImageLimits, optional=True),
}
OF_CHAT = ("allow_urls", "image_limits")  # which no checkpoint is asked about


def load(name_or_path: str | Path | None, **options: Any) -> checkpoint.Loaded:
    """What `VisGLM.from_pretrained` makes a model of; its arguments, and its errors."""
    options = plain(options)
    check_call(RULES, name_or_path=name_or_path, **options)
    return checkpoint.load(name_or_path, **of_checkpoint(options))


def load_parts(
    vision: str | Path | None, text: str | Path, tokenizer: str | Path | None, **options: Any
) -> checkpoint.Loaded:
    """What `VisGLM.from_parts` makes a model of; its arguments, and its errors."""
    if unknown := [name for name in options if name not in RULES or name in ("name_or_path", "base")]:
        raise ConfigError(f"from_parts takes no {', '.join(unknown)}; its options are those of from_pretrained.")
    options = plain(options)
    check_call(RULES, name_or_path=vision, tokenizer=tokenizer, **options)
    check_call({"text": Rule(Path)}, text=text)
    source = checkpoint.PartsSource(checkpoint.open_source(vision), checkpoint.open_source(text, tokenizer))
    return checkpoint.realize(source, **of_checkpoint(options))


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """A torch.dtype or torch.device by its name; everything else as it is."""
    return {
        name: str(value).removeprefix("torch.") if isinstance(value, torch.dtype | torch.device) else value
        for name, value in options.items()
    }


def of_checkpoint(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in OF_CHAT}
