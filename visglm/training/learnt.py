"""Whether what is to be learnt is learnt, asked while a run goes on, which then need not go on."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from transformers import TrainerCallback

from ..errors import VisGLMError
from .data import TrainingData
from .formats import CAPTION_QUESTIONS
from .trainer import VisGLMTrainer

NUM_WORDINGS = max(map(len, CAPTION_QUESTIONS.values()))
NUM_ROUNDS = 6
NUM_HALVINGS = 6  # to find the least share that is enough, to 1/64
MARGIN = 0.1  # of what could go and stays: answers that only just are the likeliest would not outlast 16 bits


class UntilLearnt(TrainerCallback):
    """Ends a run when every answer would be given as taught, whichever question asks for it.

    Longer would make other pictures be called by the new names, too. And of what was learnt only so much is kept as
    these answers take: the nearer to the base, the more of what it knew is there ("Robust fine-tuning of zero-shot
    models", Wortsman et al. 2022). How much that is depends on the answer that is learnt least, so the run goes on
    from there for some rounds, in which that one gains most.

    Args:
        lessons: the answers to learn.
    """

    def __init__(self, trainer: VisGLMTrainer, lessons: TrainingData):
        # A trainer in a cycle is collected: the queues of the processes that read data would go before they hear of it,
        # and torch waits five seconds for each that does not.
        self.trainer, self.lessons = weakref.proxy(trainer), lessons
        self.items: list[dict[str, Any]] | None = None
        self.rounds = NUM_ROUNDS if trainer.part.can_be_weighed else 1
        self.kept: dict[str, torch.Tensor] = {}  # what learns, as it was when all was learnt the last time

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.items is None:
            self.items = questions_of(self.lessons)
        if self.trainer.knows(self.items):
            if not self.kept:
                self.trainer.meter.say(f"learnt: after {state.epoch:g} epochs every answer is given as it is taught.")
            if self.trainer.part.can_be_weighed:
                self.keep_what_it_takes(self.items)
            self.rounds -= 1
            live = self.trainer.part.parameters()
            self.kept = {name: parameter.detach().clone() for name, parameter in live.items()}
        if self.kept and (not self.rounds or state.global_step >= state.max_steps):
            with torch.no_grad():
                for name, parameter in self.trainer.part.parameters().items():
                    parameter.copy_(self.kept[name])
            control.should_training_stop = control.should_save = True

    def keep_what_it_takes(self, items: list[dict[str, Any]]) -> None:
        part = self.trainer.part
        low, high = 0.0, 1.0
        for _ in range(NUM_HALVINGS):
            share = (low + high) / 2
            with part.weighed(share):
                low, high = (low, share) if self.trainer.knows(items) else (share, high)
        part.weigh(high + (1 - high) * MARGIN)


def questions_of(lessons: TrainingData) -> list[dict[str, Any]]:
    """Items of all answers, of a caption one for each of its questions; a picture is read once, and left out where it
    cannot be read."""
    pictures: list[dict[str, Any] | None] = []
    for place in range(len(lessons)):
        try:
            pictures.append(lessons.renderer.tensors(lessons.example(place)))
        except VisGLMError:  # training itself names it
            pictures.append(None)
    items, seen = [], set()
    for number in range(NUM_WORDINGS):
        asked = copy.copy(lessons)
        asked.epoch = torch.tensor(number)
        for place, item in enumerate(pictures):
            if item is None:
                continue
            rendered, _ = asked.rendered(place)
            name = (place, *rendered.input_ids)
            if name not in seen:
                seen.add(name)
                ids, labels = torch.tensor(rendered.input_ids), torch.tensor(rendered.labels)
                items.append(item | {"input_ids": ids, "labels": labels})
    return items
