"""Which format a folder is in, by what it holds. A new one is a `Source` and a row of `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import CheckpointError
from ..files import DamagedFile, read_json
from ..source import Source
from .glm import ChatGLM2Source, TransformersGlmSource
from .legacy import LegacySource, SatSource
from .native import NativeSource


@dataclass(frozen=True)
class Format:
    """A row of `FORMATS`.

    Args:
        name: how people call it.
        holds: whether a folder, with the fields of its `config.json` (empty without one), is in it.
        open: makes the source; `tokenizer` is a folder to take the tokenizer from, or None.
    """

    name: str
    holds: Callable[[Path, dict], bool]
    open: Callable[[Path, Path | None], Source]


def _is(model_type: str) -> Callable[[Path, dict], bool]:
    return lambda path, fields: fields.get("model_type") == model_type


FORMATS = (
    Format("visglm", _is("visglm"), lambda path, tokenizer: NativeSource(path)),
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
        lambda path, fields: (path / "model_config.json").is_file() or bool(list(path.glob("*/mp_rank_*"))),
        SatSource,
    ),
)


def recognise(path: Path) -> Format:
    """The one format that `path` is in.

    Raises:
        CheckpointError: there is no such folder, it is in none, or it is in several at once.
    """
    if not path.is_dir():
        raise CheckpointError(path, ["there is no such folder"], "Check the path; a hub id has the form owner/name.")
    try:
        fields = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    except DamagedFile as error:
        raise CheckpointError(path, [str(error)], "Download the folder again, whole.") from error
    found = [row for row in FORMATS if row.holds(path, fields)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            path, [f"it is in {len(found)} formats at once: {' and '.join(row.name for row in found)}"],
            "Keep each checkpoint in a folder of its own.",
        )  # fmt: skip
    known = "; ".join(row.name for row in FORMATS)
    said = f"config.json says model_type {fields.get('model_type')!r}" if fields else "config.json is missing"
    raise CheckpointError(path, [said], f"Name the folder that holds a checkpoint. Known formats: {known}.")
