"""Makes transformers' Auto classes and pipelines know the models, processors and tokenizer of visglm."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from .config import ChatGLMConfig, VisGLMConfig

AutoConfig.register(VisGLMConfig.model_type, VisGLMConfig)

from .model import VisGLMForConditionalGeneration, VisGLMModel  # noqa: E402 (its text_config is looked up by AutoConfig)
from .pictures.preprocess import VisGLMImageProcessor  # noqa: E402
from .processor import VisGLMProcessor  # noqa: E402
from .text import ChatGLMModel  # noqa: E402
from .tokenizers import ChatGLM2Tokenizer, ChatGLMTokenizer  # noqa: E402

AutoModel.register(ChatGLMConfig, ChatGLMModel)
AutoModel.register(VisGLMConfig, VisGLMModel)
AutoModelForImageTextToText.register(VisGLMConfig, VisGLMForConditionalGeneration)
# For either backend: the preferred one would otherwise be reported as missing with every model that is loaded.
AutoImageProcessor.register(
    VisGLMConfig, image_processor_classes=dict.fromkeys(("pil", "torchvision"), VisGLMImageProcessor)
)
AutoTokenizer.register(VisGLMConfig, tokenizer_class=ChatGLMTokenizer)
AutoProcessor.register(VisGLMConfig, VisGLMProcessor)
# Found by its name, which tokenizer_config.json has; the table wants a configuration of ours that is not taken yet.
AutoTokenizer.register(ChatGLMConfig, tokenizer_class=ChatGLM2Tokenizer)
