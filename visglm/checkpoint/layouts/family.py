"""Families whose networks are transformers' own, in the layout that they are published in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ...config import check_ranges, reject_hub_code
from ...errors import CheckpointError, ConfigError
from ...families import FamilyProcessor
from ...families.glm4v import Glm4v
from ...sampling import Sampling
from ...untrusted import NEXT_STEP, read_json, told
from ..files import TensorInfo, WeightFiles, find_weights
from ..processing import is_picture_size, read_image_settings, read_tokenizer
from ..settings import ROPE_KEYS, ROPE_NUMBERS, TOKEN_IDS, TOP, check_fields, check_ids, is_number, is_whole
from ..source import Source
from .native import WEIGHTS

# Of the vision tower, beside the sizes that every network has.
VISION = {
    "out_hidden_size": ("a width", lambda value: is_whole(value, 1, 2**17)),
    "spatial_merge_size": ("a number of patches", lambda value: is_whole(value, 1, 16)),
    "temporal_patch_size": ("a number of frames", lambda value: is_whole(value, 1, 16)),
    "in_channels": ("3", lambda value: value == 3),
}
# Of the text model: other kinds of attention would have a cache of another shape.
TEXT = {
    "layer_types": ("full_attention in every layer", lambda value: value == ["full_attention"] * len(value)),
    "sliding_window": ("none", lambda value: False),
    "attention_chunk_size": ("none", lambda value: False),
}
PLANES = 3  # of positions: frames, rows and columns
SIZES = ("hidden_size", "intermediate_size")
REQUIRED = {
    "text_config": (*SIZES, "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings"),
    "vision_config": (*SIZES, "depth", "num_heads", "patch_size", "image_size"),
}
TOKENS = ("image_token_id", "image_start_token_id", "image_end_token_id")


def read_family_config(path: Path, family: Glm4v) -> PreTrainedConfig:
    """The configuration in a folder of a family, as transformers' own class has it.

    Raises:
        CheckpointError: it is damaged, lacks what the network depends on, or asks for other networks or code.
    """
    kind = family.config_class
    fields = nested(kind, read_json(path / "config.json"))
    check_fields(path, fields, TOP)
    problems = []
    for name, required in REQUIRED.items():
        part = fields.get(name)
        if not isinstance(part, dict):
            problems.append(f"{name} is no table of settings")
            continue
        with told(path, name):
            reject_hub_code(part)
        wanted = part_type(kind, name)
        if part.get("model_type", wanted) != wanted:
            problems.append(f"{name} has the model type {str(part['model_type'])[:80]!r}, expected {wanted!r}")
        problems += [f"{name} has no {key}" for key in required if part.get(key) is None]
    problems += [f"the configuration has no {name}" for name in TOKENS if fields.get(name) is None]
    if "quantization_config" in fields:
        problems.append("its weights are packed in a way that is not read here (quantization_config)")
    problems += [
        f"{key} is no setting" for part in (fields, *(fields.get(name) for name in REQUIRED)) if isinstance(part, dict)
        for key in part if callable(getattr(PreTrainedConfig, key, None)) or not key.isidentifier()
    ]  # fmt: skip
    if problems:
        raise CheckpointError(path, problems, NEXT_STEP)
    check_fields(path, fields["vision_config"], VISION)
    check_fields(path, fields["text_config"], TEXT)
    with told(path, "config.json"):
        reject_hub_code(fields)
        config = kind(**{name: value for name, value in fields.items() if name not in ("model_type", "auto_map")})
        check_ranges(config.text_config)
        check_ranges(config.vision_config)
    check_ids(path, config)
    if problems := rope_problems(config.text_config):
        raise CheckpointError(path, problems, NEXT_STEP)
    unknown = [name for name in TOKENS if not is_whole(getattr(config, name), 0, config.text_config.vocab_size - 1)]
    if unknown:
        raise CheckpointError(path, [f"{name} is no id of the vocabulary" for name in unknown], NEXT_STEP)
    return config


def nested(kind: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """A configuration as transformers writes it today: what is said of the text model is a table of its own.

    GLM-4.1V came out with all of it at the top, beside what is said of pictures, and transformers would not heed it.
    """
    if "text_config" in fields or not {*REQUIRED["text_config"]} & fields.keys():
        return fields
    text, own = type(kind().text_config), kind.__dataclass_fields__.keys()
    names = ((text.__dataclass_fields__.keys() - own) | ROPE_KEYS | {*TOKEN_IDS}) & fields.keys()
    return {name: value for name, value in fields.items() if name not in names} | {
        "text_config": {name: fields[name] for name in names}
    }


def rope_problems(text: PreTrainedConfig) -> list[str]:
    """What is wrong with how a text model is told positions, one line each."""
    rope: Any = text.rope_parameters or {}
    planes, share = rope.get("mrope_section"), rope.get("partial_rotary_factor", 1.0)
    problems = [
        f"{name} is {str(rope[name])[:80]!r}, expected a number above 0"
        for name in ROPE_NUMBERS if name in rope and not is_number(rope[name], 1e-3, 1e12)
    ]  # fmt: skip
    if rope.get("rope_type", "default") not in ("default", *ROPE_INIT_FUNCTIONS):
        problems.append(f"rope_type is {str(rope['rope_type'])[:80]!r}, of which this transformers knows nothing")
    if problems:
        return problems
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    pairs = int(head_size * share) // 2
    fits = isinstance(planes, list) and len(planes) == PLANES and all(is_whole(one, 1) for one in planes)
    if not fits or sum(planes) != pairs or not 0 < share <= 1:
        problems.append(
            f"mrope_section is {str(planes)[:80]}, expected {PLANES} numbers that make {pairs}, half of "
            f"partial_rotary_factor {share:g} of a head's {head_size}"
        )
    return problems


def part_type(kind: Any, name: str) -> str:
    """The model type of a part, as the family has it."""
    default = kind.sub_configs_defaults[name]
    return default.model_type


class FamilySource(Source):
    """A folder as transformers writes it, of a family that is no VisualGLM."""

    def __init__(self, path: Path, tokenizer: Path | None, family: Glm4v):
        self.family, self.format = family, family.name
        with told(path, "the checkpoint"):
            super().__init__(path, read_family_config(path, family))
            files = find_weights(path, *WEIGHTS)
        self._files = WeightFiles([path / "".join(WEIGHTS)]) if files is None else files  # says that it is missing
        self.problems += self._files.problems
        self._tokenizer_path = tokenizer or path

    def keys(self) -> Mapping[str, TensorInfo]:
        return {name: info for name, info in self._files.infos.items() if not self._is_left_out(name)}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor) for name, tensor in self._files.tensors() if not self._is_left_out(name))

    def _is_left_out(self, name: str) -> bool:
        """Whether transformers' own class leaves a tensor in the file: GLM-OCR has a layer that only guesses ahead."""
        return any(re.match(pattern, name) for pattern in self.family.left_out)

    def processor(self) -> FamilyProcessor:  # type: ignore[override]
        with told(self.path, "the processor"):
            images, videos = read_image_settings(self.path, f"{self.family.images}ImageProcessor")
            tokenizer = read_tokenizer(self._tokenizer_path)
            processor = self.family.processor(self.family.image_processor_class(**images), tokenizer, videos)
        problems = processor.problems(self.config)
        problems += [
            f"the tokenizer has no {name}" for name in self.family.control if name not in tokenizer.get_vocab()
        ]
        vocab_size = self.config.text_config.vocab_size
        if len(tokenizer) > vocab_size:
            problems.append(f"tokenizer: it has {len(tokenizer):,} tokens, the model's embedding {vocab_size:,}")
        if not is_picture_size(images.get("size", {})):
            problems.append(f"size is {str(images.get('size'))[:80]}, expected shortest_edge and longest_edge")
        if problems:
            raise CheckpointError(
                self.path, problems, "Nothing was loaded. Make the files agree, or download the folder again."
            )
        return processor

    def generation_config(self) -> GenerationConfig:
        found = super().generation_config()
        if found.eos_token_id is None:  # a folder may come without; answers must end all the same
            vocabulary = self.processor().tokenizer.get_vocab()
            found.eos_token_id = [vocabulary[name] for name in self.family.ends if name in vocabulary]
        try:
            Sampling.of(self.family.sampling(found))
        except ConfigError as error:
            raise CheckpointError(self.path, [f"generation_config.json: {error}"], NEXT_STEP) from None
        return found

    def is_lost(self, name: str) -> bool:
        return self._files.is_lost(name)
