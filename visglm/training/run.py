"""One fine-tuning run, plan → train → report: the one function behind the method, the command and the recipes."""

from __future__ import annotations

import gc
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..adapters import EMBEDDED, Adapters, Home, relative_to
from ..families import family_of
from ..processor import VisGLMProcessor
from ..recipe import FinetuneArguments
from .callbacks import Brake
from .collator import Collator
from .data import StreamData, TrainingData
from .learnt import UntilLearnt
from .methods import make_part
from .plan import Plan, make_plan
from .preflight import available_memory, check_memory, describe, estimate_memory, scan, try_longest
from .report import MEASURED, FinetuneReport
from .samples import answer_samples, choose, judge, score
from .saving import checkpoints, load_trained, write_result
from .schedule import training_arguments
from .trainer import VisGLMTrainer

logger = logging.getLogger(__name__)

# Whether to end the run here; with several processes all must say the same. None: nobody is asked.
Stop = Callable[[], bool] | None


@dataclass
class Outcome:
    """What training has given.

    Args:
        history: points of the curves. best: step and held-out loss of what was kept. speed: per second.
        counts: of what happened to the data on the way.
        can_answer: whether the network is whole; after sharded training only the result on disk is.
    """

    history: list[dict[str, Any]]
    best: dict[str, Any]
    speed: dict[str, float]
    counts: dict[str, int]
    can_answer: bool


def finetune(
    adapters: Adapters,
    processor: VisGLMProcessor,
    data: Any,
    settings: FinetuneArguments,
    answerer: Callable[..., Sequence[Any]],
    stop: Stop = None,
) -> FinetuneReport:
    """Fine-tune a network in place; it answers with what it learnt afterwards, or as before where the run fails.

    Args:
        adapters: of the network, which has none in it yet.
        data: a path, a list of rows, or a `datasets` object; see `FORMATS` and `CONTAINERS`.
        answerer: how the model answers, for the report and for replay: `VisGLM.batch`.
        stop: asked after every step; true ends the run there, with what was learnt so far as its result.

    Raises:
        DataError: too much of the data is unusable.
        ConfigError: settings contradict each other.
        TrainingError: it does not fit, or the loss is zero or not a number; the message names the rows.
        MissingDependencyError: the extra "finetune" is not installed.
    """
    started = time.perf_counter()
    plan = make_plan(adapters, processor, data, settings, answerer)
    base = adapters.home
    outcome = train(plan, adapters, processor, stop)
    if plan.is_main and outcome.can_answer:
        asked = [*plan.samples, *plan.taught]
        for sample, after in zip(asked, answer_samples(asked, plan.answer), strict=True):
            sample.after = after
    report = FinetuneReport(
        output_dir=plan.output_dir,
        command=command_of(data, settings, base),
        settings=asdict(plan.settings),
        data=plan.counts | outcome.counts,
        memory=plan.memory | {MEASURED: peak_memory(adapters.network.device)},
        history=outcome.history,
        best=outcome.best,
        speed=outcome.speed,
        metrics=score(plan.samples),
        samples=choose(plan.samples, settings.num_samples),
        taught=plan.taught,
        verdict=judge(plan.samples, plan.taught, plan.counts, plan.settings),
        seconds=time.perf_counter() - started,
    )
    if plan.is_main:
        report.write()
    return report


def train(plan: Plan, adapters: Adapters, processor: VisGLMProcessor, stop: Stop) -> Outcome:
    """Run the plan, write its result, and leave the network answering with it.

    With sharded training the network holds only a part of itself afterwards: then it is left as it is, and the result
    is on disk.
    """
    settings, model = plan.settings, adapters.network
    torch.manual_seed(settings.seed)  # before the adapter's own weights are drawn
    with learning(adapters, settings):
        collator = make_collator(model, processor)
        rehearse(plan, adapters, collator)
        schedule = training_arguments(
            settings,
            model.config,
            num_steps=plan.num_steps,
            every=plan.every,
            has_held_out=plan.held_out is not None,
            precision=plan.precision,
            is_on_cpu=model.device.type == "cpu",
        )
        if isinstance(plan.train, StreamData):
            schedule.dataloader_num_workers, schedule.dataloader_persistent_workers = 0, False
        trainer = VisGLMTrainer(
            adapters, settings, processor, plan.home, plan.facts, schedule,
            data_collator=collator, train_dataset=plan.train, eval_dataset=plan.held_out,
        )  # fmt: skip
        if stop is not None:
            trainer.add_callback(Brake(stop))
        if plan.lessons is not None:
            trainer.add_callback(UntilLearnt(trainer, plan.lessons))
        if plan.resumed is not None:
            load_trained(plan.resumed, adapters)
        if trainer.is_sharded:
            adapters.forget_base()
        trainer.train(resume_from_checkpoint=str(plan.resumed) if plan.resumed is not None else None)
        trainer.save_last()
        state, rates, is_sharded = trainer.state, trainer.meter.rates(), trainer.is_sharded
        counts = {"rows_left_out_while_training": len(trainer.problems), "cut_while_training": trainer.num_cut}
        del trainer
        gc.collect()  # the optimizer goes: answers want the room
        chosen = choose_checkpoint(plan.output_dir, state.best_global_step or state.global_step)
        if plan.is_main:
            home = relative_to(plan.home, plan.output_dir.resolve(), plan.output_dir.resolve()) if plan.home else None
            write_result(chosen, plan.output_dir, adapters, processor, home)
        if not is_sharded:
            load_trained(chosen, adapters)
            adapters.settle(keeps_base=plan.home is not None)
    return Outcome(
        history=[row for row in state.log_history if "loss" in row or "eval_loss" in row],
        best={"step": state.best_global_step, "loss": state.best_metric} if state.best_global_step else {},
        speed=rates,
        counts=counts,
        can_answer=not is_sharded,
    )


@contextmanager
def learning(adapters: Adapters, settings: FinetuneArguments) -> Iterator[None]:
    """The network with what is to learn in it; as it was before where the block fails, and without Trainer's traces."""
    model = adapters.network
    adapters.learn(settings.method, partial(make_part, arguments=settings))
    try:
        if settings.gradient_checkpointing:  # not by Trainer: the longest example is tried before there is one
            checkpointing(model, "enable")
        yield
    except BaseException:
        adapters.withdraw()
        raise
    finally:
        for name in ("forward", "_original_forward"):  # accelerate's, with the precision of training
            vars(model).pop(name, None)
        vars(model.config).pop("use_cache", None)  # Trainer's
        if settings.gradient_checkpointing:
            checkpointing(model, "disable")


def checkpointing(model: Any, verb: str) -> None:
    """Enable or disable it. transformers has renamed it, and warns of the old name."""
    new, old = f"activation_checkpointing_{verb}", f"gradient_checkpointing_{verb}"
    getattr(model, new if hasattr(model, new) else old)()


def make_collator(model: Any, processor: VisGLMProcessor) -> Collator:
    pad = model.config.text_config.pad_token_id or 0
    if processor.num_query_tokens is None:
        return Collator(pad, None, partial(family_of(model.config).arrange, model.config))
    size = processor.image_processor.size
    has_vision = model.config.vision_config is not None
    return Collator(pad, (size["height"], size["width"]) if has_vision else None)


def rehearse(plan: Plan, adapters: Adapters, collator: Collator) -> None:
    """Tell what is to be learnt and what it takes, and try the longest example. Nothing of it for a stream.

    Raises:
        TrainingError: it does not fit. DataError: there is no token to learn.
    """
    first, settings, model = plan.first, plan.settings, adapters.network
    if not isinstance(first, TrainingData):
        return
    found = scan(first)
    plan.counts |= {
        "tokens_to_learn": found.num_supervised,
        "tokens_of_the_longest": found.longest_length,
        "examples_cut": found.num_cut,
    }
    plan.memory = estimate_memory(model, found.longest_length, settings.batch_size, settings.gradient_checkpointing)
    available = available_memory(model.device)
    if plan.is_main:
        tqdm.write(describe(found, plan.memory, available), file=sys.stderr)
    check_memory(plan.memory, available)
    if found.num_cut:
        logger.warning(
            "%d of %d examples are longer than %d tokens and are cut; `visglm data check` shows how many by length.",
            found.num_cut, found.num_scanned, plan.limit,
        )  # fmt: skip
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        try_longest(model, first, found.longest, collator, plan.precision)


def choose_checkpoint(output_dir: Path, step: int) -> Path:
    """The checkpoint of a step. Which one is the best may come from a file, so only one of this run's is taken."""
    found = {path.name: path for path in checkpoints(output_dir)}
    if (name := f"checkpoint-{step}") in found:
        return found[name]
    last = list(found.values())[-1]
    logger.warning("%s is not in %s any more; the result is %s.", name, output_dir, last.name)
    return last


def peak_memory(device: torch.device) -> int:
    """Most memory that was in use, in bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such count
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def command_of(data: Any, settings: FinetuneArguments, base: Home | None) -> str:
    """The command line that repeats the run."""
    words = ["visglm", "finetune", str(data) if isinstance(data, str | Path) else "DATA"]
    for item in fields(settings):
        value = getattr(settings, item.name)
        if value != item.default and item.name != "resume":
            words += ["--" + item.name.replace("_", "-"), *([] if value is True else [str(value)])]
    words += ["--model", base.name] if base is not None and base.name != EMBEDDED else []
    return shlex.join(words)
