"""General examples among those of a run, against forgetting: from a file, or as the model itself answers.

What the model answers itself must not contradict what is taught: about the pictures to learn from it is not asked what
they show. Names, which are forgotten first, are asked for in pictures that are drawn here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch.utils.data import ConcatDataset, Dataset

from ..errors import DataError
from ..prompt import detect_language
from .containers import ObjectRows
from .data import TrainingData
from .formats import CAPTION_QUESTIONS, IMAGE_MARKER
from .index import build_index
from .samples import Answer

MAX_SELF_ANSWERS = 512  # general rows the model answers for itself; more are repeated
MAX_SMALL_ANSWERS = 288  # of small data, where each epoch takes others
MAX_ANSWERS_EACH = 24  # for each answer to learn: they take twelve epochs, and two pictures need not wait for 288
LANGUAGES = ("en", "zh")
# Asked about a picture to learn from: what it shows is left out.
ASIDE_QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "en": ("How many objects are there?", "What colour is it?", "What is on the left?", "Is there a cat?"),
    "zh": ("图中有几个物体？", "它是什么颜色？", "左边是什么？", "图中有猫吗？"),
}
# Asked without a picture.
SMALL_TALK: Mapping[str, tuple[str, ...]] = {
    "en": ("Hello!", "Who are you?", "What can you do?", "Thank you."),
    "zh": ("你好", "你是谁？", "你会做什么？", "谢谢。"),
}

QUESTIONS = {"named": CAPTION_QUESTIONS, "aside": ASIDE_QUESTIONS, "talk": SMALL_TALK}

Request = tuple[list[Any], str]  # pictures and a question
# What small data is mixed with, in turn. Names are forgotten first, so they are most.
KINDS = ("aside", "named", "named", "talk", "named", "named")
SIDE = 160  # of a drawn picture, in pixels
NUM_LOOKED_AT = 1000  # rows to tell what is taught from


class Rotating(Dataset):
    """So many of a larger set in each epoch, from everywhere in it, and each time others.

    Args:
        data: the set. count: examples of an epoch.
    """

    def __init__(self, data: TrainingData, count: int):
        self.data, self.count = data, count
        self.epoch = data.epoch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = index * max(len(self.data), self.count) // self.count
        item = self.data[(place + int(self.epoch)) % len(self.data)]
        return item | {"is_own": isinstance(self.data.rows, OwnAnswers)}


class OwnAnswers(ObjectRows):
    """Rows that no file of the user's holds, and that are to be told from those that do."""

    def where(self, index: int) -> str:
        return f"general answer {index}, mixed in by replay"


def add_replay(train: TrainingData, share: float, general: TrainingData) -> ConcatDataset:
    """`train` with so many of the general examples that they are `share` of all.

    Raises:
        DataError: there is no general example.
    """
    if not len(general):
        raise DataError("there is nothing to replay: the model answered no general question. Name rows by replay_data.")
    return ConcatDataset([train, Rotating(general, num_replayed(train, share))])


def num_replayed(train: TrainingData, share: float) -> int:
    """How many general examples make `share` of all, one at least."""
    return max(1, num_general(len(train), share))


def num_general(num_answers: int, share: float) -> int:
    """How many general examples beside so many answers make `share` of all."""
    return round(num_answers * share / (1 - share))


def own_answers(train: TrainingData, count: int, answer: Answer, asks_captions: bool) -> TrainingData:
    """General questions, answered by the model as it is now.

    Args:
        count: general examples of the whole run.
        asks_captions: whether to ask what training pictures show, where that is not what is taught.
    """
    if asks_captions and not teaches_captions(train):
        requests = caption_requests(train, min(count, MAX_SELF_ANSWERS))
    else:
        requests = aside_requests(train, min(count, MAX_SMALL_ANSWERS, MAX_ANSWERS_EACH * len(train)))
    located: list[tuple[list[Any], str, list[tuple[str, str]]]] = [
        # A path: a picture that cannot be read becomes an empty answer, and is left out below.
        ([train.rows.folder.locate(image) for image in images], question, [])
        for images, question in requests
    ]
    objects = OwnAnswers(
        [
            {
                "images": images,
                "messages": [
                    {"role": "user", "content": IMAGE_MARKER * len(images) + question},
                    {"role": "assistant", "content": reply},
                ],
            }
            for (images, question), reply in zip(requests, answer(located), strict=True)
            if reply.strip()
        ]
    )
    objects.folder = train.rows.folder
    index = build_index(objects)
    return TrainingData(objects, index, np.arange(len(index.rows)), train.renderer)


def teaches_captions(train: TrainingData) -> bool:
    """Whether rows to learn answer what pictures without a question are asked."""
    asked = {question for questions in CAPTION_QUESTIONS.values() for question in questions}
    places = range(0, len(train), -(-len(train) // NUM_LOOKED_AT))
    return any(turn.question in asked for place in places for turn in train.conversation(place).turns)


def caption_requests(train: TrainingData, count: int) -> list[Request]:
    """What do training pictures show?"""
    found: list[Request] = []
    for number in range(count):
        conversation = train.conversation(number * len(train) // count)
        language = detect_language(conversation.turns[0].question) if number % 2 else LANGUAGES[number // 2 % 2]
        questions = CAPTION_QUESTIONS[language]
        found.append((list(conversation.images[:1]), questions[number % len(questions)]))
    return found


def aside_requests(train: TrainingData, count: int) -> list[Request]:
    """All but what training pictures show: other things about them, what drawn pictures show, and small talk.

    Names are asked for in the language that is taught three times of four: there they are in danger.
    """
    generator = random.Random(0)
    found: list[Request] = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        conversation = train.conversation(generator.randrange(len(train)))
        images = list(conversation.images[:1])
        language = generator.choice(LANGUAGES)
        if not images or kind == "talk":
            images, kind = [], "talk"
        elif kind == "named":
            images = [draw(generator)]
            if generator.random() < 0.5:
                language = detect_language(conversation.turns[0].question)
        found.append((images, generator.choice(QUESTIONS[kind][language])))
    return found


def draw(generator: random.Random) -> Image.Image:
    """Something like an icon of nothing in particular: shapes of a few colours on a ground, often symmetrical."""
    palette = [tuple(generator.randrange(256) for _ in range(3)) for _ in range(4)]
    image = Image.new("RGB", (SIDE, SIDE), "white" if generator.random() < 0.7 else palette[0])
    canvas = ImageDraw.Draw(image)
    is_mirrored = generator.random() < 0.7
    for _ in range(generator.randint(2, 9)):
        x, y = generator.gauss(0.5, 0.18) * SIDE, generator.gauss(0.5, 0.18) * SIDE
        size = generator.uniform(0.05, 0.4) * SIDE
        corners = [
            (x + generator.uniform(-size, size), y + generator.uniform(-size, size))
            for _ in range(generator.randint(3, 6))
        ]
        colour, kind = generator.choice(palette[1:]), generator.choice(("polygon", "ellipse", "rectangle"))
        for points in (corners, [(SIDE - x, y) for x, y in corners])[: 1 + is_mirrored]:
            box = [*map(min, zip(*points, strict=True)), *map(max, zip(*points, strict=True))]
            getattr(canvas, kind)(points if kind == "polygon" else box, fill=colour)
    return image
