"""What is called between the steps of a run: when to stop, which epoch it is, how fast it goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from torch import nn
from tqdm import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback


class Patience(EarlyStoppingCallback):
    """Early stopping; that the best checkpoint is loaded at the end, `run.finetune` sees to itself."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Nothing: the base class would warn that nobody loads it."""


class Brake(TrainerCallback):
    """Ends training behind the step after which `stop` is true."""

    def __init__(self, stop: Callable[[], bool]):
        self.stop = stop

    def on_step_end(self, args, state, control, **kwargs):
        if self.stop():
            control.should_training_stop = True


class Epochs(TrainerCallback):
    """Tells data which epoch it is, wherever they are read; a run that goes on counts from where it was."""

    def __init__(self, data: Any):
        self.parts = getattr(data, "datasets", [data])

    def on_train_begin(self, args, state, control, **kwargs):
        self.next = int((state.epoch or 0) + 1e-6)

    def on_epoch_begin(self, args, state, control, **kwargs):
        for part in self.parts:
            part.epoch.fill_(self.next)
        self.next += 1


class OneDtype(TrainerCallback):
    """DeepSpeed casts parameters and leaves buffers as they are: a stem's BatchNorm wants both in one dtype."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        for module in model.modules() if model is not None else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for name in ("running_mean", "running_var"):
                    setattr(module, name, getattr(module, name).to(module.weight.dtype))


class Meter(TrainerCallback):
    """Progress on stderr: loss, rate, pictures and tokens per second, time left; the same goes to the logs."""

    def __init__(self) -> None:
        self.num_images = self.num_tokens = self.num_examples = 0
        self.started = self.last_step = time.perf_counter()
        self.bar: tqdm | None = None
        self.shown: dict[str, str] = {}

    def count(self, num_examples: int, num_images: int, num_tokens: int) -> None:
        self.num_examples += num_examples
        self.num_images += num_images
        self.num_tokens += num_tokens

    def rates(self) -> dict[str, float]:
        """Per second from the start to the last step, of this process; what is saved behind it does not count."""
        seconds = max(self.last_step - self.started, 1e-9)
        return {
            "images_per_second": self.num_images / seconds,
            "tokens_per_second": self.num_tokens / seconds,
            "examples_per_second": self.num_examples / seconds,
        }

    def say(self, text: str) -> None:
        if self.bar is not None:
            tqdm.write(text, file=sys.stderr)

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", desc="training", file=sys.stderr
            )

    def on_step_end(self, args, state, control, **kwargs):
        self.last_step = time.perf_counter()
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is None:
            return
        if "loss" in logs:
            logs |= {name: round(value, 2) for name, value in self.rates().items()}
            self.shown |= {"loss": f"{logs['loss']:.3f}", "rate": f"{logs['learning_rate']:.1e}"}
        if "eval_loss" in logs:
            self.shown["held-out"] = f"{logs['eval_loss']:.3f}"
        if self.bar is not None:
            rates = self.rates()
            speed = {"img/s": f"{rates['images_per_second']:.1f}", "tok/s": f"{rates['tokens_per_second']:.0f}"}
            self.bar.set_postfix(self.shown | speed)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
