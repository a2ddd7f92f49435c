"""Fine-tuning methods: what each makes trainable, and how it goes into a folder.

A newcomer is one function and one row of `METHODS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoint.adapter import (
    LORA_NAME,
    LORA_START,
    PREFIX_END,
    TRAINED_NAME,
    Attached,
    activate,
    adapter_parameters,
    attached,
    base_name,
    inject_lora,
    read_tensors,
    save_adapter,
    without_adapter_name,
)
from ..errors import CheckpointError, ConfigError, require
from ..model import VisGLMForConditionalGeneration
from ..processor import VisGLMProcessor
from ..quant import use_products
from ..recipe import FinetuneArguments, split_names
from ..text.prefix import add_prefix

ADAPTER_NAME = "default"
LAYER = re.compile(r"(?P<list>.*\.(?:layers|blocks|layer))\.(?P<number>\d+)\.(?P<rest>.*)")

# Part of the network → how the names of its parameters start.
TOWERS: Mapping[str, tuple[str, ...]] = {
    "vision": ("model.vision.vit.", "model.vision.recogniser."),
    "qformer": ("model.vision.query_tokens", "model.vision.qformer.", "model.vision.projection."),
    "text": ("model.text.", "lm_head."),
}


class Method(NamedTuple):
    """A row of `METHODS`.

    Args:
        prepare: makes what learns trainable, everything else being frozen by then.
        towers: the parts that learn unless the caller names others.
        learning_rate: that suits it.
        keeps_base: the result is an adapter over the base model, rather than a model of its own.
        quantizes: the base may be, or is to be, in 4 bits.
    """

    prepare: Callable[[VisGLMForConditionalGeneration, FinetuneArguments], None]
    towers: tuple[str, ...]
    learning_rate: float
    keeps_base: bool = True
    quantizes: bool = False


def check_settings(settings: FinetuneArguments) -> None:
    """Raise `ConfigError` where no method or part of the network has the name given."""
    if settings.method not in METHODS:
        raise ConfigError(f"there is no method {settings.method!r}; the methods are {', '.join(METHODS)}.")
    if unknown := set(tower_names(settings)) - set(TOWERS):
        raise ConfigError(f"towers are {', '.join(TOWERS)}; got {', '.join(sorted(unknown))}.")


def tower_names(settings: FinetuneArguments) -> tuple[str, ...]:
    """The parts that learn."""
    return split_names(settings.towers) if settings.towers is not None else METHODS[settings.method].towers


def rate_of(settings: FinetuneArguments, tower: str) -> float:
    """The highest learning rate of a part."""
    rates = (getattr(settings, f"{tower}_rate"), settings.learning_rate, METHODS[settings.method].learning_rate)
    return next(rate for rate in rates if rate is not None)


def tower_of(name: str) -> str:
    """The part of the network that a parameter belongs to."""
    return next(tower for tower, starts in TOWERS.items() if name.startswith(starts))


def prepare(model: VisGLMForConditionalGeneration, arguments: FinetuneArguments) -> None:
    """Make trainable what the method trains, in float32, and nothing else.

    Raises:
        ConfigError: the model has an adapter already, or none of its layers is meant.
    """
    if attached(model):
        names = ", ".join(attached(model))
        raise ConfigError(f"this model has an adapter ({names}). Call merge() first, or load the base model.")
    missing = [tower for tower in tower_names(arguments) if model.model.vision is None and tower != "text"]
    if missing:
        raise ConfigError(f"this text-only model has no {' and no '.join(missing)} to train. Leave it out of towers.")
    method = METHODS[arguments.method]
    model.requires_grad_(False)
    method.prepare(model, arguments)
    trained = trainable(model)
    if not trained:
        raise ConfigError("nothing would be trained: no layer is left of towers, layers and targets. Name others.")
    for parameter in trained.values():
        parameter.data = parameter.data.float()
    use_products(model, False)
    if method.keeps_base:
        own = [name for name in trained if ".lora_" not in name and not name.endswith(PREFIX_END)]
        attached(model)[ADAPTER_NAME] = Attached(
            method=arguments.method,
            base={name: trained[name].detach().cpu().clone() for name in own},
            has_lora=any(".lora_" in name for name in trained),
            has_prefix=any(name.endswith(PREFIX_END) for name in trained),
        )
        model.__dict__["visglm_active_adapter"] = ADAPTER_NAME


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def settle(model: VisGLMForConditionalGeneration) -> None:
    """After training: nothing learns any more, and what was learnt whole can be switched off and on."""
    record = attached(model).get(ADAPTER_NAME)
    if record is not None:
        parameters = dict(model.named_parameters())
        record.whole = {name: parameters[name].detach().cpu().clone() for name in record.base}
    _answer_again(model)


def withdraw(model: VisGLMForConditionalGeneration) -> None:
    """After a run that failed: the base answers as before."""
    _answer_again(model)
    with suppress(ConfigError):
        activate(model, None)


def _answer_again(model: VisGLMForConditionalGeneration) -> None:
    model.requires_grad_(False)
    model.eval()
    use_products(model, True)


def _prepare_lora(model: VisGLMForConditionalGeneration, arguments: FinetuneArguments) -> None:
    peft = require("finetune", "peft")
    config = peft.LoraConfig(
        r=arguments.rank,
        lora_alpha=arguments.alpha,
        lora_dropout=arguments.dropout,
        target_modules=target_pattern(model, arguments),
        base_model_name_or_path=base_name(model),
    )
    inject_lora(model, config, ADAPTER_NAME)


def target_pattern(model: nn.Module, arguments: FinetuneArguments) -> str:
    """A regular expression for exactly the linear layers that are meant, by their whole names.

    PEFT's own search by last name would find a `dense` of the Q-Former beside one of the text model.

    Raises:
        ConfigError: there are none.
    """
    wanted = split_names(arguments.targets or "")
    layers = parse_layers(arguments.layers)
    found: dict[tuple[str, str], set[int]] = {}
    known = set()
    for name, module in model.named_modules():
        if not is_linear(module) or name == "lm_head" or tower_of(name + ".") not in tower_names(arguments):
            continue
        last = name.rpartition(".")[2]
        known.add(last)
        if wanted and last not in wanted:
            continue
        match = LAYER.fullmatch(name)
        if layers is not None and tower_of(name + ".") == "text" and (not match or int(match["number"]) not in layers):
            continue
        key = (match["list"], match["rest"]) if match else (name, "")
        found.setdefault(key, set()).update({int(match["number"])} if match else ())
    if not found or not set(wanted) <= known:
        raise ConfigError(
            f"no linear layer is meant by targets={arguments.targets!r}, layers={arguments.layers!r} and towers "
            f"{', '.join(tower_names(arguments))}. The names there are: {', '.join(sorted(known))}."
        )
    patterns = [
        rf"{re.escape(start)}\.(?:{'|'.join(map(str, sorted(numbers)))})\.{re.escape(rest)}"
        if numbers
        else re.escape(start)
        for (start, rest), numbers in found.items()
    ]
    return "|".join(patterns)


def is_linear(module: nn.Module) -> bool:
    """A linear layer, quantized or not."""
    return isinstance(module, nn.Linear)


def parse_layers(text: str | None) -> set[int] | None:
    """`"0-2,5"` as {0, 1, 2, 5}."""
    if text is None:
        return None
    layers: set[int] = set()
    for part in str(text).split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise ConfigError(f"layers are numbers and ranges such as 0-13,27; got {text!r}.")
        layers.update(range(int(first), int(last or first) + 1))
    return layers


def _prepare_qlora(model: VisGLMForConditionalGeneration, arguments: FinetuneArguments) -> None:
    if model.config.quantization is None:
        raise ConfigError(
            "qlora trains over a base in 4 bits, and this one is not. "
            'Load it with quantize="int4" or "nf4", or use lora.'
        )
    _prepare_lora(model, arguments)


def _prepare_ptuning(model: VisGLMForConditionalGeneration, arguments: FinetuneArguments) -> None:
    if tower_names(arguments) != ("text",):
        raise ConfigError("ptuning trains a prefix of the text model only. Leave towers out, or use another method.")
    add_prefix(model.model.text, arguments.prefix_tokens)


def _prepare_whole(model: VisGLMForConditionalGeneration, arguments: FinetuneArguments) -> None:
    for name, parameter in model.named_parameters():
        if tower_of(name) in tower_names(arguments) and parameter.is_floating_point():
            parameter.requires_grad_(True)


METHODS: dict[str, Method] = {
    "lora": Method(_prepare_lora, ("text",), 2e-4),
    "qlora": Method(_prepare_qlora, ("text",), 2e-4, quantizes=True),
    "ptuning": Method(_prepare_ptuning, ("text",), 5e-3),
    "qformer": Method(_prepare_whole, ("qformer",), 1e-4),
    "full": Method(_prepare_whole, ("vision", "qformer", "text"), 2e-5, keeps_base=False),
}


def save_trained(
    folder: str | Path,
    model: VisGLMForConditionalGeneration,
    processor: VisGLMProcessor,
    method: str,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write what was trained so that `VisGLM.from_pretrained(folder)` needs nothing else.

    Args:
        state_dict: the tensors, where the network itself holds only a part of them (sharded training).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not METHODS[method].keeps_base:
        model.save_pretrained(folder, state_dict=dict(state_dict) if state_dict is not None else None)
        processor.save_pretrained(folder)
        return
    save_adapter(folder, model, ADAPTER_NAME, state_dict)
    processor.save_pretrained(folder)


def load_trained(folder: str | Path, model: VisGLMForConditionalGeneration, method: str) -> None:
    """Put what `save_trained` wrote back into the network that is being trained.

    Raises:
        CheckpointError: it is from another method or other settings.
    """
    folder = Path(folder)
    parameters = dict(model.named_parameters())
    if METHODS[method].keeps_base:
        stored = read_tensors(folder / TRAINED_NAME)
        low_rank = read_tensors(folder / LORA_NAME)
        wanted = adapter_parameters(model, ADAPTER_NAME)
        for name in wanted:
            if ".lora_" in name and (key := LORA_START + without_adapter_name(name)) in low_rank:
                stored[name] = low_rank[key]
    else:
        stored = {
            name: tensor
            for file in sorted(folder.glob("model*.safetensors"))
            for name, tensor in read_tensors(file).items()
        }
        wanted = {
            name: parameter for name, parameter in parameters.items() if name in stored or parameter.requires_grad
        }
    problems = [
        f"{name}: {list(stored[name].shape) if name in stored else 'missing'}, expected {list(parameter.shape)}"
        for name, parameter in wanted.items()
        if name not in stored or stored[name].shape != parameter.shape
    ]
    if problems:
        raise CheckpointError(folder, problems, "Resume with the settings it was started with, or start anew.")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(stored[name])
