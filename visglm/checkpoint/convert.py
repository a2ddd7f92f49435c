"""Checkpoints from any format into three: native, the hub's VisualGLM-6B layout, SwissArmyTransformer's."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..adapters import HERE, Adapters, Home, relative_to, write_delta
from ..config import ChatGLMConfig, VisGLMConfig
from ..errors import CheckpointError, ConfigError
from ..families import FamilyProcessor, family_of
from ..processor import VisGLMProcessor
from ..tokenizers import VOCAB_FILE_NAME
from .assemble import build, check
from .files import write_json
from .layouts import recognise
from .layouts.legacy import HF_VISION, SAT_VISION
from .layouts.rules import CHATGLM_HF, CHATGLM_SAT, VISION, Move, expand
from .source import Source, refuse_delta, refuse_source
from .writer import ShardWriter, replacing


def convert(source: Source, folder: str | Path, to: str) -> None:
    """Write a checkpoint in another format; weights pass through one at a time and keep their dtype.

    Args:
        to: key of `EXPORTS`.

    Raises:
        ConfigError: there is no such format, it cannot hold this network, or the folder is the source's own.
        CheckpointError: the source is broken, or the folder cannot be written.
    """
    if to not in EXPORTS:
        raise ConfigError(f"no format {to!r} to convert to; the formats are {', '.join(EXPORTS)}.")
    refuse_delta(source)
    refuse_source(folder, source.path, source.weights_path)
    with replacing(folder) as partial:
        write_as(to, source, partial)


def write_as(to: str, source: Source, folder: Path) -> None:
    """Write a checkpoint into an empty folder, without the adapter over it, if there is one.

    Raises:
        CheckpointError: the source is broken.
    """
    check(source, build(source.config))
    EXPORTS[to](source, folder)


def _write_native(source: Source, folder: Path) -> None:
    processor = source.processor()
    write_weights(source.tensors(), folder)
    write_settings(source.config, source.generation_config(), folder)
    processor.save_pretrained(folder)


def _write_legacy(source: Source, folder: Path) -> None:
    moves = _legacy_moves(source.config, CHATGLM_HF, HF_VISION)
    processor = source.processor()
    writer = ShardWriter(folder, "pytorch_model", ".bin")
    for name, tensor in _exported(source, moves):
        writer.add(name, tensor)
    writer.close()
    write_json(folder / "config.json", _legacy_fields(source.config) | _hub_fields(source))
    _write_tokenizer(processor, folder)


def _write_sat(source: Source, folder: Path) -> None:
    moves = _legacy_moves(source.config, CHATGLM_SAT, SAT_VISION)
    processor = source.processor()
    # One file holds them all, so they are all in memory once.
    module = {name: tensor.clone() for name, tensor in _exported(source, moves)}
    (folder / "1").mkdir()
    torch.save({"module": module}, folder / "1" / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text("1", "utf-8")
    fields = _legacy_fields(source.config)
    fields["model_class"] = "VisualGLMModel" if source.config.vision_config else "ChatGLMModel"
    fields |= {"tokenizer_type": "THUDM/chatglm-6b", "layernorm_order": "post", "model_parallel_size": 1}
    for new, old in (("eva_args", "eva_config"), ("qformer_args", "qformer_config")):
        if old in fields:
            fields[new] = fields.pop(old)
    write_json(folder / "model_config.json", fields)
    _write_tokenizer(processor, folder)  # which SwissArmyTransformer looks for elsewhere, and people lose


# Format → what writes it into an empty folder.
EXPORTS: dict[str, Callable[[Source, Path], None]] = {
    "native": _write_native,
    "hf-legacy": _write_legacy,
    "sat": _write_sat,
}


def write_weights(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Native weights, in shards."""
    writer = ShardWriter(folder, "model", ".safetensors")
    for name, tensor in tensors:
        writer.add(name, tensor)
    writer.close()


def write_settings(config: PreTrainedConfig, generation: Any, folder: Path) -> None:
    """Configuration, as the family's networks are loaded by."""
    config.architectures = [family_of(config).network_class.__name__]
    config.save_pretrained(folder)
    # As it was read: transformers' own saving refuses settings that contradict each other, as some published ones do.
    generation.to_json_file(folder / "generation_config.json")


def save(adapters: Adapters, processor: VisGLMProcessor | FamilyProcessor, folder: str | Path) -> None:
    """Write what a network is: itself, or the adapter in use, with its base beside it where nothing else holds that.

    Raises:
        CheckpointError: the folder cannot be written. ConfigError: it is the base's own.
    """
    home = adapters.home
    if adapters.active is not None and home is not None and home.name != HERE:
        save_adapter(adapters, processor, folder, home)
        return
    with replacing(folder) as partial:
        save_base(adapters, processor, partial)
        if adapters.active is not None:
            write_delta(partial, adapters.delta(Home(HERE, adapters.fingerprint())))


def save_adapter(
    adapters: Adapters, processor: VisGLMProcessor | FamilyProcessor, folder: str | Path, home: Home
) -> None:
    """Write the adapter in use, over a base that lies elsewhere.

    Raises:
        CheckpointError: the folder cannot be written. ConfigError: it is the base's own.
    """
    target = Path(folder).expanduser().resolve()
    if Path(home.name).is_absolute() and target == Path(home.name).resolve():
        raise ConfigError(
            f"{target} holds the base model of this adapter, which would be lost. Choose another folder, or merge() "
            "first to make one model of the two."
        )
    with replacing(folder) as partial:
        processor.save_pretrained(partial)
        write_delta(partial, adapters.delta(relative_to(home, target, target)))


def save_base(adapters: Adapters, processor: VisGLMProcessor | FamilyProcessor, folder: Path) -> None:
    """Write the network into an empty folder, as if no adapter had been put over it."""
    write_model(adapters.network, adapters.base().items(), folder)
    processor.save_pretrained(folder)


def write_model(model: PreTrainedModel, tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Write a network with these tensors, all but its processor, into an empty folder."""
    dtypes: list[torch.dtype] = []

    def watched() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            dtypes.extend([tensor.dtype] if tensor.is_floating_point() and not dtypes else [])
            yield name, tensor

    write_weights(watched(), folder)
    config = copy.deepcopy(model.config)
    config.dtype = dtypes[0]
    vars(config).pop("use_cache", None)  # Trainer leaves it there
    write_settings(config, model.generation_config, folder)


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a folder that `write_model` wrote, of whichever family; each may be a view of a file.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    source = recognise(folder).open(folder, None)
    if source.problems:
        raise CheckpointError(folder, source.problems, "Nothing was loaded.")
    yield from source.tensors()


def _legacy_moves(config: VisGLMConfig, text_rules: list, vision: str) -> list[Move]:
    if getattr(config, "quantization", None) is not None:
        raise ConfigError("this checkpoint is quantized, which the old formats cannot hold. Convert the 16-bit one.")
    added = {name: getattr(config.vision_config, name, None) for name in ("stem", "recogniser")}
    if not isinstance(config.text_config, ChatGLMConfig) or any(added.values()):
        text = config.text_config.model_type
        raise ConfigError(
            f"the old formats hold ChatGLM-6B behind a plain ViT; this is {text} with stem {added['stem']!r} and "
            f"recogniser {added['recogniser']!r}. Convert to native."
        )
    return list(expand([*text_rules, *(VISION if config.vision_config else [])], config, vision))


def _exported(source: Source, moves: list[Move]) -> Iterator[tuple[str, Tensor]]:
    """The source's tensors under their old names; those that were split are joined when the last part has come."""
    owner = {name: move for move in moves for name in move.new}
    waiting: dict[str, dict[str, Tensor]] = {}
    dtype = torch.float32
    for name, tensor in source.tensors():
        move = owner[name]
        parts = waiting.setdefault(move.old, {})
        parts[name] = tensor if len(move.new) == 1 else tensor.clone()
        if len(parts) == len(move.new):
            dtype = tensor.dtype
            del waiting[move.old]
            yield move.old, move.transform.join([parts[new] for new in move.new], source.config)
    for move in moves:
        if not move.new:
            yield move.old, move.transform.join([], source.config).to(dtype)


def _legacy_fields(config: VisGLMConfig) -> dict[str, Any]:
    """What both old layouts call the sizes."""
    text, vit, qformer = config.text_config, config.vision_config, config.qformer_config
    fields: dict[str, Any] = {
        "num_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "inner_hidden_size": text.intermediate_size,
        "num_attention_heads": text.num_attention_heads,
        "vocab_size": text.vocab_size,
        "max_sequence_length": text.max_position_embeddings,
        "layernorm_epsilon": text.layer_norm_eps,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "mask_token_id": text.mask_token_id,
        "gmask_token_id": text.gmask_token_id,
        "pad_token_id": text.pad_token_id,
    }
    if vit is None:
        return fields
    common = {"vocab_size": 1, "model_parallel_size": 1}
    fields["image_length"] = config.num_query_tokens
    fields["eva_config"] = common | {
        "num_layers": vit.num_hidden_layers,
        "hidden_size": vit.hidden_size,
        "num_attention_heads": vit.num_attention_heads,
        "layernorm_order": "pre",
        "max_sequence_length": (vit.image_size // vit.patch_size) ** 2 + 1,
        "inner_hidden_size": vit.intermediate_size,
        "use_final_layernorm": False,
        "layernorm_epsilon": vit.layer_norm_eps,
        "image_size": [vit.image_size, vit.image_size],
        "pre_len": 1,
        "post_len": 0,
        "in_channels": 3,
        "num_classes": 0,
        "patch_size": vit.patch_size,
    }
    fields["qformer_config"] = common | {
        "num_layers": qformer.num_hidden_layers,
        "hidden_size": qformer.hidden_size,
        "num_attention_heads": qformer.num_attention_heads,
        "vocab_size": config.num_query_tokens,
        "layernorm_order": "post",
        "max_sequence_length": 0,
        "inner_hidden_size": qformer.intermediate_size,
        "is_decoder": [layer % qformer.cross_attention_frequency == 0 for layer in range(qformer.num_hidden_layers)],
        "cross_attn_hidden_size": vit.hidden_size,
        "layernorm_epsilon": qformer.layer_norm_eps,
    }
    return fields


def _hub_fields(source: Source) -> dict[str, Any]:
    """What the code published on the hub reads beside the sizes; it must be copied into the folder to be used."""
    model = "ChatGLMForConditionalGeneration" + ("WithImage" if source.config.vision_config else "")
    dtype = next(info.dtype for name, info in source.keys().items() if name == "lm_head.weight")
    return {
        "architectures": ["ChatGLMModel"],
        "auto_map": {
            "AutoConfig": "configuration_chatglm.ChatGLMConfig",
            "AutoModel": f"modeling_chatglm.{model}",
            "AutoModelForSeq2SeqLM": f"modeling_chatglm.{model}",
        },
        "model_type": "chatglm",
        "position_encoding_2d": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }


def _write_tokenizer(processor: VisGLMProcessor, folder: Path) -> None:
    tokenizer = processor.tokenizer
    shutil.copyfile(tokenizer.vocab_file, folder / VOCAB_FILE_NAME)
    names = ("bos_token", "eos_token", "end_token", "gmask_token", "mask_token", "pad_token", "unk_token")
    fields: dict[str, Any] = {name: str(getattr(tokenizer, name)) for name in names}
    fields |= {
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "num_image_tokens": tokenizer.num_image_tokens,
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }
    write_json(folder / "tokenizer_config.json", fields)
