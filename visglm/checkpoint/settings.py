"""Settings in a folder that anybody may have written: read as plain JSON, checked, and only then made into objects.

Only what the networks and tokenizers here need is taken. What else transformers knows to do with such files (import
code, ask the hub, build other classes) does not happen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig

from ..config import TEXT_CONFIGS, ChatGLMConfig, VisGLMConfig, VisGLMVisionConfig, reject_hub_code
from ..errors import CheckpointError
from ..prompt import PROMPT_STYLES
from ..untrusted import NEXT_STEP, read_json, told

Fits = Callable[[Any], bool]


def is_whole(value: Any, low: int = 0, high: int = 2**24) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float = 0.0, high: float = 1e6) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def check_fields(path: Path, fields: Mapping[str, Any], table: Mapping[str, tuple[str, Fits]]) -> None:
    """Compare what a file says with what is possible.

    Raises:
        CheckpointError: a value is none that its name can have; all are listed.
    """
    problems = [
        f"{name} is {str(fields[name])[:80]!r}, expected {expected}"
        for name, (expected, fits) in table.items()
        if fields.get(name) is not None and not fits(fields[name])
    ]
    if problems:
        raise CheckpointError(path, problems, NEXT_STEP)


# --- config.json -----------------------------------------------------------------------------------

# What a network cannot do without, or would be another one with the default.
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
REQUIRED: dict[type[PreTrainedConfig], tuple[str, ...]] = {
    VisGLMConfig: ("text_config", "num_query_tokens", "prompt_style"),
    VisGLMVisionConfig: (*SIZES, "image_size", "patch_size", "layer_norm_eps", "final_layer_norm_eps"),
    Blip2QFormerConfig: (*SIZES, "cross_attention_frequency", "layer_norm_eps", "hidden_act"),
    ChatGLMConfig: (
        *SIZES,
        *("vocab_size", "max_position_embeddings", "layer_norm_eps", "rope_theta"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id"),
    ),
    TEXT_CONFIGS["glm"]: (
        *SIZES,
        *("vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "num_key_value_heads"),
        *("head_dim", "hidden_act", "eos_token_id", "pad_token_id"),
    ),
}
PARTS: dict[str, type[PreTrainedConfig]] = {"vision_config": VisGLMVisionConfig, "qformer_config": Blip2QFormerConfig}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id")
# Where `rope_parameters` stood before transformers 5.
ROPE_KEYS = {"rope_theta", "partial_rotary_factor", "rope_scaling"}
ROPE_NUMBERS = ("rope_theta", "partial_rotary_factor", "factor")


def read_config(path: Path) -> VisGLMConfig:
    """The configuration in a native folder.

    Raises:
        CheckpointError: it is damaged, lacks what the network depends on, or asks for what is not built here.
    """
    fields = read_json(path / "config.json")
    parts = {name: fields.get(name) for name in (*PARTS, "text_config")}
    problems = [f"{name} is no table of settings" for name, part in parts.items() if not isinstance(part, dict | None)]
    problems += [f"the configuration has no {name}" for name in REQUIRED[VisGLMConfig] if fields.get(name) is None]
    if problems:
        raise CheckpointError(path, problems, NEXT_STEP)
    own = {name: part_fields(path, kind, part) for name, kind in PARTS.items() if (part := parts[name]) is not None}
    text = fields["text_config"]
    model_type = text.get("model_type")
    if not isinstance(model_type, str) or model_type not in TEXT_CONFIGS:
        raise CheckpointError(
            path, [f"text_config has the model type {str(model_type)[:80]!r}"], f"Known are {', '.join(TEXT_CONFIGS)}."
        )
    own["text_config"] = part_fields(path, TEXT_CONFIGS[model_type], text) | {"model_type": model_type}
    kept = [*VisGLMConfig.__annotations__, "architectures", "dtype", "transformers_version"]
    rest = {name: fields[name] for name in kept if name in fields and name not in parts}
    known = {*kept, *parts}
    problems = [f"no such setting: {name}" for name in fields if not is_known(name, known)]
    if problems:
        raise CheckpointError(path, problems, "Upgrade visglm, if a later version wrote this.")
    check_fields(path, fields, TOP)
    with told(path, "config.json"):
        config = VisGLMConfig(**own, **rest)
    check_ids(path, config)
    return config


TOP: dict[str, tuple[str, Fits]] = {
    "prompt_style": (
        f"one of {', '.join(PROMPT_STYLES)}", lambda value: isinstance(value, str) and value in PROMPT_STYLES,
    ),
    "image_token_id": ("an id", is_whole),
    "dtype": ("a dtype", lambda value: value in ("float32", "float16", "bfloat16", "float64")),
    "tie_word_embeddings": ("true or false", is_flag),
    "quantization": (
        "a record with a group_size from 1 to 65,536",
        lambda value: isinstance(value, dict) and is_whole(value.get("group_size", 1), 1, 2**16),
    ),
}  # fmt: skip


def part_fields(path: Path, kind: type[PreTrainedConfig], fields: Mapping[str, Any], whole: bool = True) -> dict:
    """What a part's configuration says of its network, without what transformers keeps beside that.

    Args:
        whole: everything the network depends on must be there.

    Raises:
        CheckpointError: something is missing, or is unknown.
    """
    with told(path, kind.__name__):
        reject_hub_code(dict(fields))
    own = kind.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
    own |= ROPE_KEYS if "rope_parameters" in own else set()
    problems = [f"{kind.__name__} has no field {name!r}" for name in fields if not is_known(name, own)]
    if whole:
        missing = [name for name in REQUIRED.get(kind, ()) if fields.get(name) is None]
        problems += [f"{kind.__name__} lacks {name}" for name in missing]
    rope = fields.get("rope_parameters")
    if rope is not None and not (
        isinstance(rope, dict)
        and isinstance(rope.get("rope_type"), str)
        and all(is_number(rope.get(name, 1.0), 1e-3, 1e12) for name in ROPE_NUMBERS)
        and (not whole or kind not in REQUIRED or {"rope_theta", "partial_rotary_factor"} <= rope.keys())
    ):
        problems.append(f"{kind.__name__}: rope_parameters is {str(rope)[:120]!r}")
    if problems:
        raise CheckpointError(path, problems, NEXT_STEP)
    return {name: value for name, value in fields.items() if name in own and name != "model_type"}


def is_known(name: str, own: set[str]) -> bool:
    """Whether a key is one of `own`, or of those that transformers puts into every configuration."""
    return name in own or name.startswith("_") or name in INHERITED or hasattr(PreTrainedConfig, name)


INHERITED = {
    *("model_type", "torch_dtype", "num_labels", "attn_implementation", "experts_implementation", "per_layer_config"),
    *("auto_map", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
    "tie_word_embeddings",
}


def check_ids(path: Path, config: Any) -> None:
    """Every token that a configuration names has an embedding.

    Raises:
        CheckpointError: one has none.
    """
    text = config.text_config
    named = [(name, getattr(text, name, None)) for name in TOKEN_IDS] + [("image_token_id", config.image_token_id)]
    problems = [
        f"{name} is {str(value)[:80]}, the model has the ids 0 to {text.vocab_size - 1:,}"
        for name, value in named
        if not are_ids(value, text.vocab_size)
    ]
    if problems:
        raise CheckpointError(path, problems, NEXT_STEP)


def are_ids(value: Any, vocab_size: int) -> bool:
    """Whether it is an id, a list of some, or None."""
    values = value if isinstance(value, list) and value else [value]
    return value is None or all(is_whole(item, 0, vocab_size - 1) for item in values)


# --- generation_config.json ------------------------------------------------------------------------

NUMBER, FLAG = "a number in its range", "true or false"
# Settings of answers that a folder may bring, with what is possible. Others are refused: most make no sense here, and
# some ask for other models or for more memory than there is.
GENERATION: dict[str, tuple[str, Fits]] = {
    "do_sample": (FLAG, is_flag),
    "use_cache": (FLAG, is_flag),
    "early_stopping": (FLAG, is_flag),
    "renormalize_logits": (FLAG, is_flag),
    "remove_invalid_values": (FLAG, is_flag),
    "max_length": (NUMBER, lambda value: is_whole(value, 1)),
    "max_new_tokens": (NUMBER, lambda value: is_whole(value, 1)),
    "min_length": (NUMBER, is_whole),
    "min_new_tokens": (NUMBER, is_whole),
    "num_beams": (NUMBER, lambda value: is_whole(value, 1, 64)),
    "num_return_sequences": ("1", lambda value: is_whole(value, 1, 1)),
    "no_repeat_ngram_size": (NUMBER, lambda value: is_whole(value, 0, 1024)),
    "top_k": (NUMBER, is_whole),
    "top_p": (NUMBER, lambda value: is_number(value, 0.0, 1.0)),
    "min_p": (NUMBER, lambda value: is_number(value, 0.0, 1.0)),
    "typical_p": (NUMBER, lambda value: is_number(value, 0.0, 1.0)),
    "temperature": (NUMBER, lambda value: is_number(value, 0.0, 100.0)),
    "repetition_penalty": (NUMBER, lambda value: is_number(value, 0.01, 100.0)),
    "length_penalty": (NUMBER, lambda value: is_number(value, -100.0, 100.0)),
}
UNUSED = {"output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"}
NOTES = {"_from_model_config", "transformers_version", *UNUSED}  # about the file, or about what nobody looks at


def read_generation(path: Path, config: Any) -> GenerationConfig:
    """The folder's own settings of answers, or what the configuration says of end and pad tokens.

    Raises:
        CheckpointError: a setting is unknown or out of its range.
    """
    made = GenerationConfig.from_model_config(config)
    if not (path / "generation_config.json").is_file():
        return made
    with told(path, "generation_config.json"):
        fields = {
            name: value for name, value in read_json(path / "generation_config.json").items() if value is not None
        }
    ids = ("an id of the vocabulary", lambda value: are_ids(value, config.text_config.vocab_size))
    table = GENERATION | dict.fromkeys(TOKEN_IDS[:3], ids) | {name: (FLAG, is_flag) for name in NOTES}
    table["transformers_version"] = ("a version", lambda value: isinstance(value, str))
    unknown = {name: ("to be left to generate(…)", lambda value: False) for name in fields if name not in table}
    check_fields(path / "generation_config.json", fields, table | unknown)
    with told(path, "generation_config.json"):
        found = GenerationConfig(**{name: value for name, value in fields.items() if name not in UNUSED})
    for name in TOKEN_IDS[:3]:
        if getattr(found, name) is None:
            setattr(found, name, getattr(made, name))
    return found
