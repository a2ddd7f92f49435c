"""`visglm finetune`: the command line and recipe files in front of `VisGLM.finetune`."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path

from ..errors import ConfigError
from ..recipe import FinetuneArguments, read_recipe
from .flags import add_model, add_settings, load_model, show_status


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", metavar="DATA", help="file, folder or shards")
    parser.add_argument("--config", metavar="FILE", help="recipe with any of these settings; flags win over it")
    add_settings(parser, FinetuneArguments, "settings")
    for name in [field.name for field in fields(FinetuneArguments)]:
        parser.set_defaults(**{name: None})  # what is left out must not win over a recipe
    add_model(parser)
    parser.epilog = (
        "Several GPUs: accelerate launch --config_file finetune/ddp.accelerate.yaml -m visglm finetune DATA … "
        "Exit status: 0 when it ended, 1 when it could not start or had to stop."
    )


def kept_checkpoint(folder: Path) -> Path | None:
    """The last complete one of an interrupted run."""
    from ..training.saving import checkpoints  # torch is there by then

    return next(reversed(checkpoints(folder.expanduser())), None)


def run(arguments: argparse.Namespace) -> int:
    recipe = read_recipe(arguments.config) if arguments.config else {}
    from_recipe = {name: recipe.pop(name, None) for name in ("data", "model")}
    data = arguments.data or from_recipe["data"]
    arguments.model = arguments.model or from_recipe["model"]
    if data is None:
        raise ConfigError("there is no data: name a file (visglm finetune train.jsonl), or data: in the recipe.")
    given = vars(arguments)
    settings = recipe | {
        field.name: given[field.name] for field in fields(FinetuneArguments) if given[field.name] is not None
    }
    FinetuneArguments(**settings)  # wrong settings are told before the model is loaded
    if "LOCAL_RANK" in os.environ and arguments.device == "auto":  # started by torchrun or accelerate
        import torch

        arguments.device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    try:
        report = load_model(arguments).finetune(data, **settings)
    except KeyboardInterrupt:
        if kept := kept_checkpoint(Path(settings.get("output_dir", FinetuneArguments.output_dir))):
            show_status(f"{kept} is whole: the same command and --resume go on from it.")
        raise
    if int(os.environ.get("RANK", 0)) == 0:
        print(report.summary())
        print(f"Curves, answers before and after: {report.output_dir / 'report.html'}")
        print("\nTo go on, ask it, measure it, or open the page:")
        print("".join(f"  {command}\n" for command in report.next_commands(data)), end="")
    return 0
