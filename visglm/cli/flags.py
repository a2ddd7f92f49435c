"""Arguments that several commands share, and a dataclass of settings as flags whose help is its docstring."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError, printable, require
from ..imports import collector_paused
from ..untrusted import DamagedFile, read_json

if TYPE_CHECKING:
    from ..chat import VisGLM
    from ..pictures import ImageLimits

Settings = TypeVar("Settings")

# Argument → its default, of those that only torch heeds.
OF_TORCH = {"tokenizer": None, "adapter": None, "base": None, "device": "auto", "dtype": "auto"}
BASE_HELP = "folder or hub id of an adapter's base, where the one that it names is not on this machine"
ADAPTER_FILES = ("visglm_adapter.json", "adapter_config.json")  # of `adapters`, for which nobody should wait
# Type of a field, as it is written → what makes it of the text typed. Flags without value take no text.
TYPES: Mapping[str, Any] = {"int": int, "float": float, "str": str}


def docs_of(settings: type) -> dict[str, str]:
    """The `Args` of a class's docstring: field → its text on one line."""
    section = re.split(r"\n\n", (settings.__doc__ or "").partition("Args:\n")[2])[0]
    entries = re.findall(r"^        (\w+): (.*(?:\n {12}.*)*)", section, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in entries}


def add_settings(parser: argparse.ArgumentParser, settings: type, title: str) -> None:
    """One flag per field of the dataclass `settings`, with its default, and its documentation as help."""
    group, docs = parser.add_argument_group(title), docs_of(settings)
    for field in shown_fields(settings):
        kind = str(field.type).removesuffix(" | None")
        default = None if field.default is MISSING else field.default
        if kind == "bool":
            flag = "--" + field.name.replace("_", "-")
            group.add_argument(flag, action="store_true", help=docs[field.name].replace("%", "%%"))
            continue
        shown = "" if default is None else f" (default: {default})"
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            type=TYPES[kind],
            default=default,
            metavar=kind.upper(),
            help=docs[field.name].replace("%", "%%") + shown,
        )


def shown_fields(settings: type) -> list[Any]:
    """Those that have a flag."""
    return [field for field in fields(settings) if field.metadata.get("command_line", True)]


def settings_of(settings: Any) -> dict[str, Any]:
    """The values that flags give, by name."""
    return {field.name: getattr(settings, field.name) for field in shown_fields(type(settings))}


def read_settings(arguments: argparse.Namespace, settings: type[Settings]) -> Settings:
    """What `add_settings` declared, as an instance of `settings`; it checks its own ranges."""
    return settings(**{field.name: getattr(arguments, field.name) for field in shown_fields(settings)})


def add_model(parser: argparse.ArgumentParser, *, fetches: bool = True) -> None:
    """Which model to load, and where; with `fetches`, whether it takes pictures from addresses."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="PATH", help="folder or hub id (default: the embedded visglm-tiny)")
    group.add_argument("--tokenizer", metavar="PATH", help="folder of the tokenizer, for checkpoints without one")
    group.add_argument("--base", metavar="PATH", help=BASE_HELP)
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto: the fastest (default: auto)")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="number format of the weights (default: auto: what suits model and device)",
    )
    if fetches:
        add_urls(group)
    else:
        parser.set_defaults(allow_urls=False)
    add_max_pixels(group)
    parser.set_defaults(adapter=None)


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """What fine-tuning made, over the model that `add_model` declares."""
    parser.add_argument(
        "--adapter",
        metavar="FOLDER",
        help="answer with what fine-tuning made, over --model (default: over the model that it was trained on)",
    )


def add_light_model(parser: argparse.ArgumentParser) -> None:
    """Which exported model to play."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="PATH", help="folder that `visglm export` wrote (default: the embedded visglm-tiny)"
    )
    add_urls(group)
    add_max_pixels(group)
    parser.set_defaults(**OF_TORCH)


def add_urls(group: Any) -> None:
    """Whether pictures may be fetched."""
    group.add_argument(
        "--allow-urls", action="store_true", help="fetch pictures named by a URL, from public addresses only"
    )


def add_max_pixels(parser: Any) -> None:
    """How large pictures may be."""
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="INT",
        help="largest width × height of a picture; memory grows with it (default: 64 million)",
    )


def image_limits(arguments: argparse.Namespace) -> ImageLimits:
    """What `add_max_pixels` declared; raises ConfigError where it is out of range."""
    from ..pictures import DEFAULT_LIMITS

    return DEFAULT_LIMITS if arguments.max_pixels is None else replace(DEFAULT_LIMITS, max_pixels=arguments.max_pixels)


def add_outside(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-outside", action="store_true", help="let rows of a file name pictures outside of its folder"
    )


def add_language(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--language",
        choices=("auto", "zh", "en"),
        default="auto",
        help="of the prompt's frame; auto: that of the first question (default: auto)",
    )


def add_ray(group: Any) -> None:
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help='by processes of Ray: "local" starts it on this machine, else a cluster\'s address',
    )


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_model` and `add_adapter` declared, as `VisGLM.from_pretrained` takes it.

    Raises:
        ConfigError: there is no adapter, or it would lie over two bases.
    """
    name, base = arguments.model, arguments.base
    if arguments.adapter is not None:
        name, base = over(arguments.adapter, arguments.model, arguments.base, "--model")
    return {
        "name_or_path": name, "device": arguments.device, "dtype": arguments.dtype,
        "tokenizer": arguments.tokenizer, "base": base, "allow_urls": arguments.allow_urls,
        "image_limits": image_limits(arguments),
    }  # fmt: skip


def over(adapter: str, model: str | None, base: str | None, called: str) -> tuple[str, str | None]:
    """What is loaded, and its base, where a command was given an adapter beside a model.

    Args:
        called: the model, on this command line.

    Raises:
        ConfigError: a base was given, too, or the folder holds no adapter.
    """
    if base is not None:
        raise ConfigError(f"--adapter lies over {called}, which is its base: leave out --base.")
    if Path(adapter).expanduser().is_dir() and not holds_adapter(adapter):
        from ..recipe import cut_short  # which `visglm-light`, where nothing is taught, has not

        if then := cut_short(adapter):
            raise ConfigError(f"{printable(adapter)} holds no adapter. {then}")
        raise ConfigError(
            f"{printable(adapter)} holds no adapter. If it is a whole model, give it as {called}; an adapter is the "
            "folder that `visglm finetune` wrote."
        )
    return adapter, model


def load_model(arguments: argparse.Namespace) -> VisGLM:
    """The model that the arguments of `add_model` name; tells on stderr what takes time."""
    options = options_of(arguments)
    name = options["name_or_path"] or "visglm-tiny"
    show_status(f"Loading {name}{f' over {arguments.model}' if arguments.adapter and arguments.model else ''} …")
    started = time.perf_counter()
    with collector_paused():
        from ..chat import VisGLM
        from ..quant import Quantization, count_weights

    vlm = VisGLM.from_pretrained(**options)
    seconds = time.perf_counter() - started
    forms = [str(vlm.model.dtype).removeprefix("torch.")]
    if quantization := Quantization.of(vlm.model.config):
        forms.insert(0, quantization.scheme)
    size = f"{count_weights(vlm.model) / 1e6:,.1f} M parameters in {' and '.join(forms)}"
    show_status(f"{name}: {size} on {vlm.device}, loaded in {seconds:.1f} s.")
    return vlm


def load_light(arguments: argparse.Namespace) -> Any:
    """The exported model that the arguments of `add_model` name, to be played without torch.

    Raises:
        ConfigError: an argument says something to torch.
    """
    if given := [name for name, default in OF_TORCH.items() if getattr(arguments, name) != default]:
        raise ConfigError(f"--light answers without torch, to which --{given[0]} is said. Leave one of the two out.")
    name = arguments.model or "visglm-tiny"
    with collector_paused():
        started = time.perf_counter()
        light = require("light", "visglm.light")
        imported = time.perf_counter()
    vlm = light.VisGLM.from_pretrained(
        arguments.model, allow_urls=arguments.allow_urls, image_limits=image_limits(arguments)
    )
    seconds = time.perf_counter() - imported
    show_status(
        f"{name}: {vlm.manifest.scheme or 'float32'} on ONNX Runtime, loaded in {seconds:.2f} s "
        f"({imported - started:.2f} s for imports)."
    )
    return vlm


def holds_adapter(folder: str) -> bool:
    return any((Path(folder).expanduser() / name).is_file() for name in ADAPTER_FILES)


def refuse_adapter(source: str, then: str) -> None:
    """Tell about the folder of an adapter before anything heavy is loaded.

    Args:
        source: what the command was given. then: the command as it goes with MERGED in place of `source`.

    Raises:
        ConfigError: it is the folder of an adapter.
    """
    if not holds_adapter(source):
        return
    notes, method = Path(source).expanduser() / ADAPTER_FILES[0], None
    if notes.is_file():  # else PEFT's own; and a pipe would be waited for
        # Damaged ones: about those merging says more.
        with suppress(DamagedFile):
            method = read_json(notes).get("method")
    if method == "ptuning":
        raise ConfigError(
            f"{printable(source)} is an adapter, and its P-Tuning prefix is no part of any weight, so that it cannot "
            "be merged either. It loads as it is, over its base."
        )
    raise ConfigError(
        f"{printable(source)} is an adapter: merge it first. visglm merge {shlex.quote(source)} MERGED makes one model "
        f"of it and its base; then {then}."
    )


def show_status(text: str) -> None:
    """Tell the person in front of it; stdout is for answers."""
    print(text, file=sys.stderr, flush=True)
