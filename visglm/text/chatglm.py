"""ChatGLM-6B's text model: the one network of the family that no library holds.

A prefix-LM: everything before `<sop>` attends both ways, the answer is causal. Positions are two planes, each rotating
one half of every head: (index, 0) in the prefix, (index of the blank being filled, 1, 2, …) from `<sop>` on.

Source: GLM (https://arxiv.org/abs/2103.10360), ChatGLM-6B (https://github.com/THUDM/ChatGLM-6B).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_masks_for_generate
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..config import ChatGLMConfig
from ..errors import PromptError

PREFIX, ANSWER = 0, 1


def prefix_token_types(config: ChatGLMConfig, input_ids: Tensor) -> Tensor:
    """`[batch, length]`: 0 before the first `<sop>`, 1 from it on.

    Raises:
        PromptError: a row has no `<sop>`, so nothing says where its prompt ends.
    """
    is_start = input_ids.eq(config.bos_token_id)
    if not bool(is_start.any(-1).all()):
        rows = (~is_start.any(-1)).nonzero().flatten().tolist()
        raise PromptError(
            f"rows {rows} of input_ids have no <sop> (id {config.bos_token_id}): the prompt of a prefix-LM ends with "
            "[gMASK] <sop>. Build it with the processor or with `tokenizer.build_inputs_with_special_tokens`."
        )
    return (is_start.cumsum(-1) > 0).long()


def two_plane_positions(
    config: ChatGLMConfig, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """`[2, batch, length]`, plane first so that `generate` repeats the batch and not the planes for beams."""
    index = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    in_prefix = token_type_ids == PREFIX
    # [gMASK], the blank at the end, wins over a [MASK] inside the text; without either, the last prefix token.
    length = input_ids.shape[-1]
    order = torch.arange(length, device=input_ids.device)
    rank = torch.where(in_prefix, order, -1)
    for token_id, bonus in ((config.mask_token_id, length), (config.gmask_token_id, 2 * length)):
        if token_id is not None:
            # The first blank of its kind is the one to fill.
            rank = torch.where(in_prefix & (input_ids == token_id), bonus + length - 1 - order, rank)
    blank = index.gather(-1, rank.argmax(-1, keepdim=True))
    return torch.stack([torch.where(in_prefix, index, blank), torch.where(in_prefix, 0, token_type_ids.cumsum(-1))])


def block_sequence_ids(token_type_ids: Tensor, past_length: int) -> Tensor:
    """Block 0 (attends both ways) for the prefix, -1 (causal) for the rest, at absolute cache indices.

    What is in the cache already is reachable causally, so its own block no longer matters.
    """
    return F.pad(torch.where(token_type_ids == PREFIX, 0, -1), (past_length, 0), value=-1)


def cached_length(cache: Cache | None) -> int:
    """Positions that are computed already."""
    return 0 if cache is None else int(cache.get_seq_length())


def rotate(hidden_states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[…, batch, heads, length, head_dim]`, each half of the head by its own position plane.

    Args:
        cos, sin: as `rotary_embedding` gives them; sin has the signs with which the halves of a plane change places.
    """
    planes = hidden_states.unflatten(-1, (2, -1))
    return (planes * cos + planes.roll(cos.shape[-1] // 2, -1) * sin).flatten(-2)


def rotary_embedding(config: ChatGLMConfig, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and signed sin `[batch, 1, length, 2, head_dim / 2]` of `position_ids [2, batch, length]`.

    Angles are float32, as in SwissArmyTransformer: half precision visibly drifts near position 2,000. They are computed
    here rather than kept in a buffer, which would come back as garbage from the meta device.
    """
    plane_size = config.head_dim // 2
    exponent = torch.arange(0, plane_size, 2, device=position_ids.device, dtype=torch.float32) / plane_size
    angles = rearrange(position_ids, "plane b l -> b 1 l plane 1") * config.rope_theta**-exponent
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float, dropout: float = 0.0, **kwargs,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention spelt out, for whoever wants the weights."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


class ChatGLMAttention(nn.Module):
    """Self-attention with one fused projection: `query_key_value`, all q, then all k, then all v."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = True
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        mixed = rearrange(self.query_key_value(hidden_states), "b l (qkv h d) -> qkv b h l d", qkv=3, d=self.head_dim)
        (query, key), value = rotate(mixed[:2], *position_embeddings), mixed[2]
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        # transformers looks for this very call before it lets `set_attn_implementation` have any effect.
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        context, weights = attend(
            self, query, key, value, attention_mask,
            dropout=self.attention_dropout if self.training else 0.0, scaling=self.scaling, **kwargs,
        )  # fmt: skip
        return self.dense(rearrange(context, "b l h d -> b l (h d)")), weights


class ChatGLMMLP(nn.Module):
    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh"))


class ChatGLMLayer(GradientCheckpointingLayer):
    """Post-LN block whose residual is the *normed* input times sqrt(2 · layers), as DeepNorm scales it."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.residual_scale = math.sqrt(2 * config.num_hidden_layers)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ChatGLMMLP(config)

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        normed = self.input_layernorm(hidden_states)
        hidden_states = normed * self.residual_scale + self.attention(normed, **kwargs)[0]
        normed = self.post_attention_layernorm(hidden_states)
        return normed * self.residual_scale + self.mlp(normed)


class ChatGLMModel(PreTrainedModel):
    """The decoder without its head: `inputs_embeds [batch, length, hidden_size]` or `input_ids` to hidden states."""

    config_class = ChatGLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    reads_prefix_both_ways = True
    attention_name = "attention"
    _no_split_modules = ["ChatGLMLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = False  # it ignores the mask function, and with it the prefix
    _supports_flex_attn = False
    _supports_attention_backend = True
    _supports_context_parallel = False

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ChatGLMLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @staticmethod
    def prompt_inputs(config: ChatGLMConfig, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
        """`token_type_ids [batch, length]` and `position_ids [2, batch, length]` of whole prompts."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        token_type_ids = prefix_token_types(config, input_ids)
        return {
            "token_type_ids": token_type_ids,
            "position_ids": two_plane_positions(config, input_ids, token_type_ids, attention_mask),
        }

    @staticmethod
    def extend_position_ids(position_ids: Tensor, num_new_tokens: int) -> Tensor:
        """Answer tokens stay at the blank in the first plane and count on in the second."""
        steps = torch.arange(1, num_new_tokens + 1, device=position_ids.device, dtype=position_ids.dtype)
        blank, count = position_ids[..., -1:]
        return torch.cat([position_ids, torch.stack([blank.expand(-1, num_new_tokens), count + steps])], dim=-1)

    @staticmethod
    def create_masks_for_generate(
        config, inputs_embeds, attention_mask, past_key_values, position_ids=None, token_type_ids=None, **kwargs
    ):
        """transformers' own drops the prefix for static caches; this one keeps it (as PaliGemma's does)."""
        past_length = cached_length(past_key_values)
        return create_masks_for_generate(
            config=config.get_text_config(),
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            block_sequence_ids=block_sequence_ids(token_type_ids, past_length),
        )

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """
        Args:
            attention_mask: `[batch, past + length]`, 0 at padding; or a ready 4-D mask.
            position_ids: `[2, batch, length]`. token_type_ids: `[batch, length]`, 0 prefix, 1 answer. Both are worked
                out from `input_ids` where those are whole prompts.

        Raises:
            PromptError: neither ids nor token types and positions say where the prefix ends.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise PromptError("give exactly one of input_ids and inputs_embeds.")
        if token_type_ids is None or position_ids is None:
            if input_ids is None or cached_length(past_key_values):
                raise PromptError(
                    "token_type_ids and position_ids are needed here: embeddings or the tail of a sequence do not say "
                    "where the prefix ends. Pass input_ids of the whole prompt, or both tensors."
                )
            derived = self.prompt_inputs(self.config, input_ids, attention_mask)
            token_type_ids = derived["token_type_ids"] if token_type_ids is None else token_type_ids
            position_ids = derived["position_ids"] if position_ids is None else position_ids
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        mask = attention_mask
        if mask is None or mask.dim() != 4:  # a ready one says all there is to say, and lengths may be symbols then
            # Positions stay out of this call: repeated ones would be read as packed sequences.
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                block_sequence_ids=block_sequence_ids(token_type_ids, cached_length(past_key_values)),
            )
        position_embeddings = rotary_embedding(self.config, position_ids, inputs_embeds.dtype)
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)
