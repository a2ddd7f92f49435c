"""Questions about pictures, in both languages, with several pictures and turns: asked of torch and of the player."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTIONS = (
    *(
        "描述这张图片。",
        "图里有什么？",
        "这是什么颜色的？",
        "有几个？",
        "它在哪里？",
        "左边是什么？",
        "你好",
        "这是猫吗？",
    ),
    *(
        "What is it?",
        "Describe the picture.",
        "How many are there?",
        "What colour is it?",
        "Where is it?",
        "Is it big?",
    ),
    *("What is on the left?", "左边是什么？", "Is it big?"),
    *("第一张图片里有什么？", "Which one is red, 😀 or 🐱?", "用一句话说说\n你看到了什么"),
)
SHAPES = ("ellipse", "rectangle")


class Turn(NamedTuple):
    pictures: list[Any]
    question: str


def drawn(random_numbers: random.Random) -> Image.Image:
    """A few coloured shapes on a coloured ground, of any size and proportions."""
    width, height = random_numbers.randint(40, 400), random_numbers.randint(40, 400)
    picture = Image.new("RGB", (width, height), tuple(random_numbers.choices(range(256), k=3)))
    brush = ImageDraw.Draw(picture)
    for _ in range(random_numbers.randint(1, 4)):
        left, top = random_numbers.randrange(width), random_numbers.randrange(height)
        box = left, top, left + random_numbers.randint(5, 150), top + random_numbers.randint(5, 150)
        getattr(brush, random_numbers.choice(SHAPES))(box, fill=tuple(random_numbers.choices(range(256), k=3)))
    return picture


def talks(seed: int = 0) -> Iterator[list[Turn]]:
    """Conversations without end: mostly of one turn with one picture, some with two or none, some of three turns."""
    random_numbers = random.Random(seed)
    known = [EXAMPLES / f"{name}.png" for name in ("cat", "fruit", "pair")]
    while True:
        talk = []
        for number in range(random_numbers.choice((1, 1, 1, 2, 3))):
            count = random_numbers.choice((0, 1, 1, 1, 2)) if number == 0 else random_numbers.choice((0, 0, 0, 1))
            pictures = [
                random_numbers.choice(known) if random_numbers.random() < 0.3 else drawn(random_numbers)
                for _ in range(count)
            ]
            talk.append(Turn(pictures, random_numbers.choice(QUESTIONS)))
        yield talk


def compare(one: Any, other: Any, count: int, seed: int = 0, **settings: Any) -> list[str]:
    """Where the greedy answers of two models to `count` prompts are not the same, one line each."""
    different, asked = [], 0
    for talk in talks(seed):
        histories = [None, None]
        for turn in talk:
            if asked == count:
                return different
            replies = [
                vlm.chat(turn.pictures, turn.question, history, max_new_tokens=24, **settings)
                for vlm, history in zip((one, other), histories, strict=True)
            ]
            asked += 1
            if (replies[0].ids, replies[0].text) != (replies[1].ids, replies[1].text):
                different.append(f"{asked}: {turn.question!r}: {replies[0].text!r} and {replies[1].text!r}")
                break
            histories = [reply.history for reply in replies]
    return different
