"""P-Tuning v2: learnt keys and values in front of every layer's own, without position and seen by every token.

They are put in where attention is computed, behind the cache: caches, positions and masks of the backbone know nothing
of them, so that generation, beams and static caches stay as they are. Rotary embedding does not touch them.

Source: P-Tuning v2 (https://arxiv.org/abs/2110.07602), as SwissArmyTransformer's PTuningV2Mixin computes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IMPLEMENTATION = "visglm_prefix"
ATTENTION_NAMES = ("attention", "self_attn")  # of a layer of each backbone


def attend_with_prefix(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, Tensor | None]:
    """SDPA, with `module.prefix [2, key heads, num_tokens, head_dim]` in front of key and value."""
    if getattr(module, "prefix", None) is None or not module.prefix_enabled:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)
    num_queries, num_keys, num_tokens = query.shape[2], key.shape[2], module.prefix.shape[2]
    if attention_mask is None and num_queries > 1:  # SDPA would take the prefix for the start of a causal sequence
        order = torch.arange(num_keys, device=key.device)
        attention_mask = (order <= order[num_keys - num_queries :, None])[None, None]
    if attention_mask is not None:
        visible = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = F.pad(attention_mask[..., :num_keys], (num_tokens, 0), value=visible)
    prefix = module.prefix.to(key.dtype).unsqueeze(1).expand(-1, key.shape[0], -1, -1, -1)
    key, value = torch.cat([prefix[0], key], dim=2), torch.cat([prefix[1], value], dim=2)
    kwargs["is_causal"] = False
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(IMPLEMENTATION, attend_with_prefix)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def attentions(text: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Each layer's attention, with its name inside the backbone."""
    for number, layer in enumerate(text.layers):
        name = next(name for name in ATTENTION_NAMES if hasattr(layer, name))
        yield f"layers.{number}.{name}", getattr(layer, name)


def add_prefix(text: PreTrainedModel, num_tokens: int) -> None:
    """Give every layer of a backbone a prefix of `num_tokens` positions, random as its weights once were."""
    config = text.config
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    for _, module in attentions(text):
        weight = next(module.parameters())
        size = (2, num_heads, num_tokens, module.head_dim)
        prefix = torch.empty(size, device=weight.device).normal_(std=config.initializer_range)
        module.prefix = nn.Parameter(prefix)
        module.prefix_enabled = True
    config._attn_implementation = IMPLEMENTATION


def enable_prefix(text: PreTrainedModel, enabled: bool) -> None:
    """Switch the prefixes on or off."""
    for _, module in attentions(text):
        module.prefix_enabled = enabled
