"""P-Tuning v2: learnt keys and values in front of every layer's own, without position and seen by every token.

They are put in where attention is computed, behind the cache: caches, positions and masks of the backbone know nothing
of them, so that generation, beams and static caches stay as they are. Rotary embedding does not touch them.

Source: P-Tuning v2 (https://arxiv.org/abs/2110.07602), as SwissArmyTransformer's PTuningV2Mixin computes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ConfigError

IMPLEMENTATIONS = ("eager", "sdpa")  # of attention that take keys, values and a mask of any length


class PrefixedCache:
    """What an attention takes for its cache: the real one, if there is any, behind `prefix`.

    Args:
        prefix: `[2, key heads, num_tokens, head_dim]`, keys and values.
    """

    def __init__(self, cache: Any, prefix: Tensor):
        self.cache = cache
        self.prefix = prefix

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values `[batch, key heads, num_tokens + length, head_dim]`; the prefix itself is never stored."""
        if self.cache is not None:
            key, value = self.cache.update(key, value, *args, **kwargs)
        prefix = self.prefix.to(key.dtype).unsqueeze(1).expand(-1, key.shape[0], -1, -1, -1)
        return torch.cat([prefix[0], key], dim=2), torch.cat([prefix[1], value], dim=2)


def put_prefix(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Forward pre-hook of an attention: its prefix goes in front of keys, values and mask.

    Raises:
        ConfigError: the attention is computed in a way that might not see it.
    """
    if module.prefix is None:
        return None
    implementation = module.config._attn_implementation or "eager"
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(
            f"a P-Tuning prefix works with {' or '.join(IMPLEMENTATIONS)} attention; this text model computes with "
            f'{implementation!r}. Call set_attn_implementation("sdpa") on it.'
        )
    hidden_states = args[0] if args else kwargs["hidden_states"]
    mask, num_queries = kwargs["attention_mask"], hidden_states.shape[1]
    if mask is None and num_queries > 1:
        # It says "causal, and nothing cached before". With a prefix, SDPA would count from the prefix on.
        mask = torch.ones(num_queries, num_queries, dtype=torch.bool, device=hidden_states.device).tril()[None, None]
    if mask is not None:
        mask = F.pad(mask, (module.prefix.shape[2], 0), value=True if mask.dtype == torch.bool else 0.0)
    cache = PrefixedCache(kwargs["past_key_values"], module.prefix)
    return args, kwargs | {"attention_mask": mask, "past_key_values": cache}


def attentions(text: Any) -> Iterator[tuple[str, Any]]:
    """Each layer's attention, with its name inside the backbone."""
    for number, layer in enumerate(text.layers):
        yield f"layers.{number}.{text.attention_name}", getattr(layer, text.attention_name)


def prefix_shape(config: Any, module: Any) -> tuple[int, int]:
    """Key heads and head size of an attention: the axes of its prefix that the backbone settles."""
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads, module.head_dim


def put_prefixes(text: PreTrainedModel, tables: Mapping[str, nn.Parameter]) -> None:
    """Give attentions their prefixes `[2, key heads, num_tokens, head_dim]`.

    Args:
        tables: name of the attention, as `attentions` gives it → its prefix.
    """
    for name, module in attentions(text):
        if not hasattr(module, "prefix"):
            module.register_forward_pre_hook(put_prefix, with_kwargs=True)
        module.register_parameter("prefix", tables[name])


def take_prefixes(text: PreTrainedModel) -> None:
    """Take the prefixes away again."""
    for _, module in attentions(text):
        if hasattr(module, "prefix"):
            module.register_parameter("prefix", None)  # it has its hook, which then does nothing
