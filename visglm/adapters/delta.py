"""Adapter folders: what fine-tuning has changed, and which base it belongs to.

visglm_adapter.json                             base, its quantization, method, version
adapter_config.json, adapter_model.safetensors  LoRA, as PEFT writes it
trained.safetensors                             tensors that were learnt whole, and prefixes, under their own names
tokenizer and processor files
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import CheckpointError
from ..untrusted import read_json, told
from .parts import KINDS, LORA, kind_of, lora_config, pairs

METADATA_NAME, TRAINED_NAME = "visglm_adapter.json", "trained.safetensors"
LORA_CONFIG_NAME, LORA_NAME = "adapter_config.json", "adapter_model.safetensors"
FILES = (METADATA_NAME, TRAINED_NAME, LORA_CONFIG_NAME, LORA_NAME)
LORA_START = "base_model.model."  # PEFT puts this in front of every name
FORMAT_VERSION = 2  # 1 knew its base by a path alone
COPY_AGAIN = "Copy the adapter folder again, whole."

EMBEDDED = "visglm-tiny"  # the name of the base that is in the package
HERE = "."  # the base that lies in the adapter's own folder

# Fields of PEFT's adapter_config.json that are read: they say by how much the matrices count.
READ = (
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "peft_type",
    "base_model_name_or_path",
    "revision",
)
# Fields that change nothing about what trained matrices compute. Which modules they belong to, their names tell.
NEUTRAL = (
    "alora_invocation_tokens", "auto_mapping", "corda_config", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "runtime_config", "target_modules",
    "task_type", "ensure_weight_tying",
)  # fmt: skip


@dataclass(frozen=True)
class Home:
    """Where a base can be found again.

    Args:
        name: an absolute folder, one relative to the adapter's that starts with a dot, a hub id, `EMBEDDED` or `HERE`.
        fingerprint: of the numbers there; None where an older visglm or PEFT alone wrote the adapter.
        revision: of a hub id, its commit.
    """

    name: str
    fingerprint: str | None = None
    revision: str | None = None


@dataclass
class Delta:
    """What fine-tuning changed, as tensors on the CPU.

    Args:
        method: it was trained by.
        tensors: by their names in the base; LoRA's as `{module}.lora_A.weight`.
        alphas: of LoRA, by module; what its matrices give is scaled by alpha / rank.
        base: what it belongs to.
        quantization: of that base, as its configuration records it.
    """

    method: str
    tensors: dict[str, Tensor]
    base: Home
    alphas: dict[str, float] = field(default_factory=dict)
    quantization: dict[str, Any] | None = None

    def by_kind(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each kind of part."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            found.setdefault(kind_of(name), {})[name] = tensor
        return found

    def problems(self, network: PreTrainedModel) -> list[str]:
        """Why it cannot be attached to this network (which may be on the meta device), one line each."""
        found = [] if self.tensors else ["it holds no tensors"]
        for kind, tensors in self.by_kind().items():
            found += KINDS[kind].problems(network, tensors)
        return found


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder holds an adapter: visglm's own, or one that PEFT wrote."""
    return any((Path(folder) / name).is_file() for name in (METADATA_NAME, LORA_CONFIG_NAME))


def read_delta(folder: str | Path) -> Delta:
    """The adapter of a folder.

    Raises:
        CheckpointError: it is damaged, was written by a later version, or holds what visglm does not compute.
    """
    folder = Path(folder)
    lora = _read_json(folder / LORA_CONFIG_NAME) if (folder / LORA_CONFIG_NAME).is_file() else {}
    metadata = _read_metadata(folder) if (folder / METADATA_NAME).is_file() else _peft_metadata(folder, lora)
    tensors = read_tensors(folder / TRAINED_NAME)
    problems = [f"{TRAINED_NAME}: {name} is LoRA's" for name in tensors if LORA.fullmatch(name)]
    low_rank = read_tensors(folder / LORA_NAME)
    for name, tensor in low_rank.items():
        plain = name.removeprefix(LORA_START)
        if plain == name or not LORA.fullmatch(plain):
            problems.append(f"{LORA_NAME}: {name} is none of LoRA's matrices A and B of linear layers")
        tensors[plain] = tensor
    problems += [f"{name}: {tensor.dtype}" for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if low_rank and not lora:
        problems.append(f"{LORA_CONFIG_NAME} is missing")
    if not problems and low_rank:
        alphas, problems = _read_alphas(lora, tensors)
    else:
        alphas = {}
    if problems:
        raise CheckpointError(folder, problems, COPY_AGAIN)
    base = Home(**metadata["base"])
    return Delta(metadata["method"], tensors, base, alphas, metadata["quantization"])


def write_delta(folder: Path, delta: Delta) -> None:
    """Write the files of an adapter into a folder that has none of them."""
    kinds = delta.by_kind()
    low_rank = kinds.pop("lora", {})
    if low_rank:
        ranks = {name: pair["A"].shape[0] for name, pair in pairs(low_rank).items()}
        config = lora_config(ranks, delta.alphas)
        config.base_model_name_or_path, config.revision = delta.base.name, delta.base.revision
        config.inference_mode = True
        config.save_pretrained(str(folder))
        write_tensors(folder / LORA_NAME, {LORA_START + name: tensor for name, tensor in low_rank.items()})
    others = {name: tensor for tensors in kinds.values() for name, tensor in tensors.items()}
    if others:
        write_tensors(folder / TRAINED_NAME, others)
    metadata = {
        "format": FORMAT_VERSION,
        "method": delta.method,
        "base": asdict(delta.base),
        "quantization": delta.quantization,
        "version": version("visglm"),
    }
    (folder / METADATA_NAME).write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", "utf-8")


def relative_to(home: Home, run: Path, folder: Path) -> Home:
    """The same, named by its way from the adapter's `folder` where it lies inside `run`, so that all move together."""
    path = Path(home.name)
    if not path.is_absolute() or not path.is_relative_to(run):
        return home
    way = Path(os.path.relpath(path, folder)).as_posix()
    return replace(home, name=way if way.startswith(".") else f"./{way}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, none where there is no file.

    Raises:
        CheckpointError: it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(path, [f"it is damaged ({error})"], COPY_AGAIN) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.write_bytes(save(ready, metadata={"format": "pt"}))


def _read_json(path: Path) -> dict[str, Any]:
    with told(path.parent, path.name, COPY_AGAIN):
        return read_json(path)


def _read_metadata(folder: Path) -> dict[str, Any]:
    path = folder / METADATA_NAME
    content = _read_json(path)
    number = content.get("format")
    if number not in (1, FORMAT_VERSION):
        raise CheckpointError(path, [f"its format is {number!r}, known is {FORMAT_VERSION}"], "Upgrade visglm.")
    base = content.get("base")
    if number == 1:
        base = {"name": EMBEDDED if base is None else base}
    fields: dict[str, Any] = {
        "method": content.get("method"),
        "quantization": content.get("quantization"),
        "base": base,
    }
    problems = [] if isinstance(fields["method"], str) else [f"method is {fields['method']!r}"]
    if not isinstance(fields["quantization"], dict | None):
        problems.append(f"quantization is {fields['quantization']!r}")
    if not isinstance(base, dict) or not _is_home(base):
        problems.append(f"base is {base!r}")
    if problems:
        raise CheckpointError(path, problems, COPY_AGAIN)
    return fields


def _is_home(base: Mapping[str, Any]) -> bool:
    known = set(base) <= {"name", "fingerprint", "revision"}
    return known and isinstance(base.get("name"), str) and all(isinstance(base.get(key), str | None) for key in base)


def _peft_metadata(folder: Path, lora: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter that PEFT alone wrote says about itself."""
    path = folder / LORA_CONFIG_NAME
    base, kind = lora.get("base_model_name_or_path"), lora.get("peft_type")
    problems = [] if isinstance(base, str) and base else ["it does not name its base model (base_model_name_or_path)"]
    problems += [] if kind == "LORA" else [f"its peft_type is {kind!r}; visglm reads LORA"]
    if problems:
        raise CheckpointError(
            path, problems, "Write the base model's folder into it, or train the adapter with visglm."
        )
    revision = lora.get("revision")
    home = {"name": base, "revision": revision if isinstance(revision, str) else None}
    return {"base": home, "quantization": None, "method": "lora"}


def _read_alphas(lora: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, float], list[str]]:
    """Alpha of every module, from a configuration of which nothing else is believed."""
    problems = [
        f"{LORA_CONFIG_NAME}: {name} is {value!r}, which would change what LoRA computes, and is not read"
        for name, value in lora.items()
        if name not in READ and name not in NEUTRAL and value and not (name == "bias" and value == "none")
    ]
    usual, rslora = lora.get("lora_alpha"), lora.get("use_rslora", False)
    special = lora.get("alpha_pattern") or {}
    special = {_literal(key): value for key, value in special.items()} if isinstance(special, dict) else {"": None}
    if not all(_is_number(value) for value in [usual, *special.values()]) or not isinstance(rslora, bool):
        return {}, [*problems, f"{LORA_CONFIG_NAME}: lora_alpha is {usual!r}, alpha_pattern {special!r}"]
    alphas = {}
    for module, pair in pairs(tensors).items():
        if "A" not in pair or pair["A"].ndim != 2:
            continue  # told when it meets a network
        # As PEFT does it: a pattern is a whole name or its end.
        own = (value for key, value in special.items() if module == key or module.endswith("." + key))
        alpha = float(next(own, usual))  # type: ignore[arg-type]
        alphas[module] = alpha * math.sqrt(pair["A"].shape[0]) if rslora else alpha
    unused = [key for key in special if not any(m == key or m.endswith("." + key) for m in alphas)]
    problems += [f"{LORA_CONFIG_NAME}: alpha_pattern {key!r} names no module; patterns must be names" for key in unused]
    return alphas, problems


def _literal(pattern: str) -> str:
    return re.sub(r"\\(.)", r"\1", pattern)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6
