"""Everything a fine-tuning run can be told: keyword arguments, flags and recipe files are all this one class."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .errors import ConfigError, require

PRECISIONS = ("auto", "float32", "bf16", "fp16")
# Field → lowest and highest value. Out of range is an error, never a clamp.
RANGES: dict[str, tuple[float, float]] = {
    "held_out": (0.0, 0.5), "max_bad_rows": (0.0, 1.0), "replay": (0.0, 0.9), "epochs": (0.0, 10_000),
    "batch_size": (1, 65_536), "accumulation": (1, 65_536), "warmup": (0.0, 0.9), "weight_decay": (0.0, 1.0),
    "clip": (0.0, 1000.0), "rank": (1, 1024), "alpha": (0.01, 10_000.0), "dropout": (0.0, 0.9),
    "prefix_tokens": (1, 512), "num_workers": (0, 256), "keep": (1, 1000), "patience": (1, 10_000),
    "num_samples": (0, 100),
}  # fmt: skip


@dataclass
class FinetuneArguments:
    """How to fine-tune.

    Args:
        method: lora, qlora, ptuning, qformer or full; see `METHODS`.
        output_dir: folder for the result, its checkpoints, and report.html.
        eval_data: rows to measure the held-out loss on, in place of a part of the training rows.
        held_out: share of the pictures that is kept apart to measure on, 0 to 0.5, rounded down; rows of one picture
            stay together.
        prompt: question to ask of pictures that come with a caption only; by default several in the caption's
            language, another one in each epoch.
        replay: share of the examples that are general ones, against forgetting, 0 to 0.9; by default 2 of 3
            where at most 200 answers are taught, and none above.
        replay_data: rows to take them from; by default the model's own answers, before training, to questions that
            are not taught, about training pictures and drawn ones.
        max_bad_rows: share of the rows that may be unusable, 0 to 1.
        allow_outside: whether rows of a file may name pictures outside of its folder, by absolute paths, .. or links.
        max_length: longest prompt and answer, in tokens, image slots included; by default the model's context.
        epochs: passes over the data.
        max_steps: optimizer steps, in place of epochs.
        batch_size: examples per process that go through the model at once.
        accumulation: batches whose gradients make one optimizer step.
        learning_rate: highest rate of the schedule; by default, of a part of the network that is as wide as
            VisualGLM-6B's (text 4096, qformer 768, vision 1408), 2e-4 for lora and qlora, 1e-4 for qformer and 2e-5
            for full, and of another width that times (that width / this width) ** 0.775, after "LoRA Without Regret"
            (Thinking Machines, 2025): for visglm-tiny's text, 256 wide, 1.7e-3 with lora. For ptuning 5e-3, at any
            width.
        vision_rate: the same for the ViT only.
        qformer_rate: the same for queries, Q-Former and projection only.
        text_rate: the same for the text model only.
        warmup: share of the steps over which the rate rises from 0; it then falls to 0 as a cosine.
        weight_decay: AdamW's, on matrices.
        clip: longest gradient, as a norm; 0 for no limit.
        towers: which parts learn, of vision, qformer and text, separated by commas; by default the method's.
        rank: of LoRA's matrices.
        alpha: LoRA's weight; the update is scaled by alpha / rank.
        dropout: share of LoRA's inputs that is dropped, 0 to 0.9.
        layers: layers of the text model that get LoRA, such as 0-13,27; by default all.
        targets: linear layers that get LoRA, by the last part of their names, separated by commas; by default all,
            the head included.
        prefix_tokens: length of P-Tuning's prefix, in positions.
        precision: auto (bf16 or fp16 on GPUs, float32 on CPUs), float32, bf16 or fp16.
        gradient_checkpointing: compute activations twice in place of keeping them; less memory, a third slower.
        num_workers: processes that read and decode pictures.
        every: optimizer steps from one held-out loss and checkpoint to the next; by default five times an epoch,
            but at most 15 times a run.
        keep: checkpoints to keep beside the best one.
        patience: stop after so many held-out losses without a new best one.
        num_samples: held-out rows, and as many training rows, whose answers before and after the report shows.
        report_to: where curves go while it runs: tensorboard, wandb, trackio or none; several separated by commas.
        seed: of shuffling, initialization and dropout.
        resume: go on from the last complete checkpoint in output_dir, if there is one.
    """

    method: str = "lora"
    output_dir: str = "finetuned"
    eval_data: str | None = None
    held_out: float = 0.05
    prompt: str | None = None
    replay: float | None = None
    replay_data: str | None = None
    max_bad_rows: float = 0.01
    allow_outside: bool = False
    max_length: int | None = None
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float | None = None
    vision_rate: float | None = None
    qformer_rate: float | None = None
    text_rate: float | None = None
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    towers: str | None = None
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    layers: str | None = None
    targets: str | None = None
    prefix_tokens: int = 16
    precision: str = "auto"
    gradient_checkpointing: bool = False
    num_workers: int = 2
    every: int | None = None
    keep: int = 1
    patience: int = 5
    num_samples: int = 8
    report_to: str = "tensorboard"
    seed: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        for name, (lowest, highest) in RANGES.items():
            value = getattr(self, name)
            if value is None and getattr(type(self), name) is None:
                continue
            if not isinstance(value, int | float) or not lowest <= value <= highest:
                raise ConfigError(f"{name} must be between {lowest:g} and {highest:g}; got {value!r}.")
        for name in ("max_steps", "max_length", "every"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} must be at least 1; got {value!r}.")
        for name in ("learning_rate", "vision_rate", "qformer_rate", "text_rate"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | float) or not 0 < value < 1):
                raise ConfigError(f"{name} must be between 0 and 1; got {value!r}. To freeze a part, see towers.")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}.")
        if self.replay_data is not None and not self.replay:
            raise ConfigError("replay_data needs replay, the share of the examples that come from it, such as 0.2.")


def split_names(text: str) -> tuple[str, ...]:
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The fields that a recipe file sets; `data` may be among them, relative to the file's folder.

    Raises:
        ConfigError: it is no YAML, or sets what is no field.
    """
    yaml = require("finetune", "yaml")
    try:
        recipe = yaml.safe_load(Path(path).read_text("utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}).") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from None
    if not isinstance(recipe, dict):
        raise ConfigError(f"{path} holds {type(recipe).__name__}. Expected lines such as method: lora")
    check_names(recipe, f"{path}: ")
    for name in ("data", "eval_data", "replay_data"):
        if isinstance(recipe.get(name), str):
            recipe[name] = str(Path(path).parent / recipe[name])
    return recipe


def check_names(settings: dict[str, Any], where: str = "") -> None:
    """Raise `ConfigError` for what is no field: a misspelt name must not become a silent default."""
    names = [field.name for field in fields(FinetuneArguments)]
    for name in settings:
        if name not in (*names, "data", "model"):
            guess = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {guess[0]!r}?" if guess else f"known: {', '.join(names)}."
            raise ConfigError(f"{where}there is no setting {name!r}; {hint}")
