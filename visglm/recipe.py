"""Everything a fine-tuning run can be told: keyword arguments, flags and recipe files are all this one class."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ConfigError, printable, require
from .settings import Rule, check

CHECKPOINT = re.compile(r"checkpoint-(\d+)")  # what a run leaves on its way
RATE = Rule(float, 1e-12, 1.0, optional=True, hint="To freeze a part, see towers.")
COUNT = Rule(int, 1, 1_000_000_000, optional=True)
TEXT, SWITCH, ROWS = Rule(str, optional=True), Rule(bool), Rule(list, optional=True)
# Field → what it may be. Out of range is an error, never a clamp.
RULES: Mapping[str, Rule] = {
    "method": Rule(str), "output_dir": Rule(Path), "eval_data": ROWS,
    "held_out": Rule(float, 0.0, 0.5, optional=True), "prompt": TEXT, "replay": Rule(float, 0.0, 0.9, optional=True),
    "replay_data": ROWS, "max_bad_rows": Rule(float, 0.0, 1.0), "allow_outside": SWITCH, "max_length": COUNT,
    "epochs": Rule(float, 0.001, 10_000.0, optional=True), "max_steps": COUNT, "batch_size": Rule(int, 1, 65_536),
    "accumulation": Rule(int, 1, 65_536, optional=True), "learning_rate": RATE, "vision_rate": RATE,
    "qformer_rate": RATE, "text_rate": RATE, "warmup": Rule(float, 0.0, 0.9), "weight_decay": Rule(float, 0.0, 1.0),
    "clip": Rule(float, 0.0, 1000.0), "towers": TEXT, "rank": Rule(int, 1, 1024), "alpha": Rule(float, 0.01, 10_000.0),
    "dropout": Rule(float, 0.0, 0.9), "layers": TEXT, "targets": TEXT, "prefix_tokens": Rule(int, 1, 512),
    "precision": Rule(str, names=("auto", "float32", "bf16", "fp16")), "gradient_checkpointing": SWITCH,
    "num_workers": Rule(int, 0, 256), "every": COUNT, "keep": Rule(int, 1, 1000), "patience": Rule(int, 1, 10_000),
    "num_samples": Rule(int, 0, 100),
    "report_to": Rule(str, names=("tensorboard", "wandb", "trackio", "none"), several=True),
    "seed": Rule(int, 0, 2**32 - 1),  # what NumPy takes
    "resume": SWITCH,
}  # fmt: skip


class Defaults(NamedTuple):
    """What is right for few answers and wrong for many, or the other way round; the fields are those of a run."""

    held_out: float
    replay: float
    epochs: float
    accumulation: int


# Of so many answers to learn or fewer, every one is needed, and what was known is in danger: a twentieth kept apart
# would be too few to tell anything by.
FEW = 200
FOR_FEW = Defaults(held_out=0.0, replay=2 / 3, epochs=80.0, accumulation=3)
FOR_MANY = Defaults(held_out=0.05, replay=0.0, epochs=3.0, accumulation=1)


@dataclass
class FinetuneArguments:
    """How to fine-tune.

    Args:
        method: lora, qlora, ptuning, qformer or full; see `METHODS`.
        output_dir: folder for the result, its checkpoints, and report.html.
        eval_data: rows to measure the held-out loss on, in place of a part of the training rows.
        held_out: share of the pictures that is kept apart to measure on, 0 to 0.5, rounded down; rows of one picture
            stay together. By default 0.05, and none where at most 200 answers are taught.
        prompt: question to ask of pictures that come with a caption only; by default several in the caption's
            language, another one in each epoch.
        replay: share of the examples that are general ones, against forgetting, 0 to 0.9; by default 2 of 3
            where at most 200 answers are taught, and none above.
        replay_data: rows to take them from; by default the model's own answers, before training, to questions that
            are not taught, about training pictures and drawn ones.
        max_bad_rows: share of the rows that may be unusable, 0 to 1.
        allow_outside: whether rows of a file may name pictures outside of its folder, by absolute paths, .. or links.
        max_length: longest prompt and answer, in tokens, image slots included; by default the model's context.
        epochs: passes over the data; by default 3, and where at most 200 answers are taught as many as it takes until
            every one is given as taught, at most 80.
        max_steps: optimizer steps, in place of epochs.
        batch_size: examples per process that go through the model at once.
        accumulation: batches whose gradients make one optimizer step; by default 1, and where at most 200 answers are
            taught 3: steps by few examples move what they do not speak of.
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
    held_out: float | None = None
    prompt: str | None = None
    replay: float | None = None
    replay_data: str | None = None
    max_bad_rows: float = 0.01
    allow_outside: bool = False
    max_length: int | None = None
    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int = 4
    accumulation: int | None = None
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
        check(self, RULES)
        if self.prompt is not None and not self.prompt.strip():
            raise ConfigError("prompt must be a question, or left out; got an empty text.")
        if self.replay_data is not None and not self.replay:
            raise ConfigError("replay_data needs replay, the share of the examples that come from it, such as 0.2.")

    def for_size(self, num_answers: int | None) -> FinetuneArguments:
        """The same with the defaults for so many answers to learn in the place of what was left open.

        Args:
            num_answers: None for a stream, which nobody has counted.
        """
        defaults = FOR_FEW if num_answers is not None and num_answers <= FEW else FOR_MANY
        given = {name: getattr(self, name) for name in Defaults._fields}
        return replace(self, **{name: value for name, value in defaults._asdict().items() if given[name] is None})


def split_names(text: str) -> tuple[str, ...]:
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The fields that a recipe file sets; `data` may be among them, relative to the file's folder.

    Raises:
        ConfigError: it is no YAML, or sets what is no field.
    """
    yaml = require("finetune", "yaml")
    try:
        recipe = yaml.load(Path(path).read_text("utf-8"), Loader=loader(yaml)) or {}
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text in UTF-8. Save it as such.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}).") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from None
    if not isinstance(recipe, dict):
        raise ConfigError(f"{path} holds {type(recipe).__name__}. Expected lines such as method: lora")
    check_names(recipe, f"{path}: ")
    for name in ("data", "model"):
        Rule(str, optional=True).take(f"{path}: {name}", recipe.get(name))
    for name in ("data", "eval_data", "replay_data"):
        if isinstance(recipe.get(name), str):
            recipe[name] = str(Path(path).parent / recipe[name])
    return recipe


def loader(yaml: Any) -> type:
    """PyYAML's safe loader, which reads 1e-4 as a number, as YAML has done since 1.2, and not as text."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
    )
    return Loader


def check_names(settings: dict[str, Any], where: str = "") -> None:
    """Raise `ConfigError` for what is no field: a misspelt name must not become a silent default."""
    names = [field.name for field in fields(FinetuneArguments)]
    for name in settings:
        if name not in (*names, "data", "model"):
            guess = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {guess[0]!r}?" if guess else f"known: {', '.join(names)}."
            raise ConfigError(f"{where}there is no setting {name!r}; {hint}")


def checkpoints_in(folder: str | Path) -> list[Path]:
    """What a run has left on its way, whole or not, oldest first."""
    found = [
        (int(match[1]), path)
        for path in Path(folder).glob("checkpoint-*")
        if (match := CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def cut_short(folder: str | Path) -> str | None:
    """What to do about a folder without a result, in which a run has left checkpoints; None where there are none."""
    found = checkpoints_in(Path(folder).expanduser())
    if not found:
        return None
    return (
        "Fine-tuning was cut short there, before its result: go on by the same command and --resume, or name "
        f"{printable(str(found[-1]))}."
    )
