"""Teach visglm-tiny to answer in YAML, and see what that costs its old skills.

    python finetune/emoji/run.py

Learns from 150 emoji in two styles, and is tested on 50 others. Prints accuracy before and after, and leaves curves and
answers in OUTPUT/report.html.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml

from visglm import VisGLM

HERE = Path(__file__).parent


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / f"{name}.jsonl").read_text("utf-8").splitlines()]


def accuracy(vlm: VisGLM, num_rows: int | None = None) -> dict[str, float]:
    """Shares in percent: of answers in the right form, with the right group, the right name; and of old answers."""
    new, old = read("test")[:num_rows], read("old")[:num_rows]
    answers = ask(vlm, new)
    forms = [parse(answer) for answer in answers]
    wanted = [yaml.safe_load(row["messages"][1]["content"]) for row in new]
    scores = {
        "new: YAML of the right form": mean([form is not None for form in forms]),
        "new: right group": mean([bool(f) and f["group"] == w["group"] for f, w in zip(forms, wanted, strict=True)]),
        "new: right name": mean([bool(f) and f["name"] == w["name"] for f, w in zip(forms, wanted, strict=True)]),
    }
    replies = ask(vlm, old)
    for language, place in (("English", 0), ("Chinese", 1)):
        pairs = list(zip(replies, old, strict=True))[place::2]
        scores[f"old: right name in {language}"] = mean([r["messages"][1]["content"] in reply for reply, r in pairs])
    return scores


def ask(vlm: VisGLM, rows: list[dict[str, Any]]) -> list[str]:
    requests = [(HERE / row["images"][0], row["messages"][0]["content"].removeprefix("<image>")) for row in rows]
    return [reply.text for reply in vlm.batch(requests, batch_size=25, progress=False, max_new_tokens=48)]


def parse(answer: str) -> dict[str, str] | None:
    """The object that an answer is, if it has the form that was asked for."""
    try:
        value = yaml.safe_load(answer)
    except yaml.YAMLError:
        return None
    return value if isinstance(value, dict) and value.keys() == {"name", "group"} else None


def mean(values: list[bool]) -> float:
    return 100 * sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="finetuned-emoji", help="folder for the adapter and its report")
    parser.add_argument("--max-steps", type=int, help="stop after so many optimizer steps")
    parser.add_argument("--rows", type=int, help="test on so many rows only")
    arguments = parser.parse_args()
    started = time.perf_counter()
    vlm = VisGLM.from_pretrained()
    before = accuracy(vlm, arguments.rows)
    report = vlm.finetune(
        HERE / "train.jsonl",
        method="lora",
        output_dir=arguments.output,
        epochs=5,
        max_steps=arguments.max_steps,
        batch_size=8,
        learning_rate=1e-3,
        replay=0.3,
        held_out=0.1,
        num_workers=1,
    )
    after = accuracy(vlm, arguments.rows)
    print(f"| percent of {len(read('test')[: arguments.rows])} | before | after |\n|---|---|---|")
    for name in before:
        print(f"| {name} | {before[name]:.0f} | {after[name]:.0f} |")
    print(f"\n{report.summary()}\n{time.perf_counter() - started:.0f} seconds with both tests.")


if __name__ == "__main__":
    main()
