"""A few pictures, arbitrary words and the defaults: what visglm-tiny learns of them, and what it forgets.

    OMP_NUM_THREADS=1 python benchmarks/pupil.py [--epochs 40] [--seeds 0 1]

Twelve emoji of nothing alike are called by three words, four to a word. Asked are the twelve, right afterwards, in the
words' language; what all other emoji of finetune/emoji are, in both languages; and what README.md asks.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from visglm import VisGLM

ROOT = Path(__file__).parents[1]
EMOJI = ROOT / "finetune/emoji"
LANGUAGES = {"en": "What is this?", "zh": "这是什么？"}
WORDS = {"en": ("zorp", "blik", "munte"), "zh": ("祖普", "布里克", "蒙特")}
OTHER = [  # picture of examples/, question, a word of the answer
    ("cat.png", "What is this?", "cat"), ("cat.png", "这是什么？", "猫"), ("cat.png", "What colour is it?", "orange"),
    ("fruit.png", "How many objects are there?", "4"), ("pair.png", "What is on the left?", "dog"),
    (None, "Hello!", "visglm-tiny"), (None, "你好", "visglm-tiny"),
]  # fmt: skip


def lessons(language: str, seed: int) -> list[dict[str, str]]:
    pictures = random.Random(seed).sample(sorted((EMOJI / "pictures/noto").glob("*.png")), 12)
    return [{"image": str(path), "caption": WORDS[language][place // 4]} for place, path in enumerate(pictures)]


def share(vlm: VisGLM, asked: list[tuple[Path | None, str, str]]) -> str:
    """How many answers hold the word expected, of how many."""
    replies = vlm.batch([(path, question) for path, question, _ in asked], progress=False, max_new_tokens=24)
    right = sum(word in reply.text for reply, (_, _, word) in zip(replies, asked, strict=True))
    return f"{right} of {len(asked)}"


def measure(vlm: VisGLM, rows: list[dict[str, str]], language: str) -> list[str]:
    taken = {Path(row["image"]).name for row in rows}
    old: dict[str, list[tuple[Path | None, str, str]]] = {name: [] for name in LANGUAGES}
    for line in (EMOJI / "old.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        question, answer = (message["content"] for message in row["messages"])
        question = question.removeprefix("<image>")
        if Path(row["images"][0]).name not in taken:
            name = next(name for name, text in LANGUAGES.items() if text == question)
            old[name].append((EMOJI / row["images"][0], question, answer))
    taught = [(Path(row["image"]), LANGUAGES[language], row["caption"]) for row in rows]
    other = [(ROOT / "examples" / name if name else None, question, word) for name, question, word in OTHER]
    return [share(vlm, asked) for asked in (taught, old["en"], old["zh"], other)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="by which pictures are chosen")
    arguments = parser.parse_args()
    titles = ("taught", "others in English", "others in Chinese", "of README.md")
    print(f"| words | pictures | seconds | | {' | '.join(titles)} |\n|{'---|' * (4 + len(titles))}")
    for seed in arguments.seeds:
        for language in LANGUAGES:
            rows, vlm = lessons(language, seed), VisGLM.from_pretrained()
            print(f"| {language} | {seed} | | before | {' | '.join(measure(vlm, rows, language))} |", flush=True)
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                vlm.finetune(rows, output_dir=Path(folder) / "result", epochs=arguments.epochs)
            seconds = time.perf_counter() - started
            after = " | ".join(measure(vlm, rows, language))
            print(f"| {language} | {seed} | {seconds:.0f} | after | {after} |", flush=True)


if __name__ == "__main__":
    main()
