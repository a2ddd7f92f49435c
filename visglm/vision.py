"""Pictures to visual tokens: timm's ViT, transformers' Q-Former, a linear projection."""

from __future__ import annotations

from functools import partial

import timm
import torch
from einops import repeat
from timm.layers import HybridEmbed, PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import Blip2QFormerModel

from .config import VisGLMConfig, VisGLMVisionConfig
from .errors import ConfigError


def build_stem(config: VisGLMVisionConfig) -> partial:
    """The convolutional network that takes the place of linear patches, as timm's ViT wants it.

    Raises:
        ConfigError: timm has no such network, or none of its feature maps has stride `patch_size`.
    """
    if not timm.is_model(config.stem):
        raise ConfigError(f"timm has no network {config.stem!r} for a stem; timm.list_models() lists what it has.")
    reductions = timm.create_model(config.stem, features_only=True).feature_info.reduction()
    if config.patch_size not in reductions:
        raise ConfigError(
            f"stem {config.stem!r} has feature maps of stride {reductions}, none of patch_size={config.patch_size}."
        )
    index = reductions.index(config.patch_size)
    stem = timm.create_model(config.stem, features_only=True, out_indices=(index,))
    # With feature_size given, HybridEmbed needs no trial run, which the meta device could not do.
    return partial(HybridEmbed, backbone=stem, feature_size=config.image_size // config.patch_size)


def build_vit(config: VisGLMVisionConfig) -> VisionTransformer:
    """timm's ViT of these sizes: `[batch, 3, height, width]` to `[batch, 1 + num_patches, hidden_size]`.

    EVA ViT-g as VisualGLM uses it has no head, a class token, and `ln_vision` (own eps) as final norm.
    """
    vit = VisionTransformer(
        img_size=config.image_size,
        patch_size=1 if config.stem else config.patch_size,
        embed_layer=build_stem(config) if config.stem else PatchEmbed,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        # timm multiplies and truncates: half a unit more lands on the exact width.
        mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
        num_classes=0,
        global_pool="",
        dynamic_img_size=True,
    )
    vit.norm.eps = config.final_layer_norm_eps
    return vit


class VisionEncoder(nn.Module):
    """ViT, Q-Former and projection: `pixel_values [num_images, 3, height, width]`, RGB, normalized, to visual tokens
    `[num_images, num_query_tokens, text hidden size]`.

    Source: VisualGLM-6B; Q-Former of BLIP-2 (https://arxiv.org/abs/2301.12597).
    """

    def __init__(self, config: VisGLMConfig):
        super().__init__()
        self.vit = build_vit(config.vision_config)
        qformer_size = config.qformer_config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, qformer_size))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.projection = nn.Linear(qformer_size, config.text_config.hidden_size)

    def train(self, mode: bool = True) -> VisionEncoder:
        """Training mode, except for a stem's BatchNorm: its statistics come from pretraining, and the few pictures
        of a fine-tuning batch would spoil them."""
        super().train(mode)
        for module in self.vit.patch_embed.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def bridge(self, image_features: Tensor, **kwargs) -> Tensor:
        """ViT features `[num_images, 1 + num_patches, vit hidden size]` to visual tokens."""
        queries = repeat(self.query_tokens, "1 query hidden -> image query hidden", image=image_features.shape[0])
        # While only one of the two is trained, it is in float32.
        qformer_out = self.qformer(queries, encoder_hidden_states=image_features.to(queries.dtype), **kwargs)
        return self.projection(qformer_out.last_hidden_state)

    def forward(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """Visual tokens of each picture; `kwargs` go to the Q-Former (`output_attentions=True`, say).

        Without any picture every module runs all the same, on a blank one: in sharded training every process must.
        """
        if not len(pixel_values):
            return self(pixel_values.new_zeros(1, *pixel_values.shape[1:]), **kwargs)[:0]
        return self.bridge(self.vit(pixel_values.to(self.vit.pos_embed.dtype)), **kwargs)
