"""Which format a folder is in, by what it holds. A new one is a `Source` and a row of `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...errors import CheckpointError
from ...families import FAMILIES
from ...families.glm4v import Glm4v
from ...recipe import cut_short
from ...untrusted import NEXT_STEP, read_json, told
from ..settings import check_ids
from ..source import Source
from ..writer import finish
from .family import FamilySource
from .glm import ChatGLM2Source, TransformersGlmSource
from .legacy import LegacySource, SatSource
from .native import NativeSource


@dataclass(frozen=True)
class Format:
    """A row of `FORMATS`.

    Args:
        name: how people call it.
        holds: whether a folder, with the fields of its `config.json` (empty without one), is in it.
        make: makes the source; `tokenizer` is a folder to take the tokenizer from, or None.
    """

    name: str
    holds: Callable[[Path, dict], bool]
    make: Callable[[Path, Path | None], Source]

    def open(self, path: Path, tokenizer: Path | None) -> Source:
        """The source of a folder, whose configuration is such that a network can be built of it.

        Raises:
            CheckpointError: it is damaged.
        """
        with told(path, "the checkpoint"):
            source = self.make(path, tokenizer)
            check_ids(path, source.config)
            check_layers(source)
        return source


def check_layers(source: Source) -> None:
    """Compare the number of layers with that of tensors, before layers are built.

    Raises:
        CheckpointError: there are more layers.
    """
    config, count = source.config, len(source.keys())
    parts = (config.text_config, config.vision_config, getattr(config, "qformer_config", None))
    layers = sum(part.num_hidden_layers for part in parts if part is not None)
    if layers > count and not source.problems:  # files that are damaged are told by name, and explain it
        raise CheckpointError(
            source.path, [f"the configuration has {layers:,} layers, the files {count:,} tensors"], NEXT_STEP
        )


def _is(model_type: str) -> Callable[[Path, dict], bool]:
    return lambda path, fields: fields.get("model_type") == model_type


FORMATS = (
    Format("visglm", _is("visglm"), NativeSource),
    Format(
        "VisualGLM-6B or ChatGLM-6B in Hugging Face layout",
        lambda path, fields: fields.get("model_type") == "chatglm" and "padded_vocab_size" not in fields,
        LegacySource,
    ),
    Format(
        "ChatGLM2, ChatGLM3 or GLM-4 with remote code",
        lambda path, fields: fields.get("model_type") == "chatglm" and "padded_vocab_size" in fields,
        ChatGLM2Source,
    ),
    Format("GLM-4 in transformers' layout", _is("glm"), TransformersGlmSource),
    Format(
        "SwissArmyTransformer",
        lambda path, fields: (
            (path / "model_config.json").is_file() or bool(list(path.glob("*/mp_rank_*_model_states.pt")))
        ),
        SatSource,
    ),
    *(
        Format(row.name, _is(row.model_type), partial(FamilySource, family=row))
        for row in FAMILIES.values()
        if isinstance(row, Glm4v)
    ),
)


def recognise(path: Path) -> Format:
    """The one format that `path` is in.

    Raises:
        CheckpointError: there is no such folder, it is in none, or it is in several at once.
    """
    if not path.is_dir():
        raise CheckpointError(path, ["there is no such folder"], "Check the path; a hub id has the form owner/name.")
    finish(path)
    with told(path, "config.json"):
        fields = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    found = [row for row in FORMATS if row.holds(path, fields)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            path, [f"it is in {len(found)} formats at once: {' and '.join(row.name for row in found)}"],
            "Keep each checkpoint in a folder of its own.",
        )  # fmt: skip
    known = f"Name the folder that holds a checkpoint. Known formats: {'; '.join(row.name for row in FORMATS)}."
    said = f"config.json says model_type {fields.get('model_type')!r}" if fields else "config.json is missing"
    raise CheckpointError(path, [said], cut_short(path) or known)
