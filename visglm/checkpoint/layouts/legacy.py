"""VisualGLM-6B and ChatGLM-6B: the layout published on the Hugging Face hub, and SwissArmyTransformer's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ...adapters import Delta, is_leftover, read_leftovers
from ...config import RANGES, VisGLMConfig
from ...errors import CheckpointError, ConfigError
from ...processor import VisGLMProcessor
from ...tokenizers import VOCAB_FILE_NAME, ChatGLMTokenizer
from ...untrusted import read_json, told
from ..files import WeightFiles, find_weights
from ..processing import read_tokenizer
from ..settings import check_fields, is_whole
from ..source import Source
from .renamed import RenamedSource
from .rules import CHATGLM_HF, CHATGLM_SAT, VISION, expand

HF_VISION, SAT_VISION = "image_encoder.", "mixins.eva.model."
LEGACY_WEIGHTS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
# Settings that would make another network, with the one value that is built here.
FIXED: dict[str, Any] = {"position_encoding_2d": True, "layernorm_order": "post", "model_parallel_size": 1}
OLD_NAMES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "inner_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
    "patch_size": "patch_size",
}
OLD_SIZES = {old: ("a size", partial(is_whole, low=1, high=int(RANGES[new][1]))) for old, new in OLD_NAMES.items()}


def legacy_config(path: Path, fields: Mapping[str, Any]) -> VisGLMConfig:
    """The native configuration of what a legacy `config.json` or `model_config.json` describes.

    Raises:
        CheckpointError: a size is missing, or a setting asks for another network.
    """
    required = ("num_layers", "hidden_size", "num_attention_heads", "vocab_size")
    problems = [f"the configuration has no {name}" for name in required if name not in fields]
    problems += [
        f"{name} is {fields[name]!r}, expected {value!r}"
        for name, value in FIXED.items()
        if fields.get(name, value) != value
    ]
    if problems:
        raise CheckpointError(path, problems, "Expected a configuration of ChatGLM-6B or VisualGLM-6B.")
    vit = fields.get("eva_config") or fields.get("eva_args")
    qformer = fields.get("qformer_config") or fields.get("qformer_args")
    for part in (fields, vit, qformer):
        if part is not None:
            check_fields(path, part, OLD_SIZES)  # before anything is counted or repeated by them
    hidden_size, vocab_size = fields["hidden_size"], fields["vocab_size"]
    bos_token_id = fields.get("bos_token_id", vocab_size - 524)
    text = {
        "model_type": "visglm_chatglm",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": fields.get("inner_hidden_size", 4 * hidden_size),
        "num_hidden_layers": fields["num_layers"],
        "num_attention_heads": fields["num_attention_heads"],
        "max_position_embeddings": fields.get("max_sequence_length", 2048),
        "layer_norm_eps": fields.get("layernorm_epsilon", 1e-5),
        "bos_token_id": bos_token_id,
        "eos_token_id": fields.get("eos_token_id", bos_token_id + 1),
        "pad_token_id": fields.get("pad_token_id", 3),
        "mask_token_id": fields.get("mask_token_id", bos_token_id - 4),
        "gmask_token_id": fields.get("gmask_token_id", bos_token_id - 3),
    }
    try:
        if vit is None or qformer is None:
            return VisGLMConfig(text_config=text, prompt_style="chatglm")
        return VisGLMConfig(
            vision_config=_vision_fields(vit),
            qformer_config=_qformer_fields(path, qformer),
            text_config=text,
            num_query_tokens=fields.get("image_length", qformer["vocab_size"]),
            image_token_id=text["eos_token_id"] + 1,
            max_pictures=1,  # its chat function and its training data put one in front of all that is said
        )
    except KeyError as error:
        raise CheckpointError(path, [f"the configuration has no {error.args[0]}"], "Download it again.") from error


def _vision_fields(vit: Mapping[str, Any]) -> dict[str, Any]:
    image_size = vit["image_size"]
    return {
        "hidden_size": vit["hidden_size"],
        "intermediate_size": vit.get("inner_hidden_size", 4 * vit["hidden_size"]),
        "num_hidden_layers": vit["num_layers"],
        "num_attention_heads": vit["num_attention_heads"],
        "image_size": image_size[0] if isinstance(image_size, list) else image_size,
        "patch_size": vit["patch_size"],
        "layer_norm_eps": vit.get("layernorm_epsilon", 1e-6),
    }


def _qformer_fields(path: Path, qformer: Mapping[str, Any]) -> dict[str, Any]:
    crossing = qformer.get("is_decoder", [layer % 2 == 0 for layer in range(qformer["num_layers"])])
    if isinstance(crossing, bool):
        crossing = [crossing] * qformer["num_layers"]
    places = [layer for layer, crosses in enumerate(crossing) if crosses]
    frequency = places[1] if len(places) > 1 else max(len(crossing), 1)
    if crossing != [layer % frequency == 0 for layer in range(qformer["num_layers"])]:
        raise CheckpointError(
            path, [f"the Q-Former has cross attention in layers {places}"], "Expected it in every n-th layer from 0 on."
        )
    return {
        "hidden_size": qformer["hidden_size"],
        "intermediate_size": qformer.get("inner_hidden_size", 4 * qformer["hidden_size"]),
        "num_hidden_layers": qformer["num_layers"],
        "num_attention_heads": qformer["num_attention_heads"],
        "cross_attention_frequency": frequency,
        "layer_norm_eps": qformer.get("layernorm_epsilon", 1e-12),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "vocab_size": 1,
    }


def legacy_processor(source: Source, folder: Path) -> VisGLMProcessor:
    """ChatGLM's tokenizer from `folder` and the image processor of this network.

    Raises:
        CheckpointError: the vocabulary is missing, or is not the one this network was trained with.
    """
    config = source.config
    if not (folder / VOCAB_FILE_NAME).is_file():
        raise CheckpointError(
            source.path,
            [f"the tokenizer's vocabulary {VOCAB_FILE_NAME} is not in {folder}"],
            f"{VOCAB_FILE_NAME} is part of the releases THUDM/visualglm-6b and THUDM/chatglm-6b: copy it into a folder "
            "with tokenizer_config.json and name that folder with tokenizer=….",
        )
    try:
        with told(folder, "the tokenizer"):
            tokenizer = read_tokenizer(folder, ChatGLMTokenizer, image_token_id=config.image_token_id)
    except ConfigError as error:
        raise CheckpointError(
            source.path, [f"tokenizer: {error}"], "Use the tokenizer of the model's release."
        ) from error
    check_tokenizer(
        source, tokenizer, ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id")
    )
    return VisGLMProcessor.of(config, tokenizer)


def check_tokenizer(source: Source, tokenizer: Any, names: tuple[str, ...]) -> None:
    """Compare a tokenizer's control tokens with the configuration's.

    Raises:
        CheckpointError: it belongs to another model.
    """
    text = source.config.text_config
    problems = [
        f"tokenizer: {name} is {getattr(tokenizer, name, None)}, the model has {getattr(text, name)}"
        for name in names
        if getattr(text, name) is not None and getattr(tokenizer, name, None) != getattr(text, name)
    ]
    if len(tokenizer) > text.vocab_size:
        problems.append(f"tokenizer: it has {len(tokenizer):,} tokens, the model's embedding {text.vocab_size:,}")
    if problems:
        raise CheckpointError(
            source.path, problems, "This is another model's tokenizer. Use the one of its own release."
        )


def choose_weights(path: Path) -> WeightFiles:
    """The weights of a Hugging Face folder: safetensors, or `.bin`. Where both are there they must hold the same names.

    Raises:
        CheckpointError: they do not, so that nobody knows which of the two is meant.
    """
    found = [files for stem, suffix in LEGACY_WEIGHTS if (files := find_weights(path, stem, suffix)) is not None]
    if (
        len(found) == 2
        and not any(files.problems for files in found)
        and found[0].infos.keys() != found[1].infos.keys()
    ):
        names = [", ".join(file.name for file in files.paths) for files in found]
        raise CheckpointError(
            path,
            [f"two different sets of weights: {names[0]} and {names[1]}"],
            "Remove the one that does not belong here.",
        )
    return found[0] if found else WeightFiles([path / "pytorch_model.bin"])


class LegacySource(RenamedSource):
    """A folder like THUDM/visualglm-6b or THUDM/chatglm-6b: `config.json`, `.bin` shards, `ice_text.model`."""

    format = "hf-legacy"

    def __init__(self, path: Path, tokenizer: Path | None = None):
        fields = read_json(path / "config.json")
        config = legacy_config(path, fields)
        self._tokenizer = tokenizer or path
        moves = expand([*CHATGLM_HF, *(VISION if config.vision_config else [])], config, HF_VISION)
        super().__init__(path, config, choose_weights(path), moves, fields.get("quantization_bit"))

    def processor(self) -> VisGLMProcessor:
        return legacy_processor(self, self._tokenizer)


class SatSource(RenamedSource):
    """A folder that SwissArmyTransformer wrote: `latest`, `model_config.json`, `N/mp_rank_00_model_states.pt`.

    Attributes:
        leftovers: names of what its fine-tuning added, LoRA matrices and prefix tables, which `tensors`
            leaves out.
    """

    format = "sat"

    def __init__(self, path: Path, tokenizer: Path | None = None):
        self.fields = read_json(path / "model_config.json")
        config = legacy_config(path, self.fields)
        self._tokenizer = tokenizer
        moves = expand([*CHATGLM_SAT, *(VISION if config.vision_config else [])], config, SAT_VISION)
        super().__init__(path, config, WeightFiles(_sat_files(path)), moves)
        self.leftovers = [name for name in self.files.infos if is_leftover(name)]

    def old_name(self, name: str) -> str:
        return "" if is_leftover(name) else name.replace(".original.", ".")

    def delta(self) -> Delta | None:
        if not self.leftovers:
            return None
        found = {name: tensor.clone() for name, tensor in self.files.tensors() if is_leftover(name)}
        return read_leftovers(self.path, found, "model.text.layers.{}.attention.prefix".format)

    def processor(self) -> VisGLMProcessor:
        return legacy_processor(self, self._tokenizer or self.path)


def _sat_files(path: Path) -> list[Path]:
    latest = path / "latest"
    step = "1"
    if latest.is_file():
        with latest.open("rb") as file:
            step = file.read(256).decode("utf-8").strip()
    folder = path / Path(step).name
    ranks = sorted(folder.glob("mp_rank_*_model_states.pt"))
    if len(ranks) > 1:
        raise CheckpointError(
            path,
            [f"the model is split over {len(ranks)} files for model parallelism: {', '.join(r.name for r in ranks)}"],
            "Merge them with SwissArmyTransformer first; visglm reads mp_rank_00 alone.",
        )
    return ranks or [folder / "mp_rank_00_model_states.pt"]
