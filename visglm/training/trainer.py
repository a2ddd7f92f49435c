"""transformers' Trainer, and what it cannot know: rates per tower, whole checkpoints, when to stop, how fast it is."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ProgressCallback, Trainer
from transformers.trainer_callback import PrinterCallback

from ..adapters import Adapters, Home, relative_to
from ..errors import DataError, TrainingError, VisGLMError, require
from ..families import family_of
from ..processor import VisGLMProcessor
from ..prompt import IGNORE_INDEX
from ..recipe import FinetuneArguments
from .callbacks import Epochs, Meter, OneDtype, Patience
from .data import HeldOutData
from .index import check_bad_share
from .methods import rate_of, tower_of
from .saving import PARTIAL_NAME, checkpoints, disk_error, publish, rotate, save_trained, write_facts
from .seen import Kept, SeenPictures

# What torch says of a process that reads data and is no more.
DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*\) (?:is killed by signal: ([\w ]+)|exited unexpectedly)")

# What torch.save says where a file ends early: that its positions do not match, and not why.
UNWRITTEN = re.compile("inline_container|iostream|PytorchStreamWriter|write|space", re.IGNORECASE)
LITTLE_ROOM = 1 << 20  # bytes: with less the disk is full


class VisGLMTrainer(Trainer):
    """Trains the part that `adapters.learn` has put into the network.

    Args:
        settings: of the run. processor: saved beside the weights. home: of the base, as `save_trained` takes it.
        facts: noted in every checkpoint, for a run that goes on from it.
        schedule: transformers' arguments, from `training_arguments`. data: collator and data sets, by Trainer's names.
    """

    optimizer: Any  # Trainer assigns it without saying what it is

    def __init__(
        self,
        adapters: Adapters,
        settings: FinetuneArguments,
        processor: VisGLMProcessor,
        home: Home | None,
        facts: Mapping[str, Any],
        schedule: Any,
        **data,
    ):
        self.adapters, self.settings, self.processor, self.home = adapters, settings, processor, home
        self.facts = facts
        self.problems: dict[str, None] = {}  # in order; each once, however often its row comes round
        self.num_bad = self.num_seen = self.num_cut = 0
        self.measured: dict[int, tuple[float, int]] = {}  # held-out example → its loss, added up, and its tokens
        if data.get("eval_dataset") is not None:
            data["eval_dataset"] = HeldOutData(data["eval_dataset"])
        super().__init__(model=adapters.network, args=schedule, processing_class=processor, **data)
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        family = family_of(adapters.network.config)
        vision = family.vision(adapters.network)
        learns = vision is not None and any(parameter.requires_grad for parameter in vision.parameters())
        self.frozen_vision = None if learns else vision
        # Of sharded weights every process must run every module at every step.
        is_kept = self.frozen_vision is not None and not self.is_sharded and family.takes_image_embeds
        self.seen = SeenPictures(vision) if is_kept else None
        self.said_by_base = Kept()  # of an example whose answer is the model's own, by where it is from
        if data.get("train_dataset") is not None:
            self.add_callback(Epochs(data["train_dataset"]))
        self.meter = Meter()
        self.add_callback(self.meter)
        if self.is_deepspeed_enabled:
            self.add_callback(OneDtype())
        if data.get("eval_dataset") is not None:
            self.add_callback(Patience(settings.patience))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with one rate per tower; matrices decay, biases, norms and prefixes do not."""
        if self.optimizer is None:
            groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
            for name, parameter in (model if model is not None else self.model).named_parameters():
                if parameter.requires_grad:
                    decays = parameter.ndim == 2
                    groups.setdefault((tower_of(name.removeprefix("module.")), decays), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [
                    {
                        "params": parameters,
                        "lr": rate_of(self.settings, tower, self.adapters.network.config),
                        "weight_decay": self.settings.weight_decay if decays else 0.0,
                    }
                    for (tower, decays), parameters in groups.items()
                ]
            )
        return self.optimizer

    def train(self, *arguments: Any, **options: Any) -> Any:
        """As of the base class; what goes wrong in a process that reads data is told in our own words."""
        try:
            return super().train(*arguments, **options)
        except VisGLMError as error:
            # The loader puts the worker's traceback into the message.
            *traceback, message = re.split(r"^visglm\.errors\.\w+: ", str(error), flags=re.MULTILINE)
            if not traceback:
                raise
            raise type(error)(message.rstrip()) from None
        except RuntimeError as error:
            dead = DEAD_WORKER.search(str(error))
            if dead is None:
                raise
            raise TrainingError(
                f"a process that reads data ended ({dead[1] or 'without a word'}), most often because memory ran out: "
                f"lower num_workers ({self.args.dataloader_num_workers}) or batch_size "
                f"({self.settings.batch_size}), and go on by resume=True (--resume)."
            ) from None

    def evaluation_loop(self, *arguments: Any, metric_key_prefix: str = "eval", **options: Any) -> Any:
        """As of the base class, but every token weighs the same: it would take the mean of the batches' means, and
        count again what fills up the last batch of several processes."""
        self.measured = {}
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **options)
        gathered = require("finetune", "accelerate.utils").gather_object(list(self.measured.items()))
        measured = dict(gathered).values()
        num_tokens = sum(count for _, count in measured)
        if not num_tokens:
            shown = "".join(f"\n  {problem}" for problem in list(self.problems)[:10])
            raise DataError(f"not one held-out row can be used:{shown}")
        output.metrics[f"{metric_key_prefix}_loss"] = sum(loss for loss, _ in measured) / num_tokens
        return output

    @torch.no_grad()
    def knows(self, items: Sequence[dict[str, Any]]) -> bool:
        """Whether the likeliest tokens are those of the answer, in every one of these examples."""
        self.model.eval()
        for start in range(0, len(items), self.settings.batch_size):
            batch = self.data_collator(items[start : start + self.settings.batch_size])
            pictures = batch["pictures"]
            inputs = self._prepare_inputs({key: value for key, value in batch.items() if isinstance(value, Tensor)})
            self.look(inputs, pictures)
            wanted = inputs.pop("labels")[:, inputs["logits_to_keep"] + 1]
            with self.compute_loss_context_manager():
                likeliest = self.model(**inputs, use_cache=False).logits.argmax(-1)
            if not bool(((likeliest == wanted) | (wanted == IGNORE_INDEX)).all()):
                return False
        return True

    def measure(self, model: nn.Module, inputs: dict[str, Any], places: list[int]) -> tuple[Tensor, Any]:
        """The mean loss of a held-out batch; loss and tokens of each example are kept for the mean over all."""
        outputs = model(**{**inputs, "use_cache": False})
        targets = F.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)[:, inputs["logits_to_keep"]]
        logits = outputs["logits"].float().flatten(0, 1)
        losses = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
        sums, counts = losses.view_as(targets).sum(1), (targets != IGNORE_INDEX).sum(1)
        self.measured |= zip(places, zip(sums.tolist(), counts.tolist(), strict=True), strict=True)
        return sums.sum() / counts.sum().clamp(min=1), outputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        places = inputs.pop("places", None)
        where, skipped = inputs.pop("where"), inputs.pop("skipped")
        num_cut, num_tokens = inputs.pop("num_cut"), inputs.pop("num_tokens")
        pictures, is_own = inputs.pop("pictures"), inputs.pop("is_own")
        self.look(inputs, pictures)
        if places is not None:
            self.say_left_out(skipped)
            loss, outputs = self.measure(model, inputs, places)
            if bool((inputs["labels"] != IGNORE_INDEX).any()):
                self.check_loss(loss, where, training=False)
            return (loss, outputs) if return_outputs else loss
        # Several processes expect one pass through the model for each backward pass; there, the words are learnt.
        if any(is_own) and self.part.can_be_weighed and self.args.world_size == 1:
            outputs = self.compare_with_base(model, inputs, where, is_own, num_items_in_batch)
        else:
            # Sharded and quantized weights do not know their own dtype; the vision tower casts pictures itself.
            outputs = super().compute_loss(
                model, {**inputs, "use_cache": False}, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        loss = outputs[0]
        self.check_rows(where, skipped, num_cut)
        self.meter.count(len(inputs["input_ids"]), len(pictures), num_tokens)
        if not all(is_own):  # which the base gives as well
            self.check_loss(loss, where, training=True)
        return outputs if return_outputs else loss

    def compare_with_base(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        where: list[str],
        is_own: list[bool],
        num_tokens: Tensor | int | None,
    ) -> tuple[Tensor, Any]:
        """The loss, where some answers are the model's own: of those it is how far all that could be said is from what
        the base would say ("Learning without Forgetting", Li and Hoiem 2016), which keeps more than the words do."""
        asked = {name: value for name, value in inputs.items() if name != "labels"} | {"use_cache": False}
        wanted = F.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)[:, inputs["logits_to_keep"]]
        own = (wanted != IGNORE_INDEX) & torch.tensor(is_own, device=wanted.device)[:, None]
        base = self.of_base(model, asked, own, where)
        outputs = model(**asked)
        logits = outputs.logits.float()
        taught = F.cross_entropy(
            logits.flatten(0, 1), wanted.masked_fill(own, IGNORE_INDEX).flatten(), ignore_index=IGNORE_INDEX,
            reduction="sum",
        )  # fmt: skip
        away = F.kl_div(logits[own].log_softmax(-1), base, reduction="sum", log_target=True)
        return (taught + away) / (num_tokens if num_tokens is not None else (wanted != IGNORE_INDEX).sum()), outputs

    @torch.no_grad()
    def of_base(self, model: nn.Module, asked: dict[str, Any], own: Tensor, where: list[str]) -> Tensor:
        """Logarithms of the base's probabilities `[num_tokens, vocab_size]` at the marked places `own [rows, places]`;
        computed once for each row, as long as there is room."""
        counts = own.sum(1).tolist()
        names, kept = [name for name, count in zip(where, counts, strict=True) if count], self.said_by_base.tensors
        if all(name in kept for name in names):
            return torch.cat([kept[name] for name in names]).to(own.device)
        model.eval()
        with self.part.weighed(0.0):
            base = model(**asked).logits[own].float().log_softmax(-1)
        model.train()
        self.look({}, [])
        for name, said in zip(where, base.split(counts), strict=True):
            self.said_by_base.keep(name, said)
        return base

    @property
    def part(self) -> Any:
        """What learns."""
        return self.adapters.learning

    def look(self, inputs: dict[str, Any], pictures: list[bytes]) -> None:
        """Put visual tokens in the place of pictures where the vision encoder does not learn: it sees as in chat."""
        if self.frozen_vision is not None:
            self.frozen_vision.eval()  # Trainer has set the whole network to training
        if self.seen is not None:
            pixel_values = inputs.pop("pixel_values", None)
            if pictures:
                with self.accelerator.autocast():
                    inputs["image_embeds"] = self.seen(pixel_values, pictures)

    def check_rows(self, where: list[str], skipped: list[str], num_cut: int) -> None:
        """Count what could not be used; give up when it is too much."""
        self.num_bad += len(skipped)
        self.num_seen += len(where) + len(skipped)
        self.num_cut += num_cut
        if skipped:
            self.say_left_out(skipped)
            limit = max(self.settings.max_bad_rows, 1 / self.num_seen)  # one alone is no share yet
            check_bad_share(self.num_bad, self.num_seen, list(self.problems), limit)

    def say_left_out(self, problems: list[str]) -> None:
        if new := [problem for problem in dict.fromkeys(problems) if problem not in self.problems]:
            self.problems |= dict.fromkeys(new)
            self.meter.say("\n".join(f"left out: {problem}" for problem in new))

    def check_loss(self, loss: Tensor, where: list[str], training: bool) -> None:
        value = float(loss.detach())
        if value == 0 or value != value or abs(value) == float("inf"):
            rows = "".join(f"\n  {row}" for row in where)
            cause = (
                "Everything was learnt by heart, or the labels are empty: stop earlier, or look at these rows."
                if value == 0
                else "Lower the learning rate, set clip, or use bf16 in place of fp16; and look at these rows."
            )
            kind = "training" if training else "held-out"
            raise TrainingError(f"the {kind} loss is {value} at step {self.state.global_step}. {cause} The rows:{rows}")

    # --- checkpoints ---

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the network only."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def save_last(self) -> None:
        """A checkpoint of the last step, where it ended between two."""
        found = checkpoints(self.args.output_dir)
        if not found or found[-1].name != f"checkpoint-{self.state.global_step}":
            self._save_checkpoint(self.model, None)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder, run = Path(output_dir or self.args.output_dir), Path(self.args.output_dir).resolve()
            place = run / folder.name  # where it will be when it is whole
            home = relative_to(self.home, run, place) if self.home is not None else None
            save_trained(folder, self.adapters, self.processor, home, state_dict)
            write_facts(folder, self.facts)

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / PARTIAL_NAME)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        output_dir, keep = Path(self.args.output_dir), self.args.save_total_limit
        partial = output_dir / PARTIAL_NAME / f"checkpoint-{self.state.global_step}"
        target = output_dir / partial.name
        if self.args.should_save:
            shutil.rmtree(partial.parent, ignore_errors=True)
            if self.state.best_global_step:
                self.state.best_model_checkpoint = str(output_dir / f"checkpoint-{self.state.best_global_step}")
        self.args.save_total_limit = None  # rotated below, when the new one is whole
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.state.best_global_step:  # on every process: the base class has written down where it was made
                self.state.best_model_checkpoint = str(output_dir / f"checkpoint-{self.state.best_global_step}")
            if self.args.should_save:
                if self.state.best_global_step:
                    self.state.save_to_json(str(partial / "trainer_state.json"))
                publish(partial, target)
                partial.parent.rmdir()
                rotate(output_dir, keep or 1, self.state.best_model_checkpoint)
        except OSError as error:
            shutil.rmtree(partial.parent, ignore_errors=True)
            raise disk_error(error, output_dir) from error
        except RuntimeError as error:
            if not UNWRITTEN.search(str(error)):
                raise
            is_full = shutil.disk_usage(output_dir).free < LITTLE_ROOM
            reason = os.strerror(errno.ENOSPC) if is_full else str(error).splitlines()[0]
            shutil.rmtree(partial.parent, ignore_errors=True)
            raise disk_error(OSError(0, reason), output_dir) from error
        finally:
            self.args.save_total_limit = keep
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: the caller has put the weights back, in one format for one process and many."""
