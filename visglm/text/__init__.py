"""Text backbones, by the `model_type` of their configuration.

A backbone is a transformers model without head, `forward(inputs_embeds, attention_mask, position_ids, token_type_ids,
past_key_values, use_cache) -> BaseModelOutputWithPast`, that also knows its own positions and masks:

- `prompt_inputs(config, input_ids, attention_mask)`: what `generate` carries beside the ids (positions, token types);
- `extend_position_ids(position_ids, num_new_tokens)`: positions after decoding that many more tokens;
- `create_masks_for_generate(…)`: the 4-D mask for static caches;
- `reads_prefix_both_ways`: whether the prompt is one bidirectional block, which rules out cutting it up.

A newcomer's file registers one class here.
"""

from __future__ import annotations

from typing import Any

from .chatglm import ChatGLMModel
from .glm import GlmTextModel

BACKBONES: dict[str, Any] = {
    ChatGLMModel.config_class.model_type: ChatGLMModel,
    GlmTextModel.config_class.model_type: GlmTextModel,
}

__all__ = ["BACKBONES", "ChatGLMModel", "GlmTextModel"]
