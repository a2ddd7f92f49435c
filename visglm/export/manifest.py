"""`light.json`: everything that an answer needs beside the graphs, as data, with the hash of every file it names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from ..checkpoint import Source, write_json
from ..processor import VisGLMProcessor
from ..prompt import PROMPT_STYLES, Control, PromptStyle, Segments
from ..text import BACKBONES
from ..text.prefix import attentions
from ..tokenizers import ChatGLM2Tokenizer, control_ids
from .graphs import bare_network, cache_names, cache_shape
from .weights import Weights

NAME, FORMAT = "light.json", 1
EMBEDDINGS = "model.text.embed_tokens.weight"
OF_ANSWERS = ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")  # of a checkpoint's own settings
BLOCK = 2**20


def describe(
    source: Source, processor: VisGLMProcessor, weights: Weights, folder: Path, graphs: Mapping[str, str]
) -> None:
    """Write the manifest of a folder that holds everything else.

    Args:
        graphs: name → file.
    """
    config, text = source.config, source.config.text_config
    layers, heads, width = cache_shape(text)
    both_ways = BACKBONES[text.model_type].reads_prefix_both_ways
    tables: dict[str, Any] = {"embeddings": table(weights, EMBEDDINGS)}
    if (scale := weights.scale(EMBEDDINGS)) is not None:
        tables["embedding_scales"] = table(weights, f"{EMBEDDINGS}_scale")
    prefix = prefix_names(source, weights)
    tables |= {f"prefix_{number}": table(weights, name) for number, name in enumerate(prefix)}
    tokens = tokenizer_fields(processor.tokenizer)
    fields = {
        "format": FORMAT,
        "visglm": version("visglm"),
        "prompt_style": config.prompt_style,
        "prompt": style_fields(PROMPT_STYLES[config.prompt_style]),
        "num_query_tokens": config.num_query_tokens,
        "image_token_id": config.image_token_id,
        "max_pictures": config.max_pictures,
        "context_length": text.max_position_embeddings,
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "cache": {"layers": layers, "heads": heads, "head_dim": width, "names": cache_names(layers)},
        "positions": positions(text) if both_ways else {"kind": "count"},
        "quantization": config.quantization if scale is not None or config.quantization else None,
        "answers": answer_settings(source.generation_config()),
        "pictures": None if config.vision_config is None else picture_settings(processor.image_processor),
        "tokenizer": tokens,
        "graphs": dict(graphs),
        "tables": tables,
    }
    named = {entry["file"] for entry in tables.values()} | {place.file for place in weights.places.values()}
    named |= {*fields["graphs"].values(), tokens["file"]}
    write_json(folder / NAME, fields | {"files": {name: sealed(folder / name) for name in sorted(named)}})


def table(weights: Weights, name: str) -> dict[str, Any]:
    place = weights.find(name)
    return {"file": place.file, "offset": place.offset, "dtype": place.dtype, "shape": list(place.shape)}


def prefix_names(source: Source, weights: Weights) -> list[str]:
    """The tensors of a P-Tuning prefix, layer by layer; none without one."""
    if not any(name.endswith(".prefix") for name in weights.places):
        return []
    text = bare_network(source.config).model.text
    return [f"model.text.{name}.prefix" for name, _ in attentions(text)]


def style_fields(style: PromptStyle) -> dict[str, Any]:
    """A prompt style for whoever has no Python: texts, `{"token": [names]}`, and marks as `{"mark": name}`."""

    def written(part: Any) -> Any:
        if isinstance(part, str):
            return part
        return {"token": list(part.names)} if isinstance(part, Control) else {"mark": part.name.lower()}

    def template(segments: Segments | None) -> list[Any] | None:
        return None if segments is None else [written(part) for part in segments]

    return {
        "questions": {language: template(segments) for language, segments in style.questions.items()},
        "lone_question": template(style.lone_question),
        "past_answer": template(style.past_answer),
        "start": template(style.start),
        "generation": template(style.generation),
        "first_round": style.first_round,
        "full_width": style.full_width,
    }


def positions(text: Any) -> dict[str, Any]:
    """How a prefix-LM of two planes counts: see `visglm.text.chatglm`."""
    return {"kind": "two planes", "start": text.bos_token_id, "blanks": [text.gmask_token_id, text.mask_token_id]}


def answer_settings(generation: Any) -> dict[str, Any]:
    ends = generation.eos_token_id
    ends = list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [ends]
    return {"end_ids": ends} | {name: getattr(generation, name, None) for name in OF_ANSWERS}


def picture_settings(processor: Any) -> dict[str, Any]:
    return {
        "height": processor.size["height"],
        "width": processor.size["width"],
        "resample": int(processor.resample),
        "rescale_factor": processor.rescale_factor if processor.do_rescale else 1.0,
        "mean": list(processor.image_mean) if processor.do_normalize else [0.0] * 3,
        "std": list(processor.image_std) if processor.do_normalize else [1.0] * 3,
    }


def tokenizer_fields(tokenizer: Any) -> dict[str, Any]:
    """What of a tokenizer is not in its vocabulary's file."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        kind, file = "byte pairs", "tokenizer.json"
    elif isinstance(tokenizer, ChatGLM2Tokenizer):
        kind, file = "plain sentencepiece", ChatGLM2Tokenizer.vocab_files_names["vocab_file"]
    else:
        kind, file = "sentencepiece with whitespace", tokenizer.vocab_files_names["vocab_file"]
    return {
        "kind": kind,
        "file": file,
        "num_image_tokens": getattr(tokenizer, "num_image_tokens", 0),
        "eos_token_id": tokenizer.eos_token_id,
        "unk_token_id": tokenizer.unk_token_id,
        "image_token_id": getattr(tokenizer, "image_token_id", None),
        "special_ids": sorted(control_ids(tokenizer)),
        "tokens": {str(token): index for index, token in sorted(tokenizer.added_tokens_decoder.items())},
    }


def sealed(path: Path) -> dict[str, Any]:
    """Size and hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
