"""ChatGLM2, ChatGLM3 and GLM-4: transformers' Glm, a causal model with ordinary positions."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GlmConfig, GlmModel
from transformers.masking_utils import create_masks_for_generate


class GlmTextModel(GlmModel):
    """`GlmModel` with the backbone interface of `visglm.text`; being causal, it needs nothing beyond the ids."""

    config_class = GlmConfig
    reads_prefix_both_ways = False
    attention_name = "self_attn"

    @staticmethod
    def prompt_inputs(config: GlmConfig, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
        """Positions count the real tokens: `position_ids [batch, length]`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return {"position_ids": (attention_mask.long().cumsum(-1) - 1).clamp(min=0)}

    @staticmethod
    def extend_position_ids(position_ids: Tensor, num_new_tokens: int) -> Tensor:
        steps = torch.arange(1, num_new_tokens + 1, device=position_ids.device, dtype=position_ids.dtype)
        return torch.cat([position_ids, position_ids[:, -1:] + steps], dim=-1)

    @staticmethod
    def create_masks_for_generate(config, *args, **kwargs):
        return create_masks_for_generate(config.get_text_config(), *args, **kwargs)

    def forward(self, *args, token_type_ids: Tensor | None = None, **kwargs):
        """As `GlmModel.forward`; token types mean nothing to a causal model."""
        return super().forward(*args, **kwargs)
