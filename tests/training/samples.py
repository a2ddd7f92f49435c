"""Small training sets on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "black", "orange", "purple", "brown", "pink")


def picture(number: int) -> Image.Image:
    """A disc that no other number has."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((4 + number % 7, 8, 40 + number % 11, 50), COLOURS[number % len(COLOURS)])
    return image


def write_pictures(folder: Path, count: int) -> list[str]:
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    names = [f"pictures/{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        picture(number).save(folder / name)
    return names


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def captions(folder: Path, count: int = 24) -> Path:
    """A JSONL of captions beside its pictures."""
    names = write_pictures(folder, count)
    return write_lines(
        folder / "train.jsonl",
        [
            {"image": name, "caption": f"A {COLOURS[number % len(COLOURS)]} disc, number {number}."}
            for number, name in enumerate(names)
        ],
    )
