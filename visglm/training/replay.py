"""General examples among those of a run, against forgetting: from a file, or as the model itself answers."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset

from ..errors import DataError
from ..prompt import detect_language
from .containers import ObjectRows
from .data import Index, TrainingData, build_index
from .formats import CAPTION_QUESTIONS, IMAGE_MARKER
from .samples import Answer

MAX_SELF_ANSWERS = 512  # general rows the model answers for itself; more are repeated


def add_replay(train: TrainingData, share: float, general: TrainingData) -> ConcatDataset:
    """`train` with so many of the general examples that they are `share` of all.

    Raises:
        DataError: there is no general example.
    """
    if not len(general):
        raise DataError("there is nothing to replay: the model answered no general question. Name rows by replay_data.")
    wanted = num_replayed(train, share)
    spread = Index(rows=as_array(general.row_of), turns=as_array(general.turn_of, "i"))
    places = np.arange(wanted) * len(general) // wanted if wanted < len(general) else np.arange(wanted) % len(general)
    return ConcatDataset([train, TrainingData(general.rows, spread, places, general.renderer, general.question)])


def num_replayed(train: TrainingData, share: float) -> int:
    """How many general examples make `share` of all."""
    return max(1, round(len(train) * share / (1 - share)))


def own_answers(train: TrainingData, count: int, answer: Answer) -> TrainingData:
    """General questions about training pictures, answered by the model as it is now."""
    objects = ObjectRows(answer_itself(train, min(count, MAX_SELF_ANSWERS), answer))
    objects.folder = train.rows.folder
    index = build_index(objects)
    return TrainingData(objects, index, np.arange(len(index.rows)), train.renderer)


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
        # A path: a picture that cannot be read becomes an empty answer, and is left out below.
        located = [train.rows.folder.locate(image)] if image is not None else []
        requests.append((located, question, []))
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
