"""Text backbones, by the `model_type` of their configuration.

A backbone is a transformers model without head, `forward(inputs_embeds, attention_mask, position_ids, token_type_ids,
past_key_values, use_cache) -> BaseModelOutputWithPast`, that also knows its own positions and masks:

- `prompt_inputs(config, input_ids, attention_mask)`: what `generate` carries beside the ids (positions, token types);
- `extend_position_ids(position_ids, num_new_tokens)`: positions after decoding that many more tokens;
- `create_masks_for_generate(…)`: the 4-D mask for static caches;
- `reads_prefix_both_ways`: whether the prompt is one bidirectional block, which rules out cutting it up;
- `attention_name`: under which its layers, `layers`, keep their attention, for P-Tuning's prefixes;
- `_no_split_modules`: the classes of its layers, which no device map may cut through.

A newcomer's file registers one class here; its configuration is known to the Auto classes by that.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..config import TEXT_CONFIGS
from .chatglm import ChatGLMModel
from .glm import GlmTextModel

BACKBONES: dict[str, Any] = {}


def register(backbone: Any) -> None:
    """Make a class a row of `BACKBONES`, so that `VisGLMConfig(text_config={"model_type": …})` finds it."""
    model_type = backbone.config_class.model_type
    if model_type not in CONFIG_MAPPING:
        AutoConfig.register(model_type, backbone.config_class)
    TEXT_CONFIGS[model_type] = backbone.config_class
    BACKBONES[model_type] = backbone


for backbone in (ChatGLMModel, GlmTextModel):
    register(backbone)

__all__ = ["BACKBONES", "ChatGLMModel", "GlmTextModel", "register"]
