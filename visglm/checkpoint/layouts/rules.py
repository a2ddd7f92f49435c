"""Rename rules as data: one table for each layout, read left to right to import and right to left to export.

In a pattern, `{layer}` runs over the layers of its tower, `{previous}` is the layer before, `{kind}` is weight and
bias, and `{vision}` is where the layout keeps the image encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ...config import VisGLMConfig

Split = Callable[[Tensor, VisGLMConfig], list[Tensor]]
Join = Callable[[list[Tensor], VisGLMConfig], Tensor]


@dataclass(frozen=True)
class Transform:
    """What happens to a tensor on its way: `split` from the old layout, `join` back to it, to the bit."""

    split: Split
    join: Join


def _grouped_sizes(config: VisGLMConfig) -> list[int]:
    text = config.text_config
    return [text.num_attention_heads * text.head_dim, *[text.num_key_value_heads * text.head_dim] * 2]


def _heads(config: VisGLMConfig) -> int:
    return config.text_config.num_attention_heads


def _rotary_frequencies(size: int, theta: float) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)


TRANSFORMS: dict[str, Transform] = {
    "same": Transform(lambda tensor, config: [tensor], lambda parts, config: parts[0]),
    "batch axis": Transform(lambda tensor, config: [tensor[None]], lambda parts, config: parts[0][0]),
    "thirds": Transform(lambda tensor, config: list(tensor.chunk(3)), lambda parts, config: torch.cat(parts)),
    "halves": Transform(lambda tensor, config: list(tensor.chunk(2)), lambda parts, config: torch.cat(parts)),
    # Fused by head (q, k, v of head 0, then of head 1 …) ↔ all q, all k, all v.
    "by head": Transform(
        lambda tensor, config: [rearrange(tensor, "(h qkv d) ... -> (qkv h d) ...", qkv=3, h=_heads(config))],
        lambda parts, config: rearrange(parts[0], "(qkv h d) ... -> (h qkv d) ...", qkv=3, h=_heads(config)),
    ),
    # Fused q, k, v with fewer heads in k and v.
    "grouped": Transform(
        lambda tensor, config: list(tensor.split(_grouped_sizes(config))), lambda parts, config: torch.cat(parts)
    ),
    # A buffer that the old code saved and that is computed here.
    "rotary of ChatGLM": Transform(
        lambda tensor, config: [],
        lambda parts, config: _rotary_frequencies(config.text_config.head_dim // 2, config.text_config.rope_theta),
    ),
    "rotary of ChatGLM2": Transform(
        lambda tensor, config: [], lambda parts, config: _rotary_frequencies(config.text_config.head_dim // 2, 10000.0)
    ),
}


@dataclass(frozen=True)
class Rule:
    """One row.

    Args:
        old: name in the layout. new: native names that its tensor is split into.
        transform: key of `TRANSFORMS`.
        layers: which layers `{layer}` runs over; key of `LAYERS`.
        optional: the layout's files may lack it.
    """

    old: str
    new: Sequence[str] | str = ()
    transform: str = "same"
    layers: str = ""
    optional: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.new,) if isinstance(self.new, str) else tuple(self.new)


def _cross(config: VisGLMConfig) -> range:
    return range(0, config.qformer_config.num_hidden_layers, config.qformer_config.cross_attention_frequency)


LAYERS: dict[str, Callable[[VisGLMConfig], Sequence[int]]] = {
    "": lambda config: [0],
    "text": lambda config: range(config.text_config.num_hidden_layers),
    "vit": lambda config: range(config.vision_config.num_hidden_layers),
    "qformer": lambda config: range(config.qformer_config.num_hidden_layers),
    "qformer but the first": lambda config: range(1, config.qformer_config.num_hidden_layers),
    "qformer with cross attention": _cross,
    "last of qformer": lambda config: [config.qformer_config.num_hidden_layers - 1],
}


@dataclass(frozen=True)
class Move:
    """A rule with its blanks filled in."""

    old: str
    new: tuple[str, ...]
    transform: Transform
    optional: bool


def expand(rules: Sequence[Rule], config: VisGLMConfig, vision: str = "") -> Iterator[Move]:
    """Every tensor of a network of this configuration, by its old name."""
    for rule in rules:
        for layer in LAYERS[rule.layers](config):
            for kind in ("weight", "bias") if "{kind}" in rule.old else ("",):
                blanks = {"layer": layer, "previous": layer - 1, "kind": kind, "vision": vision}
                new = tuple(name.format(**blanks) for name in rule.targets)
                yield Move(rule.old.format(**blanks), new, TRANSFORMS[rule.transform], rule.optional)


VIT = [
    Rule("{vision}vit.transformer.position_embeddings.weight", "model.vision.vit.pos_embed", "batch axis"),
    Rule("{vision}vit.transformer.word_embeddings.weight", "model.vision.vit.cls_token", "batch axis"),
    Rule("{vision}vit.mixins.patch_embedding.proj.{kind}", "model.vision.vit.patch_embed.proj.{kind}"),
    Rule("{vision}vit.mixins.cls.ln_vision.{kind}", "model.vision.vit.norm.{kind}"),
    *(
        Rule(f"{{vision}}vit.transformer.layers.{{layer}}.{old}.{{kind}}",
             f"model.vision.vit.blocks.{{layer}}.{new}.{{kind}}", layers="vit")
        for old, new in (
            ("input_layernorm", "norm1"),
            ("attention.query_key_value", "attn.qkv"),
            ("attention.dense", "attn.proj"),
            ("post_attention_layernorm", "norm2"),
            ("mlp.dense_h_to_4h", "mlp.fc1"),
            ("mlp.dense_4h_to_h", "mlp.fc2"),
        )
    ),
]  # fmt: skip

_OLD, _NEW = "{vision}qformer.transformer.layers.{layer}.", "model.vision.qformer.encoder.layer.{layer}."
# SwissArmyTransformer norms the input of a layer, BLIP-2 the output of the one before: the same norms.
QFORMER = [
    Rule("{vision}qformer.transformer.word_embeddings.weight", "model.vision.query_tokens", "batch axis"),
    Rule("{vision}qformer.transformer.layers.0.input_layernorm.{kind}", "model.vision.qformer.layernorm.{kind}"),
    Rule(_OLD + "input_layernorm.{kind}",
         "model.vision.qformer.encoder.layer.{previous}.output_query.LayerNorm.{kind}", layers="qformer but the first"),
    Rule("{vision}qformer.transformer.final_layernorm.{kind}", _NEW + "output_query.LayerNorm.{kind}",
         layers="last of qformer"),
    Rule(_OLD + "attention.query_key_value.{kind}",
         [_NEW + f"attention.attention.{part}.{{kind}}" for part in ("query", "key", "value")], "thirds", "qformer"),
    Rule(_OLD + "attention.dense.{kind}", _NEW + "attention.output.dense.{kind}", layers="qformer"),
    Rule(_OLD + "post_attention_layernorm.{kind}", _NEW + "attention.output.LayerNorm.{kind}", layers="qformer"),
    Rule(_OLD + "cross_attention.query.{kind}", _NEW + "crossattention.attention.query.{kind}",
         layers="qformer with cross attention"),
    Rule(_OLD + "cross_attention.key_value.{kind}",
         [_NEW + f"crossattention.attention.{part}.{{kind}}" for part in ("key", "value")], "halves",
         "qformer with cross attention"),
    Rule(_OLD + "cross_attention.dense.{kind}", _NEW + "crossattention.output.dense.{kind}",
         layers="qformer with cross attention"),
    Rule(_OLD + "post_cross_attention_layernorm.{kind}", _NEW + "crossattention.output.LayerNorm.{kind}",
         layers="qformer with cross attention"),
    Rule(_OLD + "mlp.dense_h_to_4h.{kind}", _NEW + "intermediate_query.dense.{kind}", layers="qformer"),
    Rule(_OLD + "mlp.dense_4h_to_h.{kind}", _NEW + "output_query.dense.{kind}", layers="qformer"),
]  # fmt: skip
VISION = [*VIT, *QFORMER, Rule("{vision}glm_proj.{kind}", "model.vision.projection.{kind}")]

_CHATGLM = [
    Rule("transformer.word_embeddings.weight", "model.text.embed_tokens.weight"),
    Rule("transformer.final_layernorm.{kind}", "model.text.norm.{kind}"),
    *(
        Rule(f"transformer.layers.{{layer}}.{name}.{{kind}}", f"model.text.layers.{{layer}}.{name}.{{kind}}",
             layers="text")
        for name in ("input_layernorm", "attention.dense", "post_attention_layernorm", "mlp.dense_h_to_4h",
                     "mlp.dense_4h_to_h")
    ),
]  # fmt: skip
_FUSED = ("transformer.layers.{layer}.attention.query_key_value.{kind}",
          "model.text.layers.{layer}.attention.query_key_value.{kind}")  # fmt: skip

# ChatGLM-6B and VisualGLM-6B as published on the Hugging Face hub.
CHATGLM_HF = [
    *_CHATGLM,
    Rule(*_FUSED, "by head", "text"),
    Rule("lm_head.weight", "lm_head.weight"),
    Rule("transformer.layers.{layer}.attention.rotary_emb.inv_freq", (), "rotary of ChatGLM", "text", optional=True),
]
# The same as SwissArmyTransformer saves it.
CHATGLM_SAT = [
    *_CHATGLM,
    Rule(*_FUSED, layers="text"),
    Rule("mixins.chatglm-final.lm_head.weight", "lm_head.weight"),
    Rule("mixins.chatglm-attn.rotary_emb.inv_freq", (), "rotary of ChatGLM", optional=True),
]

_GLM = "model.text.layers.{layer}."
_CHATGLM2 = "transformer.encoder.layers.{layer}."
_QKV_BIAS = [f"self_attn.{part}_proj.bias" for part in "qkv"]
# ChatGLM2, ChatGLM3 and GLM-4 with the code published beside them.
CHATGLM2_HF = [
    Rule("transformer.embedding.word_embeddings.weight", "model.text.embed_tokens.weight"),
    Rule("transformer.encoder.final_layernorm.weight", "model.text.norm.weight"),
    Rule("transformer.output_layer.weight", "lm_head.weight"),
    Rule("transformer.rotary_pos_emb.inv_freq", (), "rotary of ChatGLM2", optional=True),
    Rule(_CHATGLM2 + "self_attention.query_key_value.weight",
         [_GLM + f"self_attn.{part}_proj.weight" for part in "qkv"], "grouped", "text"),
    *(
        Rule(_CHATGLM2 + old + ".weight", _GLM + new + ".weight", layers="text")
        for old, new in (
            ("input_layernorm", "input_layernorm"),
            ("self_attention.dense", "self_attn.o_proj"),
            ("post_attention_layernorm", "post_attention_layernorm"),
            ("mlp.dense_h_to_4h", "mlp.gate_up_proj"),
            ("mlp.dense_4h_to_h", "mlp.down_proj"),
        )
    ),
]  # fmt: skip
CHATGLM2_HF_BIAS = [Rule(_CHATGLM2 + "self_attention.query_key_value.bias",
                         [_GLM + name for name in _QKV_BIAS], "grouped", "text")]  # fmt: skip

# GLM-4 as transformers itself writes it.
GLM_HF = [
    Rule("lm_head.weight", "lm_head.weight", optional=True),
    Rule("model.embed_tokens.weight", "model.text.embed_tokens.weight"),
    Rule("model.norm.weight", "model.text.norm.weight"),
    *(
        Rule(f"model.layers.{{layer}}.{name}.weight", _GLM + f"{name}.weight", layers="text")
        for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
                     "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    ),
]  # fmt: skip
GLM_HF_BIAS = [Rule("model.layers.{layer}." + name, _GLM + name, layers="text") for name in _QKV_BIAS]
