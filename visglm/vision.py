"""Pictures to visual tokens: timm's ViT, transformers' Q-Former, a linear projection; and, where there is one, what a
classification network takes the whole picture for."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
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
    return partial(HybridEmbed, backbone=stem, feature_size=config.image_size // config.stride)


def build_vit(config: VisGLMVisionConfig) -> VisionTransformer:
    """timm's ViT of these sizes: `[batch, 3, height, width]` to `[batch, 1 + num_patches, hidden_size]`.

    EVA ViT-g as VisualGLM uses it has no head, a class token, and `ln_vision` (own eps) as final norm.
    """
    vit = VisionTransformer(
        img_size=config.image_size // config.reduction,
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


# Parameters of a `VisionEncoder` that speak the text model's language: in front of another, they mean nothing.
INTO_TEXT = ("projection.", "recogniser.names.", "recogniser.impression.", "recogniser.sure", "recogniser.nothing")


LEAST = 1e-12  # probability of a name, whose logarithm is wanted


class Seen(NamedTuple):
    """What is known of pictures before the Q-Former looks.

    Args:
        features: `[num_images, 1 + num_patches + cells, vit hidden size]`: the ViT's, then the recogniser's, if any.
        guesses: `[num_images, num_guesses * tokens_per_guess, text hidden size]`, the recogniser's visual tokens.
    """

    features: Tensor
    guesses: Tensor


class Recogniser(nn.Module):
    """A classification network, head and all, that looks at the same picture as the ViT, and says what it is.

    A network that was trained to name photographs knows them through its head; a bridge that is taught from fewer
    pictures than the network was loses most of that. So the likeliest names become visual tokens themselves: a vector
    per name, which may be the text model's own words for it, with the probability and an impression of the whole added.
    The cells of its last map stand behind the ViT's for the Q-Former to look at.

    A gate, from 0 to 1, says whether the picture is of the kind that the network knows; of others it says nothing.

    Args:
        config: `recogniser`, `num_classes`, `num_names`, `num_guesses`, `tokens_per_guess` and `hidden_size` count.
        hidden_size: of the text model.

    Raises:
        ConfigError: timm has no such network.
    """

    name_of_class: Tensor

    def __init__(self, config: VisGLMVisionConfig, hidden_size: int):
        super().__init__()
        if not timm.is_model(config.recogniser):
            raise ConfigError(
                f"timm has no network {config.recogniser!r} for a recogniser; timm.list_models() lists what it has."
            )
        self.network = timm.create_model(config.recogniser, num_classes=config.num_classes)
        num_features, num_pooled = self.network.num_features, self.network.head_hidden_size
        self.num_guesses, self.tokens_per_guess = config.num_guesses, config.tokens_per_guess
        # Classes that have one name, as the hundred dogs of ImageNet may, are told together.
        names = torch.arange(config.num_classes) % config.num_names
        self.register_buffer("name_of_class", names)
        self.names = nn.Embedding(config.num_names, config.tokens_per_guess * hidden_size)
        self.temperature = nn.Parameter(torch.ones(1))
        self.sure = nn.Parameter(torch.zeros(2, hidden_size))  # what is added at probability 0, and at 1
        self.impression = nn.Linear(num_pooled, hidden_size)
        self.gate = nn.Linear(num_pooled, 1)
        self.nothing = nn.Parameter(torch.zeros(hidden_size))
        self.cells = nn.Linear(num_features, config.hidden_size)

    def probabilities(self, pooled: Tensor) -> Tensor:
        """Pooled features `[num_images, features]` to the probability of every name `[num_images, num_names]`.

        The temperature works on names: on classes, it would favour those names that have many of them.
        """
        of_class = self.network.get_classifier()(pooled).softmax(-1, dtype=torch.float32)
        of_name = of_class.new_zeros(len(of_class), self.names.num_embeddings)
        of_name = of_name.index_add(1, self.name_of_class, of_class).clamp(min=LEAST)
        return (of_name.log() / self.temperature).softmax(-1).to(pooled.dtype)

    def tell(self, probability: Tensor, impression: Tensor, gate: Tensor) -> Tensor:
        """Visual tokens `[num_images, tokens_per_guess * num_guesses, hidden_size]`: the guesses by the first of their
        tokens, then by the second, ….

        Args:
            probability: `[num_images, num_names]`. impression: `[num_images, hidden_size]`. gate: `[num_images, 1]`.
        """
        likeliest = probability.topk(self.num_guesses)
        told = rearrange(
            self.names(likeliest.indices),
            "image guess (token hidden) -> image token guess hidden",
            token=self.tokens_per_guess,
        )
        unsure, sure = self.sure
        told = told + torch.lerp(unsure, sure, likeliest.values[:, None, :, None]) + impression[:, None, None]
        told = rearrange(told, "image token guess hidden -> image (token guess) hidden")
        return torch.lerp(self.nothing.expand_as(told), told, gate.unsqueeze(-1))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """`pixel_values [num_images, 3, height, width]` to visual tokens (see `tell`) and to the cells of the last map
        `[num_images, cells, vit hidden size]`, row by row."""
        features = self.network.forward_features(pixel_values)
        pooled = self.network.forward_head(features, pre_logits=True)
        cells = rearrange(features, "image features row column -> image (row column) features")
        gate = self.gate(pooled).sigmoid()
        told = self.tell(self.probabilities(pooled), self.impression(pooled), gate)
        return told, self.cells(cells) * gate.unsqueeze(-1)


class VisionEncoder(nn.Module):
    """ViT, Q-Former and projection: `pixel_values [num_images, 3, height, width]`, RGB, normalized, to visual tokens
    `[num_images, num_query_tokens, text hidden size]`: the Q-Former's, then a recogniser's, if there is one.

    Source: VisualGLM-6B; Q-Former of BLIP-2 (https://arxiv.org/abs/2301.12597).
    """

    def __init__(self, config: VisGLMConfig):
        super().__init__()
        vision = config.vision_config
        self.vit = build_vit(vision)
        self.reduction = vision.reduction
        self.recogniser = None
        if vision.recogniser is not None:
            self.recogniser = Recogniser(vision, config.text_config.hidden_size)
        qformer_size = config.qformer_config.hidden_size
        num_queries = config.num_query_tokens - vision.num_recogniser_tokens
        self.query_tokens = nn.Parameter(torch.zeros(1, num_queries, qformer_size))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.projection = nn.Linear(qformer_size, config.text_config.hidden_size)

    def train(self, mode: bool = True) -> VisionEncoder:
        """Training mode, except for the BatchNorm of a stem and a recogniser: its statistics come from pretraining, and
        the few pictures of a fine-tuning batch would spoil them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def see(self, pixel_values: Tensor) -> Seen:
        """What the ViT and, where there is one, the recogniser make of pictures."""
        # Colours last in memory: convolutions on a CPU read several pictures a sixth to a quarter faster so.
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        shown = pixel_values if self.reduction == 1 else F.avg_pool2d(pixel_values, self.reduction)
        features = self.vit(shown.to(self.vit.pos_embed.dtype))
        if self.recogniser is None:
            return Seen(features, features.new_zeros(len(features), 0, self.projection.out_features))
        guesses, cells = self.recogniser(pixel_values.to(self.recogniser.temperature.dtype))
        return Seen(torch.cat([features, cells], 1), guesses)

    def bridge(self, image_features: Tensor, **kwargs) -> Tensor:
        """Features `[num_images, 1 + num_patches (+ cells), vit hidden size]` to the Q-Former's visual tokens."""
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
        seen = self.see(pixel_values)
        return torch.cat([self.bridge(seen.features, **kwargs), seen.guesses], 1)
