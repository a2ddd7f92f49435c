"""What is settled before a run starts: its data, how many steps, where its base is, and whether it goes on from one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset

from ..adapters import Adapters, Home
from ..errors import ConfigError, DataError, require, writing
from ..processor import VisGLMProcessor
from ..recipe import FEW, FinetuneArguments
from .containers import is_stream, open_rows
from .data import StreamData, TrainingData
from .index import build_index, check_bad_share, split_held_out
from .methods import METHODS, check_method, check_settings
from .renderer import Renderer
from .replay import add_replay, num_replayed, own_answers
from .samples import Answer, Sample, answer_briefly, sample_held_out, sample_taught
from .saving import check_resumed, checkpoints, examples_per_step, facts_of, refuse_own_folder, settle_home

logger = logging.getLogger(__name__)

EVALUATIONS_PER_EPOCH, MAX_EVALUATIONS = 5, 15  # of a run
MAX_ASKED_AT_ONCE = 8  # questions of the report and of replay
STREAM_STEPS_BETWEEN = 100  # evaluations of a stream, which has no epochs
NUM_STREAM_HELD_OUT = 64  # rows at the start of a stream


@dataclass
class Plan:
    """A run that may start.

    Args:
        train, held_out: examples. counts: what was found in the data, for the report.
        samples, taught: held-out and training questions, with the answers before.
        home: where the base can be found again; None where the result is a model of its own.
        resumed: the checkpoint to go on from. facts: what must be the same where a run goes on.
        precision: float32, bf16 or fp16.
        num_steps: optimizer steps in all. every: from one evaluation and checkpoint to the next.
        limit: longest example, in tokens.
        lessons: the answers to learn, where the run ends as soon as all are given as taught.
        is_main: whether this process writes and speaks.
    """

    settings: FinetuneArguments
    output_dir: Path
    train: TrainingData | StreamData | ConcatDataset
    held_out: TrainingData | None
    counts: dict[str, Any]
    samples: list[Sample]
    taught: list[Sample]
    answer: Answer
    home: Home | None
    resumed: Path | None
    facts: dict[str, Any]
    precision: str
    num_steps: int
    every: int
    limit: int
    is_main: bool
    lessons: TrainingData | None = None
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def first(self) -> TrainingData | StreamData:
        """The examples without those that are mixed in."""
        return self.train.datasets[0] if isinstance(self.train, ConcatDataset) else self.train  # type: ignore


def make_plan(
    adapters: Adapters,
    processor: VisGLMProcessor,
    data: Any,
    settings: FinetuneArguments,
    answerer: Callable[..., Sequence[Any]],
) -> Plan:
    """Check everything that can be checked beforehand; the network is asked and not changed.

    Raises:
        DataError: too much of the data is unusable.
        ConfigError: settings contradict each other, or the output folder is one that must not be written to.
    """
    check_settings(settings)
    check_method(adapters.network, settings)
    processor.check(adapters.network.config)
    if adapters.names:
        raise ConfigError(
            f"this model has an adapter ({', '.join(adapters.names)}). Call merge() first, or load the base model."
        )
    require("evaluate", "sacrebleu")  # rather now than after training
    model = adapters.network
    answer = partial(answer_briefly, answerer, batch_size=min(settings.batch_size, MAX_ASKED_AT_ONCE))
    precision = pick_precision(settings.precision, model.device)
    output_dir = Path(settings.output_dir).expanduser()
    resumed = find_resumed(output_dir, settings)
    limit = min(settings.max_length or 1 << 30, model.config.text_config.max_position_embeddings)
    renderer = Renderer(processor, limit)
    asked = settings
    train, held_out, counts, settings = read_data(data, settings, renderer)
    facts = facts_of(settings, model.config, None if isinstance(train, StreamData) else train)
    if resumed is not None:
        check_resumed(resumed, adapters, facts)
    with writing(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
    is_main = int(os.environ.get("RANK", 0)) == 0
    samples = sample_held_out(held_out, answer) if is_main and held_out is not None else []
    taught: list[Sample] = []
    if is_main and isinstance(train, TrainingData):
        taught = sample_taught(train, answer, settings.num_samples)
    mixed: TrainingData | StreamData | ConcatDataset = train
    if settings.replay and isinstance(train, TrainingData):
        general = general_data(train, settings, renderer, answer, asks_captions=asked.replay is not None)
        if len(general) or asked.replay:
            mixed = add_replay(train, settings.replay, general)
            counts["general_answers"] = num_replayed(train, settings.replay)
        else:  # nobody asked for it
            logger.warning("The model answers no general question, so there is nothing to mix in against forgetting.")
    num_steps, every = count_steps(None if isinstance(mixed, StreamData) else len(mixed), settings)
    home = None
    if METHODS[settings.method].keeps_base:
        home = settle_home(adapters, processor, output_dir, is_main=is_main, is_resumed=resumed is not None)
    elif adapters.home is not None:
        refuse_own_folder(adapters.home, output_dir)
    return Plan(
        settings=settings, output_dir=output_dir, train=mixed, held_out=held_out, counts=counts, samples=samples,
        taught=taught, answer=answer, home=home, resumed=resumed, facts=facts, precision=precision, num_steps=num_steps,
        every=every, limit=limit, is_main=is_main, lessons=train if ends_when_learnt(asked, train, held_out) else None,
    )  # fmt: skip


def ends_when_learnt(settings: FinetuneArguments, train: Any, held_out: TrainingData | None) -> bool:
    """Whether the run is as long as it takes to learn all of few answers, and no held-out loss says when to end.

    Not with several processes: one that ends before the others would leave them waiting.
    """
    is_open = settings.epochs is None and settings.max_steps is None and held_out is None
    is_alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    return is_open and is_alone and isinstance(train, TrainingData) and len(train) <= FEW


def find_resumed(output_dir: Path, settings: FinetuneArguments) -> Path | None:
    """The checkpoint to go on from.

    Raises:
        ConfigError: there are checkpoints of another run, and nobody said to go on.
    """
    found = checkpoints(output_dir)
    if found and not settings.resume:
        raise ConfigError(
            f"{output_dir} holds checkpoints of an earlier run. Go on with it by resume=True (--resume), or choose "
            "another output_dir."
        )
    return found[-1] if found else None


def read_data(
    data: Any, settings: FinetuneArguments, renderer: Renderer
) -> tuple[Any, TrainingData | None, dict[str, Any], FinetuneArguments]:
    """Training examples, held-out examples, what was counted, and the settings for so much data."""
    is_file = settings.eval_data is not None and isinstance(data, str | Path)
    if is_file and Path(str(settings.eval_data)).resolve() == Path(data).resolve():
        raise ConfigError("eval_data is the file to train on: a loss on it says nothing. Name another one.")
    if is_stream(data):
        settings = settings.for_size(None)
        return *read_stream(data, settings, renderer), settings
    rows = open_rows(data, settings.allow_outside)
    index = build_index(rows, settings.prompt)
    check_bad_share(len(index.problems), len(rows), index.problems, settings.max_bad_rows)
    for problem in index.problems:
        logger.warning("left out: %s", problem)
    settings = settings.for_size(len(index.rows))
    if settings.eval_data is not None:
        held_out: TrainingData | None = whole(settings.eval_data, settings, renderer)
        places = np.arange(len(index.rows))
    else:
        places, apart = split_held_out(index, settings.held_out or 0.0)
        held_out = TrainingData(rows, index, apart, renderer, settings.prompt) if len(apart) else None
    if not len(places):
        raise DataError(f"no row of {len(rows)} can be used. `visglm data check` says why.")
    train = TrainingData(rows, index, places, renderer, settings.prompt)
    counts = {
        "rows": len(rows),
        "rows_left_out": len(index.problems),
        "answers": len(train),
        "answers_held_out": len(held_out) if held_out is not None else 0,
    }
    return train, held_out, counts, settings


def general_data(
    train: TrainingData, settings: FinetuneArguments, renderer: Renderer, answer: Answer, asks_captions: bool
) -> TrainingData:
    """What is mixed in against forgetting: rows of the user's, or as many answers of the model as the run will use."""
    if settings.replay_data is not None:
        return whole(settings.replay_data, settings, renderer)
    share = settings.replay or 0.0
    num_steps, _ = count_steps(len(train) + num_replayed(train, share), settings)
    count = max(1, round(num_steps * examples_per_step(settings) * share))
    return own_answers(train, count, answer, asks_captions)


def whole(source: Any, settings: FinetuneArguments, renderer: Renderer) -> TrainingData:
    """All of a second set of rows."""
    rows = open_rows(source, settings.allow_outside)
    index = build_index(rows, settings.prompt)
    check_bad_share(len(index.problems), len(rows), index.problems, settings.max_bad_rows)
    return TrainingData(rows, index, np.arange(len(index.rows)), renderer, settings.prompt)


def read_stream(
    data: Any, settings: FinetuneArguments, renderer: Renderer
) -> tuple[StreamData, TrainingData | None, dict[str, Any]]:
    """A stream has no length: its first rows are kept apart, and max_steps must say when to stop."""
    if settings.max_steps is None:
        raise ConfigError("a stream has no end: say how long to train with max_steps.")
    if settings.replay:
        raise ConfigError("replay mixes into sets of known length. Give rows that are no stream, or leave it out.")
    num_apart = 0 if settings.eval_data is not None or not settings.held_out else NUM_STREAM_HELD_OUT
    train = StreamData(data, renderer, settings.prompt, num_skipped_rows=num_apart)
    source: Any = settings.eval_data
    if num_apart:
        source = [row for _, row in zip(range(num_apart), train.rows, strict=False)]
    held_out = whole(source, settings, renderer) if source is not None else None
    return train, held_out, {"rows": "a stream", "answers": "a stream's", "answers_held_out": len(held_out or ())}


def count_steps(num_examples: int | None, settings: FinetuneArguments) -> tuple[int, int]:
    """Optimizer steps in all, and between two checkpoints; `num_examples` is None for a stream."""
    if num_examples is None:
        return settings.max_steps or 0, settings.every or STREAM_STEPS_BETWEEN
    per_epoch = max(1, -(-num_examples // examples_per_step(settings)))
    num_steps = settings.max_steps or max(1, round((settings.epochs or 0.0) * per_epoch))
    every = max(per_epoch // EVALUATIONS_PER_EPOCH, -(-num_steps // MAX_EVALUATIONS))
    return num_steps, settings.every or max(1, min(every, num_steps))


def pick_precision(precision: str, device: torch.device) -> str:
    """What products are computed in.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision='fp16' needs a GPU: on a CPU, use 'bf16' or 'float32'.")
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "float32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
