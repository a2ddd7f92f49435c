"""Adapter folders: what fine-tuning has changed, and which model it belongs to.

    visglm_adapter.json                             base model, its quantization, method, version
    adapter_config.json, adapter_model.safetensors  LoRA, as PEFT writes it
    trained.safetensors                             tensors that were learnt whole, and prefixes, under their own names
    tokenizer and processor files

Adapters are put into the network in place: it stays a `VisGLMForConditionalGeneration`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError, require
from ..model import VisGLMForConditionalGeneration
from ..text.prefix import add_prefix, enable_prefix

EMBEDDED_MODEL = Path(__file__).parents[1] / "assets" / "visglm-tiny"
METADATA_NAME, TRAINED_NAME = "visglm_adapter.json", "trained.safetensors"
LORA_CONFIG_NAME, LORA_NAME = "adapter_config.json", "adapter_model.safetensors"
PREFIX_END = ".prefix"  # of the names of P-Tuning's tables
LORA_START = "base_model.model."  # PEFT puts this in front of every name
FORMAT_VERSION = 1


@dataclass
class Attached:
    """An adapter that is part of a network.

    Args:
        whole: tensors that replace those of the base, by name. base: what they replace, while they are in use.
        method: that it was trained by.
        has_lora, has_prefix: whether it is also made of those.
        beside_base: it came in one folder with its base, and is saved so.
    """

    whole: dict[str, Tensor] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)
    method: str = "lora"
    has_lora: bool = False
    has_prefix: bool = False
    beside_base: bool = False


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder holds an adapter: visglm's own, or one that PEFT wrote."""
    return any((Path(folder) / name).is_file() for name in (METADATA_NAME, LORA_CONFIG_NAME))


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """What the folder says about itself: `base` (None: the embedded model), `quantization`, `method`, `version`.

    Raises:
        CheckpointError: it was written by a later version, or is damaged.
    """
    path = Path(folder) / METADATA_NAME
    if not path.is_file():
        return _read_peft_metadata(Path(folder) / LORA_CONFIG_NAME)
    try:
        metadata = json.loads(path.read_text("utf-8"))
        version = metadata["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(path, [f"it cannot be read ({error})"], "Copy the adapter folder again, whole.") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(path, [f"its format is {version}, known is {FORMAT_VERSION}"], "Upgrade visglm.")
    return metadata


def _read_peft_metadata(path: Path) -> dict[str, Any]:
    """What an adapter that PEFT alone wrote says about itself."""
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(path, [f"it cannot be read ({error})"], "Copy the adapter folder again, whole.") from None
    base, kind = fields.get("base_model_name_or_path"), fields.get("peft_type")
    problems = [] if base else ["it does not name its base model (base_model_name_or_path)"]
    problems += [] if kind == "LORA" else [f"its peft_type is {kind!r}; visglm reads LORA"]
    if problems:
        raise CheckpointError(
            path, problems, "Write the base model's folder into it, or train the adapter with visglm."
        )
    return {"base": base, "quantization": None, "method": "lora", "format": FORMAT_VERSION}


def attached(model: VisGLMForConditionalGeneration) -> dict[str, Attached]:
    """The adapters of a network by name."""
    return model.__dict__.setdefault("visglm_adapters", {})


def write_adapter(folder: str | Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], lora: Any) -> None:
    """Write an adapter folder.

    Args:
        metadata: `base`, `quantization`, `method`, `version`.
        tensors: what was trained, by its name in the network. lora: PEFT's configuration, or None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    low_rank = {name: tensor for name, tensor in ready.items() if ".lora_" in name}
    if low_rank:
        named = {LORA_START + without_adapter_name(name): tensor for name, tensor in low_rank.items()}
        save_file(named, folder / LORA_NAME, metadata={"format": "pt"})
        lora.save_pretrained(folder)
    whole = {name: tensor for name, tensor in ready.items() if name not in low_rank}
    if whole:
        save_file(whole, folder / TRAINED_NAME, metadata={"format": "pt"})
    text = json.dumps({"format": FORMAT_VERSION, **metadata}, indent=2, ensure_ascii=False)
    (folder / METADATA_NAME).write_text(text + "\n", "utf-8")


def save_adapter(
    folder: str | Path,
    model: VisGLMForConditionalGeneration,
    name: str,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter of a network, the one in use.

    Args:
        state_dict: the tensors, where the network itself holds only a part of them (sharded training).
    """
    source: Mapping[str, Any] = state_dict if state_dict is not None else dict(model.named_parameters())
    metadata = {
        "base": base_name(model),
        "quantization": model.config.quantization,
        "method": attached(model)[name].method,
        "version": version("visglm"),
    }
    tensors = {key: source[key] for key in adapter_parameters(model, name)}
    lora = getattr(model, "peft_config", {}).get(name)
    write_adapter(folder, metadata, tensors, lora)


def base_name(model: VisGLMForConditionalGeneration) -> str | None:
    """Where the base model came from: an absolute folder or a hub id; None for the embedded one."""
    name = model.config._name_or_path or None
    if name is not None and Path(name).is_dir():
        return None if Path(name).resolve() == EMBEDDED_MODEL.resolve() else str(Path(name).resolve())
    return name


def adapter_parameters(model: VisGLMForConditionalGeneration, name: str) -> dict[str, nn.Parameter]:
    """The parameters that make up an adapter, by name."""
    record = attached(model)[name]
    return {
        key: parameter
        for key, parameter in model.named_parameters()
        if (".lora_" in key and f".{name}." in key)
        or (key.endswith(PREFIX_END) and record.has_prefix)
        or key in record.base
    }


def without_adapter_name(name: str) -> str:
    """`….lora_A.default.weight` as PEFT stores it, `….lora_A.weight`."""
    stem, _, last = name.rpartition(".")
    return f"{stem.rpartition('.')[0]}.{last}"


def attach(model: VisGLMForConditionalGeneration, folder: str | Path, name: str = "default") -> None:
    """Put the adapter of a folder into the network, and use it.

    Raises:
        CheckpointError: it does not fit this network; nothing was changed.
        ConfigError: there is one of that name already.
    """
    folder = Path(folder)
    method = read_metadata(folder)["method"]
    if name in attached(model):
        raise ConfigError(f"there is an adapter {name!r} already; choose another name.")
    whole = read_tensors(folder / TRAINED_NAME)
    prefixes = {key: whole.pop(key) for key in list(whole) if key.endswith(PREFIX_END)}
    if prefixes and any(other.has_prefix for other in attached(model).values()):
        raise ConfigError("one P-Tuning adapter at a time: load the base model again for the other one.")
    own = base_names(model)
    problems = [
        f"{key} is {list(tensor.shape)}, in the base {list(own[key].shape) if key in own else 'missing'}"
        for key, tensor in whole.items()
        if key not in own or own[key].shape != tensor.shape
    ]
    low_rank = read_tensors(folder / LORA_NAME)
    problems += check_low_rank(low_rank, own)
    if problems:
        raise CheckpointError(folder, problems, "Load it over the model it was trained on.")
    activate(model, None)
    record = Attached(whole=whole, method=method, has_lora=bool(low_rank), has_prefix=bool(prefixes))
    if low_rank:
        inject_lora(model, require("finetune", "peft").PeftConfig.from_pretrained(str(folder)), name)
        fill_lora(model, low_rank, name, folder)
    if prefixes:
        add_prefix(model.model.text, next(iter(prefixes.values())).shape[2])
        parameters = dict(model.named_parameters())
        if prefixes.keys() != {key for key in parameters if key.endswith(PREFIX_END)}:
            raise CheckpointError(
                folder, ["its prefixes are for another number of layers"], "Load it over its own base."
            )
        with torch.no_grad():
            for key, tensor in prefixes.items():
                parameters[key].copy_(tensor)
    attached(model)[name] = record
    model.requires_grad_(False)
    model.train(model.training)  # new layers start with dropout on
    activate(model, name)


def read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        return {}
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(path, [f"it is damaged ({error})"], "Copy the adapter folder again, whole.") from None


def base_names(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the base by name, as if no adapter had wrapped them."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if ".lora_" not in name
    }


def check_low_rank(low_rank: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    problems = []
    for key in low_rank:
        target = key.removeprefix(LORA_START).partition(".lora_")[0]
        if not any(name.startswith(target + ".") for name in own):
            problems.append(f"{target} is missing in the base")
    return problems


def inject_lora(model: nn.Module, config: Any, name: str) -> None:
    """Wrap the linear layers that PEFT's configuration names; what is learnt is float32."""
    require("finetune", "peft").inject_adapter_in_model(config, model, adapter_name=name)
    for key, parameter in model.named_parameters():
        if f".{name}." in key and ".lora_" in key:
            parameter.data = parameter.data.float()


def fill_lora(model: nn.Module, low_rank: Mapping[str, Tensor], name: str, folder: Path) -> None:
    parameters = {
        LORA_START + without_adapter_name(key): parameter
        for key, parameter in model.named_parameters()
        if ".lora_" in key and f".{name}." in key
    }
    if parameters.keys() != low_rank.keys():
        different = sorted(parameters.keys() ^ low_rank.keys())
        raise CheckpointError(folder, [f"LoRA weights differ: {key}" for key in different], "Copy it again, whole.")
    wrong = [key for key in parameters if parameters[key].shape != low_rank[key].shape]
    if wrong:
        raise CheckpointError(folder, [f"wrong shape: {key}" for key in wrong], "Load it over its own base.")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(low_rank[key])


def lora_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Modules that PEFT has wrapped, by name; none where it was never used."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]


@torch.no_grad()
def activate(model: VisGLMForConditionalGeneration, name: str | None) -> None:
    """Use one adapter, or with None the base as it is.

    Raises:
        ConfigError: there is none of that name.
    """
    records = attached(model)
    if name is not None and name not in records:
        raise ConfigError(f"there is no adapter {name!r}; there are: {', '.join(records) or 'none'}.")
    own = base_names(model)
    for record in records.values():
        for key, tensor in record.base.items():  # the one in use until now hands back what it replaced
            own[key].copy_(tensor)
        record.base = {}
    chosen = records[name] if name is not None else Attached()
    chosen.base = {key: own[key].detach().clone() for key in chosen.whole}
    for key, tensor in chosen.whole.items():
        own[key].copy_(tensor)
    for _, layer in lora_layers(model):
        layer.enable_adapters(chosen.has_lora)
        if chosen.has_lora:
            layer.set_adapter(name)
    if any(record.has_prefix for record in records.values()):
        enable_prefix(model.model.text, chosen.has_prefix)
    model.__dict__["visglm_active_adapter"] = name


def active(model: VisGLMForConditionalGeneration) -> str | None:
    """The adapter in use."""
    return model.__dict__.get("visglm_active_adapter")


@contextmanager
def disabled(model: VisGLMForConditionalGeneration) -> Iterator[None]:
    """The base as it is, inside a `with`."""
    name = active(model)
    activate(model, None)
    try:
        yield
    finally:
        activate(model, name)


def merge(model: VisGLMForConditionalGeneration) -> None:
    """Make the adapter in use part of the weights, and forget the others.

    Raises:
        ConfigError: no adapter is in use, or it cannot be merged.
    """
    name = active(model)
    if name is None:
        raise ConfigError("no adapter is in use, so there is nothing to merge.")
    if attached(model)[name].has_prefix:
        raise ConfigError("a P-Tuning prefix is no part of any weight and cannot be merged; keep the adapter folder.")
    for path, layer in lora_layers(model):
        if not isinstance(layer.get_base_layer(), nn.Linear) or "weight" not in dict(
            layer.base_layer.named_parameters()
        ):
            raise ConfigError(f"{path} is quantized; load the base in 16 bits to merge, then quantize the result.")
    for path, layer in lora_layers(model):
        if attached(model)[name].has_lora:
            layer.merge(safe_merge=True, adapter_names=[name])
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
    model.__dict__.pop("peft_config", None)
    attached(model).clear()
    model.__dict__["visglm_active_adapter"] = None
