"""Which files of a folder a checkpoint is made of: a save replaces those, and nobody else's.

A save lists what it wrote in `visglm_files.json`. What others published, or added, is in no list; there a file that
says what it is (`config.json`, an index) speaks for the exact names that go with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..families import FAMILIES
from ..families.visualglm import VISUALGLM
from ..untrusted import DamagedFile, read_json
from .files import READERS, write_json

MARKER_NAME = "visglm_files.json"
MARKER_FORMAT = 1
STEMS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
TOKENIZERS = {"ChatGLMTokenizer", "ChatGLM2Tokenizer"}
ENDS = (*READERS, ".json", ".model", ".jinja", ".onnx")  # of what a checkpoint is made of, besides `latest`


class Speaker(NamedTuple):
    """A file whose content tells that the folder holds a checkpoint, or a part of one.

    Args:
        tells: whether its fields are of that kind.
        names: exact names that belong with it.
    """

    tells: Callable[[dict[str, Any]], bool]
    names: Callable[[Path, dict[str, Any]], Iterable[str]]


def _hub_names(folder: Path, fields: dict[str, Any]) -> Iterable[str]:
    vocabulary = ["ice_text.model"]
    if "padded_vocab_size" in fields or (fields.get("text_config") or fields).get("model_type") == "glm":
        vocabulary = ["tokenizer.model", "tokenizer.json"]
    if fields.get("model_type") != VISUALGLM.model_type and fields.get("model_type") in FAMILIES:
        vocabulary = ["tokenizer.json", "video_preprocessor_config.json"]
    return ["generation_config.json", "preprocessor_config.json", *SETTINGS, *vocabulary, *_weights(folder)]


def _weights(folder: Path) -> Iterable[str]:
    for stem, suffix in STEMS:
        index = f"{stem}{suffix}.index.json"
        yield from (stem + suffix, index)
        yield from (path.name for path in folder.glob(f"{stem}-*{suffix}") if is_shard(path.name, stem, suffix))
        table = _fields(folder / index).get("weight_map")
        named = table.values() if isinstance(table, dict) else ()
        yield from (name for name in named if isinstance(name, str) and "/" not in name and name.endswith(suffix))


def _sat_names(folder: Path, fields: dict[str, Any]) -> Iterable[str]:
    ranks = (path.relative_to(folder).as_posix() for path in folder.glob("*/mp_rank_*_model_states.pt"))
    return ["latest", "ice_text.model", "tokenizer_config.json", *ranks]


SETTINGS = (
    *("processor_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.jinja",
)
GRAPH_NAME = re.compile(r"(decoder|heat|vision(-\d+)?)\.onnx")
SPEAKERS: dict[str, Speaker] = {
    "config.json": Speaker(lambda fields: fields.get("model_type") in {"chatglm", "glm", *FAMILIES}, _hub_names),
    "model_config.json": Speaker(lambda fields: {"num_layers", "hidden_size"} <= fields.keys(), _sat_names),
    "visglm_adapter.json": Speaker(
        lambda fields: "base" in fields,
        lambda folder, fields: ["adapter_config.json", "adapter_model.safetensors", "trained.safetensors", *SETTINGS],
    ),
    "adapter_config.json": Speaker(
        lambda fields: "peft_type" in fields, lambda folder, fields: ["adapter_model.safetensors"]
    ),
    "processor_config.json": Speaker(
        lambda fields: fields.get("processor_class") == "VisGLMProcessor", lambda folder, fields: SETTINGS
    ),
    "tokenizer_config.json": Speaker(
        lambda fields: fields.get("tokenizer_class") in TOKENIZERS,
        lambda folder, fields: [
            "tokenizer.model" if fields["tokenizer_class"] == "ChatGLM2Tokenizer" else "ice_text.model"
        ],
    ),
    "light.json": Speaker(
        lambda fields: {"format", "graphs"} <= fields.keys() and isinstance(fields["graphs"], dict),
        lambda folder, fields: [name for name in map(str, fields["graphs"].values()) if GRAPH_NAME.fullmatch(name)],
    ),
    "generation_config.json": Speaker(lambda fields: "transformers_version" in fields, lambda folder, fields: ()),
}


def is_shard(name: str, stem: str, suffix: str) -> bool:
    return re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+{re.escape(suffix)}", name) is not None


def owned(folder: Path) -> set[str]:
    """Relative names of the files that a checkpoint in `folder` is made of; there may be none."""
    listed = _fields(folder / MARKER_NAME).get("files")
    names = {MARKER_NAME, *(name for name in listed if isinstance(name, str))} if isinstance(listed, list) else set()
    # Beside the list too: transformers may have written shards since, and a fine-tuning run its adapter.
    told = {name: fields for name, row in SPEAKERS.items() if row.tells(fields := _fields(folder / name))}
    names |= {name for speaker, fields in told.items() for name in (speaker, *SPEAKERS[speaker].names(folder, fields))}
    return {name for name in names if is_within(folder, name) and (folder / name).is_file()}


def is_within(folder: Path, name: str) -> bool:
    """Whether a name that a file gave stays in the folder, and is of a kind that checkpoints have."""
    path = PurePosixPath(name)
    return (
        not path.is_absolute()
        and 1 <= len(path.parts) <= 2
        and ".." not in path.parts
        and (path.suffix in ENDS or path.name == "latest")
        and not (len(path.parts) == 2 and (folder / path.parts[0]).is_symlink())
    )


def write_marker(folder: Path, names: Iterable[str]) -> None:
    """List the files of a checkpoint."""
    write_json(folder / MARKER_NAME, {"format": MARKER_FORMAT, "files": sorted(names)})


def _fields(path: Path) -> dict[str, Any]:
    """Of a JSON file that may be missing, or something else under this name."""
    try:
        return read_json(path)
    except DamagedFile:
        return {}
