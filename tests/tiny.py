"""Small models with random weights, and the golden ones of the reference implementations."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import load_file

from visglm.config import VisGLMConfig
from visglm.model import VisGLMForConditionalGeneration

GOLDEN = Path(__file__).parent / "golden"
# Old name, new name, in order.
GOLDEN_RENAMES = (
    ("image_encoder.vit.transformer.position_embeddings.weight", "model.vision.vit.pos_embed"),
    ("image_encoder.vit.transformer.word_embeddings.weight", "model.vision.vit.cls_token"),
    ("image_encoder.vit.mixins.patch_embedding.", "model.vision.vit.patch_embed."),
    ("image_encoder.vit.mixins.cls.ln_vision.", "model.vision.vit.norm."),
    ("image_encoder.vit.transformer.layers.", "model.vision.vit.blocks."),
    ("image_encoder.qformer.transformer.word_embeddings.weight", "model.vision.query_tokens"),
    ("image_encoder.qformer.transformer.", "model.vision.qformer.encoder."),
    ("image_encoder.glm_proj.", "model.vision.projection."),
    ("transformer.word_embeddings.", "model.text.embed_tokens."),
    ("transformer.final_layernorm.", "model.text.norm."),
    ("transformer.layers.", "model.text.layers."),
)
VIT_RENAMES = (
    ("attention.query_key_value.", "attn.qkv."),
    ("attention.dense.", "attn.proj."),
    ("mlp.dense_h_to_4h.", "mlp.fc1."),
    ("mlp.dense_4h_to_h.", "mlp.fc2."),
    ("input_layernorm.", "norm1."),
    ("post_attention_layernorm.", "norm2."),
)


def golden_config() -> VisGLMConfig:
    legacy = json.loads((GOLDEN / "visualglm-hf/config.json").read_text())
    vit, qformer = legacy["eva_config"], legacy["qformer_config"]
    return VisGLMConfig(
        vision_config={
            "hidden_size": vit["hidden_size"],
            "intermediate_size": vit["inner_hidden_size"],
            "num_hidden_layers": vit["num_layers"],
            "num_attention_heads": vit["num_attention_heads"],
            "image_size": vit["image_size"][0],
            "patch_size": vit["patch_size"],
        },
        qformer_config={
            "hidden_size": qformer["hidden_size"],
            "intermediate_size": 4 * qformer["hidden_size"],
            "num_hidden_layers": qformer["num_layers"],
            "num_attention_heads": qformer["num_attention_heads"],
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        text_config={
            "model_type": "visglm_chatglm",
            "vocab_size": legacy["vocab_size"],
            "hidden_size": legacy["hidden_size"],
            "intermediate_size": legacy["inner_hidden_size"],
            "num_hidden_layers": legacy["num_layers"],
            "num_attention_heads": legacy["num_attention_heads"],
            "max_position_embeddings": legacy["max_sequence_length"],
            "bos_token_id": legacy["bos_token_id"],
            "eos_token_id": legacy["eos_token_id"],
            "pad_token_id": legacy["pad_token_id"],
            "mask_token_id": legacy["mask_token_id"],
            "gmask_token_id": legacy["gmask_token_id"],
        },
        num_query_tokens=legacy["image_length"],
        image_token_id=legacy["eos_token_id"] + 1,
    )


def golden_state_dict(config: VisGLMConfig) -> dict[str, torch.Tensor]:
    legacy: dict[str, torch.Tensor] = {}
    for shard in sorted((GOLDEN / "visualglm-hf").glob("*.bin")):
        legacy |= torch.load(shard, weights_only=True)
    state = {}
    for old, tensor in legacy.items():
        if old.endswith("inv_freq"):
            continue
        new = old
        for before, after in GOLDEN_RENAMES:
            if new.startswith(before):
                new = after + new.removeprefix(before)
                break
        if ".vit.blocks." in new:
            for before, after in VIT_RENAMES:
                new = new.replace("." + before, "." + after)
        if ".text.layers." in new and ".query_key_value." in new:
            heads = config.text_config.num_attention_heads
            tensor = rearrange(tensor, "(h qkv d) ... -> (qkv h d) ...", qkv=3, h=heads)
        if ".qformer.encoder." in new:
            state |= qformer_layer(new, tensor, config.qformer_config.num_hidden_layers)
            continue
        shape = {
            "vit.pos_embed": (1, *tensor.shape),
            "vit.cls_token": (1, *tensor.shape),
            "query_tokens": (1, *tensor.shape),
        }
        for suffix, target in shape.items():
            if new.endswith(suffix):
                tensor = tensor.reshape(target)
        state[new] = tensor
    return state


def qformer_layer(name: str, tensor: torch.Tensor, num_layers: int) -> dict[str, torch.Tensor]:
    """SwissArmyTransformer norms the input of a layer, BLIP-2 the output of the one before: the same norms."""
    module, kind = name.removeprefix("model.vision.qformer.encoder.").rsplit(".", 1)
    if module == "final_layernorm":
        return {f"model.vision.qformer.encoder.layer.{num_layers - 1}.output_query.LayerNorm.{kind}": tensor}
    _, index, module = module.split(".", 2)
    if module == "input_layernorm":
        above = "layernorm" if index == "0" else f"encoder.layer.{int(index) - 1}.output_query.LayerNorm"
        return {f"model.vision.qformer.{above}.{kind}": tensor}
    fused = {
        "attention.query_key_value": ("attention.attention", ("query", "key", "value")),
        "cross_attention.key_value": ("crossattention.attention", ("key", "value")),
    }
    plain = {
        "attention.dense": "attention.output.dense",
        "post_attention_layernorm": "attention.output.LayerNorm",
        "cross_attention.query": "crossattention.attention.query",
        "cross_attention.dense": "crossattention.output.dense",
        "post_cross_attention_layernorm": "crossattention.output.LayerNorm",
        "mlp.dense_h_to_4h": "intermediate_query.dense",
        "mlp.dense_4h_to_h": "output_query.dense",
    }
    prefix = f"model.vision.qformer.encoder.layer.{index}."
    if module in fused:
        target, parts = fused[module]
        pieces = tensor.chunk(len(parts))
        return {f"{prefix}{target}.{part}.{kind}": piece for part, piece in zip(parts, pieces, strict=True)}
    return {f"{prefix}{plain[module]}.{kind}": tensor}


def golden_model() -> VisGLMForConditionalGeneration:
    config = golden_config()
    model = VisGLMForConditionalGeneration(config)
    model.load_state_dict(golden_state_dict(config))
    return model.eval()


def expected(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"expected/{name}.safetensors")
