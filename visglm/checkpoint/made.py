"""Sources that are made as they are read: random weights of any size, and another source in fewer bits."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from ..config import PRESETS, VisGLMConfig
from ..errors import ConfigError
from ..processor import VisGLMProcessor
from ..quant import Quantization, modules_of, pack_matrix
from ..tokenizers import ChatGLMTokenizer
from .assemble import build
from .files import TensorInfo
from .processing import read_tokenizer
from .source import Source, refuse_delta

DRAWN = 2**20  # numbers drawn per tensor and then repeated: drawing all would take longer than writing them
CONTROL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id")


class RandomSource(Source):
    """Random weights of a preset's shapes, for trying out what a size costs. What it answers means nothing.

    A tokenizer of that size is not to be had for random weights: the one in `tokenizer` serves, its ids are the first
    of the vocabulary, and no text uses the rest.

    Args:
        preset: key of `visglm.config.PRESETS`.
        tokenizer: folder to take the tokenizer from.
    """

    format = "random"

    def __init__(self, preset: str, tokenizer: Path, seed: int = 0, dtype: torch.dtype = torch.float16):
        self.tokenizer = read_tokenizer(tokenizer, ChatGLMTokenizer)
        super().__init__(Path(preset), preset_config(preset, self.tokenizer))
        self.seed = seed
        self._infos = {
            name: TensorInfo(tuple(tensor.shape), dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in build(self.config).state_dict().items()
        }

    def keys(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, info in self._infos.items():
            yield name, self._draw(name, info)

    def generation_config(self) -> GenerationConfig:
        return GenerationConfig.from_model_config(self.config)  # a folder may have the preset's name

    def _draw(self, name: str, info: TensorInfo) -> Tensor:
        if name.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight", "LayerNorm.weight")):
            return torch.ones(info.shape, dtype=info.dtype)
        if not info.dtype.is_floating_point or name.endswith(("bias", "running_mean")):
            return torch.zeros(info.shape, dtype=info.dtype)
        # A seed for each name: a tensor does not depend on which others there are.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        count = torch.Size(info.shape).numel()
        drawn = torch.randn(min(count, DRAWN), generator=generator).mul_(0.02).to(info.dtype)
        return drawn.repeat(-(-count // DRAWN))[:count].view(info.shape)

    def processor(self) -> VisGLMProcessor:
        return VisGLMProcessor.of(self.config, self.tokenizer)


def preset_config(preset: str, tokenizer: Any) -> VisGLMConfig:
    """The preset with the control ids of `tokenizer`.

    Raises:
        ConfigError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ConfigError(f"no preset {preset!r}; the presets are {', '.join(PRESETS)}.")
    fields = copy.deepcopy(PRESETS[preset])
    fields["text_config"] |= {name: getattr(tokenizer, name) for name in CONTROL_IDS}
    if "vision_config" in fields:
        fields["image_token_id"] = tokenizer.image_token_id
    return VisGLMConfig(**fields)


class QuantizedSource(Source):
    """Another source whose weights are packed as they pass.

    Raises:
        ConfigError: no such scheme, the source is quantized already to another one, or an adapter lies over it.
    """

    def __init__(self, source: Source, scheme: str, vision: bool = False):
        refuse_delta(source)
        super().__init__(source.path, copy.deepcopy(source.config))
        self.format = source.format
        self.source = source
        self.problems = source.problems
        self.quantization = Quantization.choose(scheme, source.config, vision)
        self._packed = {f"{name}.weight" for name in modules_of(build(source.config), self.quantization.parts)}
        self.config.quantization = self.quantization.record()

    def keys(self) -> Mapping[str, TensorInfo]:
        found: dict[str, TensorInfo] = {}
        for name, info in self.source.keys().items():
            if name not in self._packed or len(info.shape) != 2:  # a wrong shape is for `check` to tell
                found[name] = info
                continue
            for attribute, (shape, dtype) in self.quantization.layout(*info.shape).items():
                found[name.removesuffix("weight") + attribute] = TensorInfo(shape, dtype)
        return found

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.source.tensors():
            if name not in self._packed:
                yield name, tensor
                continue
            weight, scale = pack_matrix(tensor, self.quantization.scheme, self.quantization.group_size)
            yield name, weight
            yield f"{name}_scale", scale

    def processor(self) -> VisGLMProcessor:
        return self.source.processor()

    def generation_config(self) -> GenerationConfig:
        return self.source.generation_config()

    def name_on_disk(self, name: str) -> str:
        return self.source.name_on_disk(name)

    def is_lost(self, name: str) -> bool:
        return self.source.is_lost(name.removesuffix("_scale"))
