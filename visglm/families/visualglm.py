"""VisualGLM and the ChatGLMs: a ViT and a Q-Former that make the same number of visual tokens of every picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import VisGLMConfig
from ..model import VisGLMForConditionalGeneration
from ..reply import PictureShape
from .base import Family, Room


class VisualGLM(Family):
    """Networks of `visglm.model`, whose text backbones know positions and masks themselves."""

    name = "VisualGLM"
    model_type = VisGLMConfig.model_type
    text_part, vision_part = "model.text", "model.vision"
    kept_whole = ("model.vision.projection",)
    can = ("chat", "finetune", "explain", "export", "quantize")
    towers = {
        "vision": ("model.vision.vit.", "model.vision.recogniser."),
        "qformer": ("model.vision.query_tokens", "model.vision.qformer.", "model.vision.projection."),
        "text": ("model.text.", "lm_head."),
    }
    methods = ("lora", "qlora", "ptuning", "qformer", "full")
    takes_image_embeds = True

    def vision(self, network: Any) -> Any:
        return network.model.vision

    def reads_prefix_both_ways(self, network: Any) -> bool:
        return network.model.text.reads_prefix_both_ways

    def manner(self, config: VisGLMConfig) -> VisGLMConfig:
        return config

    def look(self, network: Any, pictures: Sequence[Tensor]) -> list[Tensor]:
        return list(network.get_image_features(torch.stack(list(pictures))).pooler_output)

    def gather(self, embeds: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(embeds))

    def prompt_inputs(
        self, network: Any, input_ids: Tensor, attention_mask: Tensor, shapes: Sequence[PictureShape]
    ) -> Mapping[str, Tensor]:
        return network.model.text.prompt_inputs(network.config.text_config, input_ids, attention_mask)

    def extend_position_ids(self, network: Any, position_ids: Tensor, num_new_tokens: int) -> Tensor:
        return network.model.text.extend_position_ids(position_ids, num_new_tokens)

    def read(
        self, network: Any, input_ids: Tensor, attention_mask: Tensor, pictures: Sequence[Tensor], cache: Any,
        derived: Mapping[str, Tensor],
    ) -> Tensor:  # fmt: skip
        return network(
            input_ids=input_ids, attention_mask=attention_mask,
            image_embeds=torch.stack(list(pictures)) if pictures else None,
            past_key_values=cache, use_cache=True, logits_to_keep=1, **derived,
        ).logits[:, -1]  # fmt: skip

    parts = (
        ("model.vision.vit.", "ViT"), ("model.vision.recogniser.", "recogniser"), ("model.vision.", "Q-Former"),
        ("model.text.embed_tokens.", "embeddings"), ("model.text.", "text layers"), ("lm_head.", "head"),
    )  # fmt: skip

    def room(self, config: VisGLMConfig, processor: Callable[[], Any]) -> Room:
        count, vision = config.num_query_tokens, config.vision_config
        return Room(count, count, (vision.image_size // vision.stride) ** 2 + 1, vision.intermediate_size)

    @property
    def network_class(self) -> Any:
        return VisGLMForConditionalGeneration


VISUALGLM = VisualGLM()
