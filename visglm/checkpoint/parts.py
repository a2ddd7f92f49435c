"""A vision tower of one checkpoint in front of the text model of another, with a new way between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..config import VisGLMConfig
from ..errors import CheckpointError, ConfigError
from ..families import family_of
from ..families.visualglm import VISUALGLM
from ..processor import VisGLMProcessor
from ..quant import Quantization
from ..vision import INTO_TEXT
from .assemble import build
from .files import TensorInfo
from .source import Source

TOWER = "model.vision."
BETWEEN = tuple(TOWER + name for name in INTO_TEXT)


class PartsSource(Source):
    """ViT, Q-Former and queries of `vision`, text model and head of `text`; what speaks to the text model, the
    projection above all, is random and to be trained.

    Raises:
        ConfigError: one of them is of a family that is no VisualGLM.
        CheckpointError: `vision` has no vision tower or a quantized one, or the text model's vocabulary has no id left
            for image slots.
    """

    format = "parts"

    def __init__(self, vision: Source, text: Source):
        for source in (vision, text):
            if (family := family_of(source.config)) is not VISUALGLM:
                raise ConfigError(
                    f"{source.path} is a {family.name}, which has no parts to put together: take those of VisualGLMs, "
                    "and text models of ChatGLM and GLM-4."
                )
        if vision.config.vision_config is None:
            raise CheckpointError(vision.path, ["it has no vision tower"], "Name a checkpoint that looks at pictures.")
        packed = {kind: Quantization.of(source.config) for kind, source in (("vision", vision), ("text", text))}
        if packed["vision"] is not None and "vision" in packed["vision"].parts:
            raise CheckpointError(
                vision.path, ["its vision tower is quantized"], "Take the tower of a checkpoint that has it in 16 bits."
            )
        self._vision, self._text = vision, text
        tokenizer = text.processor().tokenizer
        slot, size = tokenizer.image_token_id, text.config.text_config.vocab_size
        if slot >= size:
            raise CheckpointError(
                text.path,
                [f"image slots would have the id {slot}, the text model has {size} embeddings"],
                "Use a text model whose embedding has rows to spare.",
            )
        config = VisGLMConfig(
            vision_config=vision.config.vision_config.to_dict(),
            qformer_config=vision.config.qformer_config.to_dict(),
            text_config=text.config.text_config.to_dict(),
            num_query_tokens=vision.config.num_query_tokens,
            image_token_id=slot,
            prompt_style=text.config.prompt_style,
        )
        if packed["text"] is not None:
            record = packed["text"].record()
            config.quantization = record | {"parts": [part for part in record["parts"] if part != "vision"]}
        super().__init__(text.path, config)
        shapes = {name: tuple(tensor.shape) for name, tensor in build(config).state_dict().items()}
        self._shapes = {name: shape for name, shape in shapes.items() if name.startswith(BETWEEN)}
        self.problems += [*vision.problems, *text.problems]
        self._processor = VisGLMProcessor.of(config, tokenizer, vision.processor().image_processor)

    def _between(self) -> Iterator[tuple[str, Tensor]]:
        for name, shape in self._shapes.items():
            drawn = torch.randn(shape) * self.config.qformer_config.initializer_range
            yield name, drawn if not name.endswith("bias") else torch.zeros(shape)

    def keys(self) -> Mapping[str, TensorInfo]:
        seen = {name: info for name, info in self._vision.keys().items() if name.startswith(TOWER)}
        read = {name: info for name, info in self._text.keys().items() if not name.startswith(TOWER)}
        return seen | read | {name: TensorInfo.of(tensor) for name, tensor in self._between()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._vision.tensors():
            if name.startswith(TOWER) and not name.startswith(BETWEEN):
                yield name, tensor
        yield from self._between()
        for name, tensor in self._text.tensors():
            if not name.startswith(TOWER):
                yield name, tensor

    def processor(self) -> VisGLMProcessor:
        return self._processor

    def name_on_disk(self, name: str) -> str:
        return (self._vision if name.startswith(TOWER) else self._text).name_on_disk(name)

    def is_lost(self, name: str) -> bool:
        return (self._vision if name.startswith(TOWER) else self._text).is_lost(name)
