"""One fine-tuning run from start to report: the one function behind the method, the command and the recipes."""

from __future__ import annotations

import gc
import logging
import os
import shlex
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset
from tqdm import tqdm

from ..checkpoint.adapter import base_name
from ..errors import ConfigError, DataError, require
from ..model import VisGLMForConditionalGeneration
from ..processor import VisGLMProcessor
from ..prompt import detect_language
from ..recipe import FinetuneArguments
from .adapters import check_settings, load_trained, prepare, settle, withdraw
from .containers import ObjectRows, is_stream, open_rows
from .data import (
    Collator,
    Index,
    Renderer,
    StreamData,
    TrainingData,
    build_index,
    check_bad_share,
    split_held_out,
)
from .formats import CAPTION_QUESTIONS, IMAGE_MARKER
from .preflight import available_memory, check_memory, describe, estimate_memory, scan, try_longest
from .report import MEASURED, FinetuneReport
from .samples import Answer, answer_briefly, answer_samples, choose, sample_rows, score
from .saving import MARKER_NAME, checkpoints, copy_result
from .trainer import Brake, VisGLMTrainer, training_arguments

logger = logging.getLogger(__name__)

# Whether to end the run here; with several processes all must say the same. None: nobody is asked.
Stop = Callable[[], bool] | None

EVALUATIONS_PER_EPOCH = 5
NUM_STREAM_HELD_OUT = 64  # rows at the start of a stream
MAX_SELF_ANSWERS = 512  # general rows the model answers for itself; more are repeated
SKIPPED_IN_RESULT = ("trainer_state.json", "training_args.bin", "optimizer", "scheduler", "rng_state", "scaler")


def finetune(
    model: VisGLMForConditionalGeneration,
    processor: VisGLMProcessor,
    data: Any,
    settings: FinetuneArguments,
    answerer: Callable[..., Sequence[Any]],
    stop: Stop = None,
) -> FinetuneReport:
    """Fine-tune a model in place; it answers with what it learnt afterwards.

    Args:
        data: a path, a list of rows, or a `datasets` object; see `FORMATS` and `CONTAINERS`.
        answerer: how the model answers, for the report and for replay: `VisGLM.batch`.
        stop: asked after every step; true ends the run there, with what was learnt so far as its result.

    Raises:
        DataError: too much of the data is unusable. ConfigError: settings contradict each other.
        TrainingError: it does not fit, or the loss is zero or not a number; the message names the rows.
        MissingDependencyError: the extra "finetune" is not installed.
    """
    started = time.perf_counter()
    check_settings(settings)
    processor.check(model.config)
    answer = partial(answer_briefly, answerer)
    require("evaluate", "sacrebleu")  # rather now than after training
    output_dir = Path(settings.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    resumed = find_resumed(output_dir, settings)
    limit = min(settings.max_length or 1 << 30, model.config.text_config.max_position_embeddings)
    renderer = Renderer(processor, limit)
    train, held_out, counts = read_data(data, settings, renderer)
    is_main = int(os.environ.get("RANK", 0)) == 0
    is_many = int(os.environ.get("WORLD_SIZE", 1)) > 1
    samples = sample_rows(held_out, answer) if is_main else []
    if settings.replay:
        train = add_replay(train, settings, renderer, answer)
    precision = pick_precision(settings.precision, model.device)
    torch.manual_seed(settings.seed)  # before the adapter's own weights are drawn
    prepare(model, settings)
    if settings.gradient_checkpointing:  # here, and not by Trainer: the longest example is tried before there is one
        # transformers has renamed it, and warns of the old name.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    try:
        size = processor.image_processor.size
        has_vision = model.config.vision_config is not None
        collator = Collator(
            model.config.text_config.pad_token_id or 0, (size["height"], size["width"]) if has_vision else None
        )
        memory = {}
        if isinstance(train, StreamData):
            num_steps, every = settings.max_steps or 0, settings.every or 100
        else:
            found = scan(train if isinstance(train, TrainingData) else train.datasets[0])
            counts |= {
                "tokens_to_learn": found.num_supervised,
                "tokens_of_the_longest": found.longest_length,
                "examples_cut": found.num_cut,
            }
            memory = estimate_memory(model, found.longest_length, settings.batch_size, settings.gradient_checkpointing)
            available = available_memory(model.device)
            if is_main:
                tqdm.write(describe(found, memory, available), file=sys.stderr)
            check_memory(memory, available)
            if found.num_cut:
                logger.warning(
                    "%d of %d examples are longer than %d tokens and are cut; `visglm data check` shows how many by "
                    "length.", found.num_cut, found.num_scanned, limit,
                )  # fmt: skip
            first = train if isinstance(train, TrainingData) else train.datasets[0]
            if not is_many:
                try_longest(model, first, found.longest, collator, precision)
            num_steps, every = plan(len(train), settings)
        schedule = training_arguments(
            settings,
            num_steps=num_steps,
            every=every,
            has_held_out=held_out is not None,
            precision=precision,
            is_on_cpu=model.device.type == "cpu",
        )
        if isinstance(train, StreamData):
            schedule.dataloader_num_workers, schedule.dataloader_persistent_workers = 0, False
        trainer = VisGLMTrainer(
            model, settings, processor, schedule, data_collator=collator, train_dataset=train, eval_dataset=held_out
        )
        if stop is not None:
            trainer.add_callback(Brake(stop))
        if resumed is not None:
            load_trained(resumed, model, settings.method)
        trainer.train(resume_from_checkpoint=str(resumed) if resumed is not None else None)
        if not checkpoints(output_dir) or checkpoints(output_dir)[-1].name != f"checkpoint-{trainer.state.global_step}":
            trainer._save_checkpoint(model, None)  # it ended between two
    except BaseException:
        withdraw(model)
        raise
    chosen = Path(trainer.state.best_model_checkpoint or output_dir / f"checkpoint-{trainer.state.global_step}")
    is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if is_main:
        names = [path.name for path in chosen.iterdir() if path.is_file() and path.name != MARKER_NAME]
        copy_result(chosen, output_dir, [name for name in names if not name.startswith(SKIPPED_IN_RESULT)])
    state, rates, num_left_out, num_cut = trainer.state, trainer.meter.rates(), len(trainer.problems), trainer.num_cut
    del trainer
    gc.collect()  # the optimizer goes: answers want the room
    if not is_sharded:
        load_trained(chosen, model, settings.method)
    settle(model)
    if is_main and not is_sharded:
        for sample, after in zip(samples, answer_samples(samples, answer), strict=True):
            sample.after = after
    history = [row for row in state.log_history if "loss" in row or "eval_loss" in row]
    report = FinetuneReport(
        output_dir=output_dir,
        command=command_of(data, settings, base_name(model)),
        settings=asdict(settings),
        data=counts | {"rows_left_out_while_training": num_left_out, "cut_while_training": num_cut},
        memory=memory | {MEASURED: peak_memory(model.device)},
        history=history,
        best={"step": state.best_global_step, "loss": state.best_metric} if state.best_global_step else {},
        speed=rates,
        metrics=score(samples),
        samples=choose(samples, settings.num_samples),
        seconds=time.perf_counter() - started,
    )
    if is_main:
        report.write()
    return report


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
) -> tuple[Any, TrainingData | None, dict[str, Any]]:
    """Training examples, held-out examples, and what was counted."""
    is_file = settings.eval_data is not None and isinstance(data, str | Path)
    if is_file and Path(str(settings.eval_data)).resolve() == Path(data).resolve():
        raise ConfigError("eval_data is the file to train on: a loss on it says nothing. Name another one.")
    if is_stream(data):
        return read_stream(data, settings, renderer)
    rows = open_rows(data)
    index = build_index(rows, settings.prompt)
    check_bad_share(len(index.problems), len(rows), index.problems, settings.max_bad_rows)
    for problem in index.problems:
        logger.warning("left out: %s", problem)
    if settings.eval_data is not None:
        held_out: TrainingData | None = whole(settings.eval_data, settings, renderer)
        places = np.arange(len(index.rows))
    else:
        places, apart = split_held_out(index, settings.held_out)
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
    return train, held_out, counts


def whole(source: Any, settings: FinetuneArguments, renderer: Renderer) -> TrainingData:
    """All of a second set of rows."""
    rows = open_rows(source)
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


def plan(num_examples: int, settings: FinetuneArguments) -> tuple[int, int]:
    """Optimizer steps in all, and between two checkpoints."""
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    per_step = settings.batch_size * settings.accumulation * num_processes
    per_epoch = max(1, -(-num_examples // per_step))
    num_steps = settings.max_steps or max(1, round(settings.epochs * per_epoch))
    return num_steps, settings.every or max(1, min(per_epoch // EVALUATIONS_PER_EPOCH, num_steps))


def add_replay(train: TrainingData, settings: FinetuneArguments, renderer: Renderer, answer: Answer) -> ConcatDataset:
    """Mix general examples in: from a file, or the model's own answers to general questions about the pictures."""
    wanted = max(1, round(len(train) * settings.replay / (1 - settings.replay)))
    if settings.replay_data is not None:
        general = whole(settings.replay_data, settings, renderer)
    else:
        rows = answer_itself(train, min(wanted, MAX_SELF_ANSWERS), answer)
        objects = ObjectRows(rows)
        objects.folder = train.rows.folder
        index = build_index(objects)
        general = TrainingData(objects, index, np.arange(len(index.rows)), renderer)
    spread = Index(rows=as_array(general.row_of), turns=as_array(general.turn_of, "i"))
    places = np.arange(wanted) * len(general) // wanted if wanted < len(general) else np.arange(wanted) % len(general)
    return ConcatDataset([train, TrainingData(general.rows, spread, places, renderer, general.question)])


def as_array(values: np.ndarray, kind: str = "q") -> Any:
    return array(kind, values.tolist())


def answer_itself(train: TrainingData, count: int, answer: Answer) -> list[dict[str, Any]]:
    """Rows of general questions about training pictures, answered by the model as it is now."""
    requests: list[tuple[list[Any], str, list[tuple[str, str]]]] = []
    pictures: list[list[Any]] = []
    for number in range(count):
        conversation = train.conversation(number * len(train) // count)
        image = conversation.images[0] if conversation.images else None
        language = detect_language(conversation.turns[0].question) if number % 2 else ("zh", "en")[number // 2 % 2]
        questions = CAPTION_QUESTIONS[language]
        question = questions[number % len(questions)]
        opened = [train.renderer.open(image, train.rows.folder)] if image is not None else []
        requests.append((opened, question, []))
        pictures.append([image] if image is not None else [])
    replies = answer(requests)
    return [
        {
            "images": images,
            "messages": [
                {"role": "user", "content": IMAGE_MARKER * len(images) + question},
                {"role": "assistant", "content": reply},
            ],
        }
        for (_, question, _), images, reply in zip(requests, pictures, replies, strict=True)
        if reply.strip()
    ]


def pick_precision(precision: str, device: torch.device) -> str:
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "float32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def peak_memory(device: torch.device) -> int:
    """Most memory that was in use, in bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such count
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def command_of(data: Any, settings: FinetuneArguments, base: str | None) -> str:
    """The command line that repeats the run; `base` is the model's folder or hub id, None the embedded one."""
    words = ["visglm", "finetune", str(data) if isinstance(data, str | Path) else "DATA"]
    for item in fields(settings):
        value = getattr(settings, item.name)
        if value != item.default and item.name != "resume":
            words += ["--" + item.name.replace("_", "-"), *([] if value is True else [str(value)])]
    words += ["--model", base] if base is not None else []
    return shlex.join(words)
