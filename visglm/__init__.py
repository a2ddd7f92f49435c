"""visglm: chat about images in Chinese and English. `from visglm import VisGLM` is all most people need.

Importing it registers the configurations, models and processors with transformers' Auto classes, nothing else.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from .config import PRESETS, ChatGLMConfig, VisGLMConfig, VisGLMVisionConfig
from .errors import VisGLMError

AutoConfig.register(ChatGLMConfig.model_type, ChatGLMConfig)
AutoConfig.register(VisGLMConfig.model_type, VisGLMConfig)

from .model import VisGLMForConditionalGeneration, VisGLMModel  # noqa: E402 (its text_config is looked up by AutoConfig)
from .text import ChatGLMModel  # noqa: E402

AutoModel.register(ChatGLMConfig, ChatGLMModel)
AutoModel.register(VisGLMConfig, VisGLMModel)
AutoModelForImageTextToText.register(VisGLMConfig, VisGLMForConditionalGeneration)

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "ChatGLMConfig",
    "VisGLMConfig",
    "VisGLMError",
    "VisGLMForConditionalGeneration",
    "VisGLMVisionConfig",
]
