"""visglm: chat about images in Chinese and English. `from visglm import VisGLM` is all most people need.

Importing it makes transformers' Auto classes know its models, nothing else; names are loaded when they are used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MissingDependencyError
from .imports import collector_paused

if TYPE_CHECKING:
    from .chat import VisGLM
    from .config import PRESETS, ChatGLMConfig, VisGLMConfig, VisGLMVisionConfig
    from .errors import VisGLMError
    from .explanation import Explanation
    from .library import Library
    from .model import VisGLMForConditionalGeneration, VisGLMModel
    from .pictures import ImageLimits, load_image
    from .pictures.preprocess import VisGLMImageProcessor
    from .processor import VisGLMProcessor
    from .remote import RemoteVisGLM
    from .reply import Citation, History, Reply
    from .stream import ReplyStream
    from .tokenizers import ChatGLMTokenizer

__version__ = "0.1.0"

# Public name → the module that has it.
_MODULES = {
    "PRESETS": "config",
    "ChatGLMConfig": "config",
    "ChatGLMTokenizer": "tokenizers",
    "Citation": "reply",
    "Explanation": "explanation",
    "History": "reply",
    "ImageLimits": "pictures",
    "Library": "library",
    "RemoteVisGLM": "remote",
    "Reply": "reply",
    "ReplyStream": "stream",
    "VisGLM": "chat",
    "VisGLMConfig": "config",
    "VisGLMError": "errors",
    "VisGLMForConditionalGeneration": "model",
    "VisGLMImageProcessor": "pictures.preprocess",
    "VisGLMModel": "model",
    "VisGLMProcessor": "processor",
    "VisGLMVisionConfig": "config",
    "load_image": "pictures",
}

__all__ = [
    "PRESETS",
    "ChatGLMConfig",
    "ChatGLMTokenizer",
    "Citation",
    "Explanation",
    "History",
    "ImageLimits",
    "Library",
    "RemoteVisGLM",
    "Reply",
    "ReplyStream",
    "VisGLM",
    "VisGLMConfig",
    "VisGLMError",
    "VisGLMForConditionalGeneration",
    "VisGLMImageProcessor",
    "VisGLMModel",
    "VisGLMProcessor",
    "VisGLMVisionConfig",
    "load_image",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'visglm' has no attribute {name!r}")
    try:
        with collector_paused():
            module = importlib.import_module(f".{_MODULES[name]}", __name__)
    except ModuleNotFoundError as error:
        if _has_network():
            raise
        raise MissingDependencyError(
            f"visglm.{name} needs torch, and this is visglm-light, which answers without: from visglm.light import "
            "VisGLM. For all of visglm: pip uninstall visglm-light, then pip install visglm"
        ) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_command_line() -> bool:
    """Whether this process is `visglm …` or `python -m visglm …`, whose help must not wait for torch."""
    program = sys.orig_argv[1:3]
    return program == ["-m", "visglm"] or bool(program and Path(program[0]).stem in ("visglm", "visglm-light"))


def _has_network() -> bool:
    """Whether this is all of visglm. The distribution `visglm-light` has what works without torch."""
    return importlib.util.find_spec(f"{__name__}.auto") is not None


def _prepare_notebook() -> None:
    """Load tqdm's bars before transformers does: without ipywidgets they warn, and there is nothing to be done that
    would matter. Its plain bars are as good."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        importlib.import_module("tqdm.auto")


if not _is_command_line() and _has_network():
    with collector_paused():
        _prepare_notebook()
        from . import auto, drop_in  # noqa: F401 (imported for what they register)
