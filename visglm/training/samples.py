"""Questions that a run answers before and after, held out and taught: what the report compares."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

from ..errors import DataError, ImageError
from ..prompt import detect_language
from ..reply import Reply
from .data import TrainingData
from .metrics import Answer as Answered
from .metrics import Scores, contains
from .report import Sample

logger = logging.getLogger(__name__)

# (pictures, question, [(earlier question, answer), …]) → an answer for each, greedy.
Answer = Callable[[Sequence[tuple[list[Any], str, list[tuple[str, str]]]]], list[str]]

FEWEST_HELD_OUT = 10  # answers by which to tell anything
ANSWER_TOKENS = 128  # of an answer that is compared with a caption
NUM_METRIC_ROWS = 100  # held-out rows that are answered before and after, about


def answer_briefly(
    answerer: Callable[..., Sequence[Any]], requests: Sequence[Sequence[Any]], batch_size: int
) -> list[str]:
    """Short greedy answers; an empty one where a question does not fit.

    Args:
        batch_size: questions that share a pass through the model: no more than examples do, or memory that training
            was made to fit in would not do for its answers.
    """
    options = {"batch_size": batch_size, "on_error": "return", "progress": False, "max_new_tokens": ANSWER_TOKENS}
    options["max_thinking_tokens"] = 0  # as rows answer, and there is no room for more
    replies = answerer(requests, **options)
    return [reply.text if isinstance(reply, Reply) else "" for reply in replies]


def sample_held_out(held_out: TrainingData, answer: Answer) -> list[Sample]:
    """Held-out rows and what the model says before it has learnt anything.

    Raises:
        DataError: not one picture of theirs can be read.
    """
    samples, problems = read_samples(held_out, NUM_METRIC_ROWS)
    if problems and not samples:
        shown = "".join(f"\n  {problem}" for problem in problems[:10])
        raise DataError(f"not one of {len(problems)} held-out pictures can be read:{shown}")
    for problem in problems:
        logger.warning("left out of the held-out rows: %s", problem)
    return with_answers(samples, answer)


def sample_taught(train: TrainingData, answer: Answer, count: int) -> list[Sample]:
    """So many rows to learn and what the model says before; training itself will name those that cannot be read."""
    return with_answers(choose(read_samples(train, count)[0], count), answer) if count else []


def read_samples(data: TrainingData, count: int) -> tuple[list[Sample], list[str]]:
    """Rows from everywhere, at least `count` where there are as many; and what could not be read of them."""
    samples: list[Sample] = []
    problems: list[str] = []
    for place in range(0, len(data), max(1, len(data) // count)):
        conversation, turn = data.conversation(place), int(data.turn_of[place])
        if turn or not all(part.num_images == 0 for part in conversation.turns[1:]):
            continue  # answers to first questions compare most plainly
        first = conversation.turns[0]
        shown = conversation.images[: first.num_images]
        try:
            images = [data.renderer.open(image, data.rows.folder) for image in shown]
        except ImageError as error:
            problems.append(f"{data.where(place)}: {error}")
            continue
        paths = [str(data.rows.folder.locate(image)) for image in shown if isinstance(image, str | PathLike)]
        samples.append(Sample(data.where(place), first.question, first.answer or "", "", None, images, paths))
    return samples, problems


def with_answers(samples: list[Sample], answer: Answer) -> list[Sample]:
    """The same with what the model says now as the answer before."""
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


def judge(samples: Sequence[Sample], taught: Sequence[Sample], counts: Mapping[str, Any], settings: Any) -> list[str]:
    """What the answers before and after say, in sentences: whether it has learnt, and whether that can be told.

    Args:
        counts: of the plan. settings: of the run.
    """
    said: list[str] = []
    asked = [sample for sample in (*samples, *taught) if sample.after is not None]
    if asked and all(sample.after == sample.before for sample in asked):
        said.append(
            f"Not one of {len(asked)} answers has changed: nothing was learnt that shows. Train longer (epochs is "
            f"{settings.epochs:g}), or at a higher learning_rate."
        )
    elif again := [sample for sample in taught if sample.after is not None]:
        before, after = (
            sum(contains(text, sample.expected) for sample, text in zip(again, texts, strict=True))
            for texts in ([sample.before for sample in again], [str(sample.after) for sample in again])
        )
        longer = f" Train longer: epochs is {settings.epochs:g}." if after <= len(again) / 2 else ""
        said.append(
            f"Of {len(again)} training rows asked again, {after:.0f} are answered as taught ({before:.0f} before)."
            + longer
        )
    num_held_out = counts["answers_held_out"]
    if num_held_out < FEWEST_HELD_OUT:
        kept = f"{num_held_out} answers were" if num_held_out else "No answer was"
        more = "Name rows by eval_data, or keep more apart by held_out, such as 0.2"
        said.append(f"{kept} kept apart, too few to tell how it answers about other pictures. {more}.")
    return said
