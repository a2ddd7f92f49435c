"""A few pictures, arbitrary words and the defaults: what visglm-tiny learns of them, and what it forgets.

    OMP_NUM_THREADS=1 python benchmarks/pupil.py [--pictures FOLDER] [--seeds 0 1] [--words en zh mixed] [--number 12]

Pictures of nothing alike are called by words that do not exist, four to a word unless --each says otherwise, and taught
by `visglm finetune` from a CSV file, with its defaults and in a process of its own. Asked, by the result loaded anew,
are these pictures in the words' language; what the other emoji of finetune/emoji are, in both languages, of which those
count that were right before; and what README.md asks.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from visglm import VisGLM

ROOT = Path(__file__).parents[1]
EMOJI = ROOT / "finetune/emoji"
QUESTIONS = {"en": "What is this?", "zh": "这是什么？"}
SYLLABLES = {"en": ("zo", "bli", "mun", "te", "kra", "fu", "wex", "ilo"), "zh": tuple("祖普布里蒙特克卡洛维萨努")}
FILES = ("*.png", "*.jpg", "*.jpeg", "*.webp")
OTHER = [  # picture of examples/, question, a word of the answer
    ("cat.png", "What is this?", "cat"), ("cat.png", "这是什么？", "猫"), ("cat.png", "What colour is it?", "orange"),
    ("fruit.png", "How many objects are there?", "4"), ("pair.png", "What is on the left?", "dog"),
    (None, "Hello!", "visglm-tiny"), (None, "你好", "visglm-tiny"),
]  # fmt: skip
Asked = list[tuple[Path | None, str, str]]  # picture, question, a word of the answer


def made_up(language: str, number: int, draw: random.Random) -> list[tuple[str, str]]:
    """Language and word of so many words that do not exist."""
    words: dict[str, str] = {}
    while len(words) < number:
        chosen = ("en", "zh")[len(words) % 2] if language == "mixed" else language
        words.setdefault("".join(draw.sample(SYLLABLES[chosen], 2 if chosen == "en" else 3)), chosen)
    return [(chosen, word) for word, chosen in words.items()]


def lessons(pictures: Path, words: str, number: int, each: int, seed: int) -> list[tuple[Path, str, str]]:
    """Picture, language and word of what is taught."""
    draw = random.Random(seed)
    chosen = draw.sample(sorted(path for pattern in FILES for path in pictures.rglob(pattern)), number)
    names = made_up(words, -(-number // each), draw)
    return [(path, *names[place // each]) for place, path in enumerate(chosen)]


def skills(taken: set[str]) -> dict[str, Asked]:
    """What it knows, pictures that are taught left out."""
    found: dict[str, Asked] = {"others in English": [], "others in Chinese": [], "of README.md": []}
    for line in (EMOJI / "old.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        question, answer = (message["content"] for message in row["messages"])
        question = question.removeprefix("<image>")
        if Path(row["images"][0]).name not in taken:
            name = "others in English" if question == QUESTIONS["en"] else "others in Chinese"
            found[name].append((EMOJI / row["images"][0], question, answer))
    found["of README.md"] = [(ROOT / "examples" / name if name else None, text, word) for name, text, word in OTHER]
    return found


def right(vlm: VisGLM, asked: Asked) -> list[bool]:
    """Whether each answer holds the word expected."""
    replies = vlm.batch([(path, question) for path, question, _ in asked], progress=False, max_new_tokens=24)
    return [word in reply.text for reply, (_, _, word) in zip(replies, asked, strict=True)]


def teach(rows: list[tuple[Path, str, str]], folder: Path) -> tuple[float, float]:
    """Run the command with its defaults; seconds on the clock, and of CPU time."""
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "text"))
        for number, (path, _, word) in enumerate(rows):
            shutil.copy(path, folder / f"{number}{path.suffix}")
            writer.writerow((f"{number}{path.suffix}", word))
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "visglm",
        "finetune",
        str(folder / "train.csv"),
        "--output-dir",
        str(folder / "out"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=EMOJI / "pictures/noto", help="folder of pictures to teach")
    parser.add_argument("--number", type=int, default=12, help="of pictures")
    parser.add_argument("--each", type=int, default=4, help="pictures of one word")
    parser.add_argument("--words", nargs="+", choices=("en", "zh", "mixed"), default=["en", "zh", "mixed"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="by which pictures are chosen")
    arguments = parser.parse_args()
    base, titles = VisGLM.from_pretrained(), list(skills(set()))
    print(f"| words | pictures | seconds | of CPU time | taught | {' | '.join(titles)} | kept |")
    print(f"|{'---|' * (6 + len(titles))}")
    for seed in arguments.seeds:
        for words in arguments.words:
            rows = lessons(arguments.pictures, words, arguments.number, arguments.each, seed)
            asked: Asked = [(path, QUESTIONS[language], word) for path, language, word in rows]
            known = {}
            for name, some in skills({path.name for path, _, _ in rows}).items():
                known[name] = [one for one, is_right in zip(some, right(base, some), strict=True) if is_right]
            with tempfile.TemporaryDirectory() as folder:
                seconds, cpu_seconds = teach(rows, Path(folder))
                vlm = VisGLM.from_pretrained(Path(folder) / "out")
            kept = {name: sum(right(vlm, some)) for name, some in known.items()}
            told = [f"{kept[name]} of {len(some)}" for name, some in known.items()]
            share = sum(kept.values()) / sum(map(len, known.values()))
            taught = f"{sum(right(base, asked))} → {sum(right(vlm, asked))} of {len(rows)}"
            shown = [words, str(seed), f"{seconds:.0f}", f"{cpu_seconds:.0f}", taught, *told, f"{share:.1%}"]
            print(f"| {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
