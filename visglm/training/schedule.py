"""The settings of a run as transformers' Trainer wants them."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainingArguments

from ..config import VisGLMConfig
from ..recipe import FinetuneArguments, split_names
from .methods import METHODS, rate_of, tower_names

NUM_LOGGED = 500  # points of a loss curve


def training_arguments(
    settings: FinetuneArguments,
    config: VisGLMConfig,
    *,
    num_steps: int,
    every: int,
    has_held_out: bool,
    precision: str,
    is_on_cpu: bool,
) -> TrainingArguments:
    """Arguments of a run.

    Args:
        num_steps: optimizer steps in all. every: from one evaluation and checkpoint to the next.
        has_held_out: whether there is a loss to choose the best checkpoint by.
        precision: float32, bf16 or fp16.
    """
    strategy = "steps" if has_held_out else "no"
    schedule = TrainingArguments(
        output_dir=settings.output_dir,
        max_steps=num_steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation or 1,
        learning_rate=max(rate_of(settings, tower, config) for tower in tower_names(settings, config)),
        lr_scheduler_type="cosine",
        warmup_steps=int(settings.warmup * num_steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        dataloader_num_workers=settings.num_workers,
        dataloader_persistent_workers=settings.num_workers > 0,
        dataloader_pin_memory=not is_on_cpu,
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        logging_steps=max(1, num_steps // NUM_LOGGED),
        logging_nan_inf_filter=False,  # it would hide what `check_loss` stops for
        eval_strategy=strategy,
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=settings.keep,
        metric_for_best_model="eval_loss" if has_held_out else None,
        greater_is_better=False if has_held_out else None,
        report_to=list(split_names(settings.report_to)),
        run_name=Path(settings.output_dir).name,
        seed=settings.seed,
        data_seed=settings.seed,
        disable_tqdm=True,
        use_cpu=is_on_cpu,
        # A batch may hold no picture: then DDP finds no gradient for what only pictures reach.
        ddp_find_unused_parameters=METHODS[settings.method].towers != ("text",),
        accelerator_config={"dispatch_batches": False, "split_batches": False},
    )
    schedule._n_gpu = min(schedule.n_gpu, 1)  # several GPUs are for several processes, never for DataParallel
    return schedule
