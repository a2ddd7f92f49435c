"""Photographs that a builder names a folder of, and those among Tux Paint's stamps.

The folder has a `photos.tsv`: file, set, licence, class_en, class_zh (names after `|` are right, too), split, group,
colour (where the kind fixes it), source_label and source_file.

Held out are whole kinds of source, never single rows: photographs of one series look alike, and a model that has seen
the others of it has seen them all.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from concepts import Concept, read_rows
from PIL import Image

STAMPS = "usr/share/tuxpaint/stamps"
# First words of the sets whose kinds are in no other source: of these the validation split is held out.
ONLY_SOURCES = ("Azure",)
# Of GroceryStore, a variety of every kind that has several, and six kinds that ImageNet has, too.
HELD_OUT_LABELS = {
    "Pink-Lady", "Vine-Tomato", "Anjou", "Galia-Melon", "Garant-Ecological-Standard-Milk", "Valio-Vanilla-Yoghurt",
    "Tropicana-Apple-Juice", "Orange-Bell-Pepper", "Floury-Potato", "Alpro-Shelf-Soy-Milk", "Alpro-Vanilla-Soyghurt",
    "Arla-Sour-Cream", "Banana", "Lemon", "Zucchini", "Cabbage", "Pineapple", "Pomegranate",
}  # fmt: skip
SHOWN_SIDE, GAP = 224, 0.03


@dataclass(frozen=True)
class Photograph:
    """A photograph of one thing.

    Args:
        path: where it is. set: whose it is, one word. english, chinese: right names, the best one first.
        group: as in `concepts.GROUPS`. colour: "" where the kind has none of its own.
        held_out: never to be trained on. label: what its source calls the kind.
    """

    path: Path
    set: str
    english: tuple[str, ...]
    chinese: tuple[str, ...]
    group: str
    colour: str
    held_out: bool
    label: str

    def open(self) -> Image.Image:
        """RGB, what is cut out on white."""
        picture = Image.open(self.path)
        if picture.mode in ("RGBA", "LA", "P"):
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        return picture.convert("RGB")


def read_folder(folder: Path) -> list[Photograph]:
    """All photographs of a folder.

    Raises:
        SystemExit: it has no `photos.tsv`.
    """
    table = folder / "photos.tsv"
    if not table.is_file():
        raise SystemExit(f"{folder} has no photos.tsv: name a folder of photographs with PHOTOGRAPHS=FOLDER.")
    with table.open(encoding="utf-8") as file:
        return [
            Photograph(
                folder / row["file"],
                row["set"].split()[0],
                tuple(row["class_en"].split("|")),
                tuple(row["class_zh"].split("|")),
                row["group"],
                row["colour"],
                is_held_out(row["set"], row["source_label"], row["split"]),
                row["source_label"],
            )
            for row in csv.DictReader(file, delimiter="\t")
        ]


def is_held_out(set_name: str, label: str, split: str) -> bool:
    """Whether a photograph is only looked at."""
    return label in HELD_OUT_LABELS or (set_name.startswith(ONLY_SOURCES) and split == "val")


def read_stamps(folder: Path, concepts: Sequence[Concept]) -> list[Photograph]:
    """Tux Paint's photographs, cut out; all of them are held out."""
    by_name = {concept.english[0]: concept for concept in concepts}
    found = []
    for row in read_rows("photographs.tsv"):
        concept = by_name[row["english"]]
        path, names = folder / STAMPS / row["path"], (concept.english, concept.chinese)
        found.append(Photograph(path, "stamps", *names, concept.group, "", True, row["english"]))
    return found


def held_out(photographs: Sequence[Photograph], most: int, seed: int = 0) -> list[Photograph]:
    """What is held out, at most so many of a set, of its labels alike many."""
    draw = random.Random(seed)
    by_set: dict[str, dict[str, list[Photograph]]] = {}
    for photograph in photographs:
        if photograph.held_out:
            by_set.setdefault(photograph.set, {}).setdefault(photograph.english[0], []).append(photograph)
    chosen = []
    for by_name in by_set.values():
        queues = [draw.sample(found, len(found)) for _, found in sorted(by_name.items())]
        taken = [queue[number] for number in range(max(map(len, queues))) for queue in queues if number < len(queue)]
        chosen += taken[:most]
    return chosen


def collage(pictures: Sequence[Image.Image], draw: random.Random) -> tuple[Image.Image, list[str]]:
    """One to four photographs side by side, above one another, or in corners, and where each is in words."""
    number, side = len(pictures), SHOWN_SIDE * 2
    if number == 1:
        return pictures[0], [""]
    if number == 2 and draw.random() < 0.5:
        cells, names = [(0.0, 0.25), (0.5, 0.25)], ["left", "right"]
    elif number == 2:
        cells, names = [(0.25, 0.0), (0.25, 0.5)], ["top", "bottom"]
    else:
        cells = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)]
        names = ["top left", "top right", "bottom left", "bottom right"]
    kept = sorted(draw.sample(range(len(cells)), number))
    sheet = Image.new("RGB", (side, side), draw.choice(("white", "white", "#dddddd", "black")))
    room = round(side * (0.5 - GAP))
    for picture, (left, top) in zip(pictures, (cells[index] for index in kept), strict=True):
        shown = picture.copy()
        shown = shown.resize(
            (max(1, round(shown.width * room / max(shown.size))), max(1, round(shown.height * room / max(shown.size))))
        )
        x = round(side * (left + GAP / 2)) + (room - shown.width) // 2
        y = round(side * (top + GAP / 2)) + (room - shown.height) // 2
        sheet.paste(shown, (x, y))
    return sheet, [names[index] for index in kept]
