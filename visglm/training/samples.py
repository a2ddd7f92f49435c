"""Held-out questions that a run answers before and after: what the report compares."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import DataError, ImageError
from ..prompt import detect_language
from ..reply import Reply
from .data import TrainingData
from .metrics import Answer as Answered
from .metrics import Scores
from .report import Sample

logger = logging.getLogger(__name__)

# (pictures, question, [(earlier question, answer), …]) → an answer for each, greedy.
Answer = Callable[[Sequence[tuple[list[Any], str, list[tuple[str, str]]]]], list[str]]

ANSWER_TOKENS = 128  # of an answer that is compared with a caption
NUM_METRIC_ROWS = 100  # held-out rows that are answered before and after


def answer_briefly(answerer: Callable[..., Sequence[Any]], requests: Sequence[Sequence[Any]]) -> list[str]:
    """Short greedy answers; an empty one where a question does not fit."""
    replies = answerer(requests, on_error="return", progress=False, max_new_tokens=ANSWER_TOKENS)
    return [reply.text if isinstance(reply, Reply) else "" for reply in replies]


def sample_rows(held_out: TrainingData | None, answer: Answer) -> list[Sample]:
    """Held-out rows and what the model says before it has learnt anything.

    Raises:
        DataError: not one picture of theirs can be read.
    """
    if held_out is None:
        return []
    step = max(1, len(held_out) // NUM_METRIC_ROWS)
    samples: list[Sample] = []
    problems: list[str] = []
    for place in range(0, len(held_out), step):
        conversation, turn = held_out.conversation(place), int(held_out.turn_of[place])
        if turn or not all(part.num_images == 0 for part in conversation.turns[1:]):
            continue  # answers to first questions compare most plainly
        first = conversation.turns[0]
        try:
            images = [
                held_out.renderer.open(image, held_out.rows.folder) for image in conversation.images[: first.num_images]
            ]
        except ImageError as error:
            problems.append(f"{held_out.where(place)}: {error}")
            continue
        samples.append(Sample(held_out.where(place), first.question, first.answer or "", "", None, images))
    if problems and not samples:
        shown = "".join(f"\n  {problem}" for problem in problems[:10])
        raise DataError(f"not one of {len(problems)} held-out pictures can be read:{shown}")
    for problem in problems:
        logger.warning("left out of the held-out rows: %s", problem)
    for sample, before in zip(samples, answer_samples(samples, answer), strict=True):
        sample.before = before
    return samples


def answer_samples(samples: Sequence[Sample], answer: Answer) -> list[str]:
    return answer([(sample.images, sample.question, []) for sample in samples]) if samples else []


def score(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Every metric of the answers before and after, as `Scores.values` gives them."""
    answered = [sample for sample in samples if sample.after is not None]
    if not answered:
        return {}

    def values(predictions: list[str]) -> dict[str, Any]:
        answers = [
            Answered(text, (sample.expected,), detect_language(sample.question))
            for text, sample in zip(predictions, answered, strict=True)
        ]
        return Scores(answers, range(len(answers))).values(range(len(answers)))

    return {
        "before": values([sample.before for sample in answered]),
        "after": values([str(sample.after) for sample in answered]),
    }


def choose(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Some of them, from everywhere: rows beside each other are often of one kind."""
    return [samples[place * len(samples) // count] for place in range(count)] if count < len(samples) else [*samples]
