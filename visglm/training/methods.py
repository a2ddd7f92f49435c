"""Fine-tuning methods: what each makes trainable.

A newcomer is one function and one row of `METHODS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from ..adapters import Lora, Part, Prefix, Whole, base_name
from ..config import VisGLMConfig
from ..errors import ConfigError
from ..families import FAMILIES, family_of
from ..model import VisGLMForConditionalGeneration
from ..quant import QuantizedLinear
from ..recipe import FinetuneArguments, split_names
from ..text.prefix import attentions, prefix_shape

LAYER = re.compile(r".*\.(?:layers|blocks|layer)\.(?P<number>\d+)\..*")

# Default rates are right for VisualGLM-6B, whose parts have these widths, and rise where a part is narrower: the best
# rate goes as width ** -0.775, of LoRA and of whole weights alike ("LoRA Without Regret", Thinking Machines, 2025, as
# fitted to Llama models).
REFERENCE_WIDTHS: Mapping[str, int] = {"vision": 1408, "qformer": 768, "text": 4096}
RATE_POWER = 0.775

# Part of the network → how the names of its parameters start, in whichever family.
TOWERS: Mapping[str, tuple[str, ...]] = {
    tower: tuple(start for row in FAMILIES.values() for start in row.towers.get(tower, ()))
    for tower in ("vision", "qformer", "text")
}


class Method(NamedTuple):
    """A row of `METHODS`.

    Args:
        make: puts what is to learn into the network, under a key of its own.
        num_weights: how many numbers those would be; raises ConfigError where nothing is meant.
        towers: the parts that learn unless the caller names others.
        learning_rate: that suits it at `REFERENCE_WIDTHS`.
        heeds: settings of its own, by which what learns has its shape and weight.
        keeps_base: the result is an adapter over the base model, rather than a model of its own.
        quantizes: the base may be, or is to be, in 4 bits.
        replaces: the weights of the parts learn themselves, which packed ones cannot.
        follows_width: whether the rate is another one for another width. That of a prefix is not: it is no matrix
            whose products add up over the width, and P-Tuning v2 (https://arxiv.org/abs/2110.07602) finds rates of
            5e-3 to 1e-2 from 335 million to 10 billion parameters.
    """

    make: Callable[[VisGLMForConditionalGeneration, str, FinetuneArguments], Part]
    num_weights: Callable[[VisGLMForConditionalGeneration, FinetuneArguments], int]
    towers: tuple[str, ...]
    learning_rate: float
    heeds: tuple[str, ...] = ()
    keeps_base: bool = True
    quantizes: bool = False
    replaces: bool = False
    follows_width: bool = True


def check_settings(settings: FinetuneArguments) -> None:
    """Raise `ConfigError` where no method or part of the network has the name given."""
    if settings.method not in METHODS:
        raise ConfigError(f"there is no method {settings.method!r}; the methods are {', '.join(METHODS)}.")
    if unknown := set(tower_names(settings)) - set(TOWERS):
        raise ConfigError(f"towers are {', '.join(TOWERS)}; got {', '.join(sorted(unknown))}.")


def tower_names(settings: FinetuneArguments, config: Any = None) -> tuple[str, ...]:
    """The parts that learn.

    Args:
        config: of the network; of the method's own parts, those that its family has not are left out.
    """
    if settings.towers is not None:
        return split_names(settings.towers)
    towers = METHODS[settings.method].towers
    return towers if config is None else tuple(tower for tower in towers if tower in family_of(config).towers)


def rate_of(settings: FinetuneArguments, tower: str, config: VisGLMConfig) -> float:
    """The highest learning rate of a part: as it is set, or the method's default for the width of this network's part.

    Args:
        tower: of `TOWERS`. config: of the network.
    """
    method = METHODS[settings.method]
    given = getattr(settings, f"{tower}_rate") or settings.learning_rate
    if given is not None or not method.follows_width:
        return given or method.learning_rate
    width = getattr(config, f"{tower}_config").hidden_size
    return method.learning_rate * (REFERENCE_WIDTHS[tower] / width) ** RATE_POWER


def tower_of(name: str) -> str:
    """The part of the network that a parameter belongs to."""
    return next(tower for tower, starts in TOWERS.items() if name.startswith(starts))


def check_method(model: VisGLMForConditionalGeneration, arguments: FinetuneArguments) -> None:
    """Raise `ConfigError` where a network is not taught by the method, or has not what is to learn; all of it is
    looked up beforehand, without a change."""
    family = family_of(model.config)
    if arguments.method not in family.methods:
        raise ConfigError(
            f"{family.name} is not taught by {arguments.method!r} here; the methods are {', '.join(family.methods)}. "
            "For an adapter of a few megabytes, take lora."
        )
    names = tower_names(arguments, model.config)
    if unknown := [tower for tower in names if tower not in family.towers]:
        raise ConfigError(
            f"{family.name} has no {' and no '.join(unknown)}; its towers are {', '.join(family.towers)}."
        )
    if METHODS[arguments.method].quantizes and getattr(model.config, "quantization", None) is None:
        raise ConfigError(
            f"{arguments.method} trains over a base in 4 bits, and this one is not. "
            'Load it with quantize="int4" or "nf4" (`visglm quantize MODEL PACKED --scheme nf4` writes it so), or use '
            "lora."
        )
    missing = [tower for tower in names if family.vision(model) is None and tower != "text"]
    if missing:
        raise ConfigError(f"this text-only model has no {' and no '.join(missing)} to train. Leave it out of towers.")
    if METHODS[arguments.method].replaces and (packed := packed_towers(model, names)):
        scheme = model.config.quantization["scheme"]
        raise ConfigError(
            f"{' and '.join(packed)} is packed in {scheme}, and packed weights do not learn. Take lora, which learns "
            "beside them, or load the model in 16 bits."
        )
    METHODS[arguments.method].num_weights(model, arguments)


def packed_towers(model: VisGLMForConditionalGeneration, towers: Sequence[str]) -> list[str]:
    """Those of the towers that have packed weights."""
    found = {tower_of(f"{name}.") for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    return [tower for tower in towers if tower in found]


def make_part(model: VisGLMForConditionalGeneration, key: str, arguments: FinetuneArguments) -> Part:
    """What the method trains, in the network.

    Raises:
        ConfigError: as `check_method`, or no layer of the network is meant; nothing was changed.
    """
    check_method(model, arguments)
    return METHODS[arguments.method].make(model, key, arguments)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _make_lora(model: VisGLMForConditionalGeneration, key: str, arguments: FinetuneArguments) -> Part:
    modules = target_modules(model, arguments)
    ranks, alphas = dict.fromkeys(modules, arguments.rank), dict.fromkeys(modules, arguments.alpha)
    return Lora.inject(model, key, ranks, alphas, arguments.dropout)


def _count_lora(model: VisGLMForConditionalGeneration, arguments: FinetuneArguments) -> int:
    layers = map(model.get_submodule, target_modules(model, arguments))
    return sum(arguments.rank * (layer.in_features + layer.out_features) for layer in layers)


def target_modules(model: VisGLMForConditionalGeneration, arguments: FinetuneArguments) -> list[str]:
    """The linear layers that are meant, by their whole names.

    The head is among them where it is no other name of the embeddings: words that the base never says have rows in it
    that no update of the layers below can raise.

    PEFT's own search by last name would find a `dense` of the Q-Former beside one of the text model.

    Raises:
        ConfigError: there are none.
    """
    wanted = split_names(arguments.targets or "")
    layers = parse_layers(arguments.layers)
    found, known = [], set()
    for name, module in model.named_modules():
        is_tied = name == "lm_head" and model.config.tie_word_embeddings
        if not is_linear(module) or is_tied or tower_of(name + ".") not in tower_names(arguments):
            continue
        last = name.rpartition(".")[2]
        known.add(last)
        if wanted and last not in wanted:
            continue
        match = LAYER.fullmatch(name)
        if layers is not None and tower_of(name + ".") == "text" and (not match or int(match["number"]) not in layers):
            continue
        found.append(name)
    if not found or not set(wanted) <= known:
        raise ConfigError(
            f"no linear layer is meant by targets={arguments.targets!r}, layers={arguments.layers!r} and towers "
            f"{', '.join(tower_names(arguments))}. The names there are: {', '.join(sorted(known))}."
        )
    return found


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


def _make_ptuning(model: VisGLMForConditionalGeneration, key: str, arguments: FinetuneArguments) -> Part:
    return Prefix.draw(model, key, arguments.prefix_tokens)


def _count_ptuning(model: VisGLMForConditionalGeneration, arguments: FinetuneArguments) -> int:
    if tower_names(arguments) != ("text",):
        raise ConfigError("ptuning trains a prefix of the text model only. Leave towers out, or use another method.")
    text = model.model.text
    shapes = (prefix_shape(text.config, module) for _, module in attentions(text))
    return sum(2 * heads * arguments.prefix_tokens * size for heads, size in shapes)


def _make_whole(model: VisGLMForConditionalGeneration, key: str, arguments: FinetuneArguments) -> Part:
    names = [base_name(name) for name in whole_of(model, arguments)]
    if not names:
        raise ConfigError(f"nothing would be trained: there is no weight in {', '.join(tower_names(arguments))}.")
    return Whole.of(model, key, names)


def whole_of(model: VisGLMForConditionalGeneration, arguments: FinetuneArguments) -> dict[str, nn.Parameter]:
    """The weights of the parts that learn, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if tower_of(name) in tower_names(arguments) and parameter.is_floating_point()
    }


def _count_whole(model: VisGLMForConditionalGeneration, arguments: FinetuneArguments) -> int:
    return sum(parameter.numel() for parameter in whole_of(model, arguments).values())


OF_LORA = ("rank", "alpha", "targets", "layers")
METHODS: dict[str, Method] = {
    "lora": Method(_make_lora, _count_lora, ("text",), 2e-4, OF_LORA),
    "qlora": Method(_make_lora, _count_lora, ("text",), 2e-4, OF_LORA, quantizes=True),
    "ptuning": Method(_make_ptuning, _count_ptuning, ("text",), 5e-3, ("prefix_tokens",), follows_width=False),
    "qformer": Method(_make_whole, _count_whole, ("qformer",), 1e-4, replaces=True),
    "full": Method(_make_whole, _count_whole, ("vision", "qformer", "text"), 2e-5, keeps_base=False, replaces=True),
}
