"""Draw how visglm-tiny was trained: logs/*.jsonl to curves.svg.

python curves.py
"""

from __future__ import annotations

import json
from pathlib import Path

from common import log_of

from visglm.training.page import HEIGHT, WIDTH, Html, escape, line_chart

HERE = Path(__file__).parent
ROUNDS = ("first round", "second round", "third round", "fourth round")


def by_round(stage: str, key: str) -> dict[str, tuple[str, str]]:
    """A line for each round of a stage that is gone through more than once."""
    return {name: (log_of(stage, number), key) for number, name in enumerate(ROUNDS, 1)}


# Title of a chart, what its lines measure, and the lines: name → log in `logs/` and key in it.
CHARTS = (
    (
        "OpenMoji named by the ViT, which goes on beside the bridge in all rounds",
        "percent",
        {
            "whole ViT": ("pretrain_vision.jsonl", "openmoji_accuracy"),
            **by_round("pretrain_bridge", "openmoji_accuracy"),
        },
    ),
    ("OpenMoji named by the stem", "percent", {"stem": ("pretrain_stem.jsonl", "openmoji_accuracy")}),
    ("Stem: names", "nats", {"names": ("pretrain_stem.jsonl", "stem")}),
    (
        "Whole ViT",
        "nats",
        {"names": ("pretrain_vision.jsonl", "whole"), "names of cells": ("pretrain_vision.jsonl", "cells")},
    ),
    (
        "Text model: a word of an answer",
        "nats",
        {"first round": ("pretrain_text.jsonl", "loss"), "next version": ("pretrain_text_next.jsonl", "loss")},
    ),
    ("Bridge and ViT: names", "nats", by_round("pretrain_bridge", "whole")),
    ("Bridge and ViT: names told, halved", "nats", by_round("pretrain_bridge", "names")),
    ("All together: a word of an answer", "nats", by_round("train", "answers")),
    ("All together: names told, halved", "nats", by_round("train", "names")),
    (
        "Next version: a word of an answer",
        "nats",
        {
            "all but the recogniser": ("learn_both.jsonl", "answers"),
            "once more": ("learn_again.jsonl", "answers"),
            "and again": ("learn_again_2.jsonl", "answers"),
        },
    ),
    (
        "Next version: names told, halved",
        "nats",
        {
            "bridge and ViT": ("learn_bridge.jsonl", "names"),
            "all but the recogniser": ("learn_both.jsonl", "names"),
            "once more": ("learn_again.jsonl", "names"),
            "and again": ("learn_again_2.jsonl", "names"),
        },
    ),
)
SMOOTHED = 8  # points of a log are averaged: each is the loss of a single step
TITLE_HEIGHT = 30  # pixels


def curve(log: str, key: str) -> list[tuple[float, float]]:
    """Step and value, averaged over neighbours where there are many; shares in percent."""
    rows = [json.loads(line) for line in (HERE / "logs" / log).read_text("utf-8").splitlines()]
    points = [(row["step"], row[key]) for row in rows if key in row]
    if key.endswith("accuracy"):
        return [(step, 100 * share) for step, share in points]
    averaged = (points[start : start + SMOOTHED] for start in range(0, len(points), SMOOTHED // 2))
    return [tuple(sum(values) / len(values) for values in zip(*few, strict=True)) for few in averaged]


def draw_curves() -> Html:
    """All charts, one below the other, as an SVG file."""
    parts = []
    for number, (title, unit, lines) in enumerate(CHARTS):
        top = number * (HEIGHT + TITLE_HEIGHT)
        chart = line_chart({name: curve(*where) for name, where in lines.items()}, "step", unit)
        parts.append(f'<text x="4" y="{top + 20}" font-weight="bold">{escape(title)}</text>')
        parts.append(chart.replace("<svg ", f'<svg y="{top + TITLE_HEIGHT}" height="{HEIGHT}" ', 1))
    height = len(CHARTS) * (HEIGHT + TITLE_HEIGHT)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    style = '<style>text{font:12px sans-serif}</style><rect width="100%" height="100%" fill="white"/>'
    return Html(f"{head}{style}{''.join(parts)}</svg>\n")


if __name__ == "__main__":
    (HERE / "curves.svg").write_text(draw_curves(), "utf-8")
