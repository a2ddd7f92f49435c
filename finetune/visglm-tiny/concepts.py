"""What visglm-tiny knows of: the rows of `names.tsv`, written by hand over Unicode's names."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

GROUPS = {
    "animal": ("动物", ("animal-",)),
    "plant": ("植物", ("plant-",)),
    "food": ("食物", ("food-",)),
    "drink": ("饮料", ("drink",)),
    "vehicle": ("交通工具", ("transport-",)),
    "place": ("地点", ("place-", "hotel")),
    "weather": ("天气", ("sky-weather",)),
    "clothing": ("衣物", ("clothing",)),
    "musical instrument": ("乐器", ("musical-instrument", "music", "sound")),
    "sport or game": ("运动或游戏", ("sport", "game", "award-medal", "event", "arts-crafts")),
    "body part or figure": ("身体部位或形象", ("body", "figure")),
    "tool": ("工具", ("tool", "science", "medical", "lock")),
    "everyday object": ("日常物品", ("",)),  # the rest
}


@dataclass(frozen=True)
class Concept:
    """One thing the world knows.

    Args:
        hexcodes: its emoji, without FE0F; twins are merged into one concept.
        english, chinese: accepted names, the main one first.
        group: a key of `GROUPS`.
    """

    hexcodes: tuple[str, ...]
    english: tuple[str, ...]
    chinese: tuple[str, ...]
    group: str

    def names(self, language: str) -> tuple[str, ...]:
        return self.english if language == "en" else self.chinese


def load_concepts() -> list[Concept]:
    """Concepts in file order."""
    return [
        Concept(
            tuple(row["hexcodes"].split()),
            tuple(row["english"].split("|")),
            tuple(row["chinese"].split("|")),
            next(group for group, (_, starts) in GROUPS.items() if row["subgroup"].startswith(starts)),
        )
        for row in read_rows("names.tsv")
    ]


def load_photographed() -> list[tuple[Concept, tuple[str, ...]]]:
    """What photographs show, with the labels of ImageNet's classes of each name; none where it lacks the thing."""
    return [
        (
            Concept((), tuple(row["english"].split("|")), tuple(row["chinese"].split("|")), row["group"]),
            tuple(row["classes"].split()),
        )
        for row in read_rows("photo_names.tsv")
    ]


def load_all_concepts() -> list[Concept]:
    """What is drawn, in the order of `load_concepts`, then what is only met in photographs."""
    drawn = load_concepts()
    known = {concept.english[0] for concept in drawn}
    return drawn + [concept for concept, _ in load_photographed() if concept.english[0] not in known]


def load_unseen() -> list[Concept]:
    """Objects that no picture of was ever trained on; of these the group is asked, never the name."""
    return [Concept((), (row["icon"],), (row["icon"],), row["group"]) for row in read_rows("unseen.tsv")]


def read_phrasings(name: str) -> dict[str, dict[str, list[str]]]:
    """What is asked, by kind and language, from a table in this folder."""
    phrasings: dict[str, dict[str, list[str]]] = {}
    for row in read_rows(name):
        phrasings.setdefault(row["kind"], {}).setdefault(row["language"], []).append(row["question"])
    return phrasings


def read_rows(name: str) -> list[dict[str, str]]:
    """Rows of a table in this folder."""
    with open(Path(__file__).with_name(name), encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))
