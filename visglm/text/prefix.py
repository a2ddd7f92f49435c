"""P-Tuning v2: learned keys and values that every token of every layer can look at.

They stand beside the cache, not in it: positions, token types and caches of any kind are those of the model without
them. (peft's own `PrefixTuning` puts them into the cache, which shifts both position planes and drops the token types
that say where the prompt ends.) Saved, they have peft's layout: `num_virtual_tokens × (layers · 2 · hidden size)`.

Source: P-Tuning v2 (https://arxiv.org/abs/2110.07602), SwissArmyTransformer's `PTuningV2Mixin`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ConfigError


class Prefix(nn.Module):
    """The prefix of one layer.

    Args:
        num_heads: heads of keys and values. head_dim: their size.
        num_virtual_tokens: positions of the prefix.
    """

    def __init__(self, num_heads: int, num_virtual_tokens: int, head_dim: int, **factory):
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, num_heads, num_virtual_tokens, head_dim, **factory) * 0.01)

    def forward(self, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put the prefix in front of keys and values `[batch, heads, length, head_dim]` and open the mask for it."""
        prefix_key, prefix_value = repeat(self.table.to(key.dtype), "kv h n d -> kv b h n d", b=key.shape[0])
        if mask is not None:
            mask = F.pad(mask, (self.table.shape[2], 0), value=True if mask.dtype == torch.bool else 0.0)
        return torch.cat([prefix_key, key], dim=2), torch.cat([prefix_value, value], dim=2), mask


def attach_prefix(text: PreTrainedModel, num_virtual_tokens: int) -> list[Prefix]:
    """Give every layer of a text backbone a prefix of its own; returns them, first layer first.

    Raises:
        ConfigError: the backbone has no place for one, has one already, or the length is not positive.
    """
    if num_virtual_tokens < 1:
        raise ConfigError(f"num_virtual_tokens must be at least 1; got {num_virtual_tokens!r}.")
    attentions = [getattr(layer, "attention", None) for layer in text.layers]
    if not all(hasattr(attention, "prefix") for attention in attentions):
        raise ConfigError(
            f"P-Tuning needs a text model whose attention takes a prefix; {type(text).__name__} does not. Use LoRA."
        )
    if attentions[0].prefix is not None:
        raise ConfigError("this model has a prefix already. Detach it first, or load the base model.")
    for attention in attentions:
        weight = attention.dense.weight
        floating = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
        attention.prefix = Prefix(
            text.config.num_attention_heads, num_virtual_tokens, attention.head_dim, device=text.device, dtype=floating
        )
    return [attention.prefix for attention in attentions]


def detach_prefix(text: PreTrainedModel) -> None:
    """Take the prefixes away again."""
    for layer in text.layers:
        layer.attention.prefix = None


def prefixes(text: PreTrainedModel) -> list[Prefix]:
    """The prefixes of a text backbone, first layer first; empty if it has none."""
    found = [getattr(getattr(layer, "attention", None), "prefix", None) for layer in text.layers]
    return [prefix for prefix in found if prefix is not None]


def prompt_embeddings(text: PreTrainedModel) -> Tensor:
    """All prefixes as peft stores them, `[num_virtual_tokens, layers · 2 · hidden size]`."""
    tables = torch.stack([prefix.table.detach() for prefix in prefixes(text)])
    return rearrange(tables, "layer kv h n d -> n (layer kv h d)").contiguous()


@torch.no_grad()
def set_prompt_embeddings(text: PreTrainedModel, embeddings: Tensor) -> None:
    """The other way: tables from peft's layout.

    Raises:
        ConfigError: they are made for another number or size of layers.
    """
    places = prefixes(text)
    _, num_heads, num_virtual_tokens, head_dim = places[0].table.shape
    wanted = (num_virtual_tokens, len(places) * 2 * num_heads * head_dim)
    if tuple(embeddings.shape) != wanted:
        raise ConfigError(f"prompt_embeddings are {list(embeddings.shape)}; this model takes {list(wanted)}.")
    tables = rearrange(embeddings, "n (layer kv h d) -> layer kv h n d", layer=len(places), kv=2, d=head_dim)
    for prefix, table in zip(places, tables, strict=True):
        prefix.table.copy_(table)
