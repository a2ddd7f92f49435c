"""The player without torch beside torch's engine: start, memory, tokens a second, and whether they say the same.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/light.py
    python benchmarks/light.py --folder EXPORTED --prompts 1000

Each side runs in a process of its own; what is timed is timed in turns of one run, and the ratios are medians over the
rounds. `taskset` gives ONNX Runtime one core, as OMP_NUM_THREADS does torch.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from typing import Any

from PIL import Image

QUESTIONS = ("这是什么？", "What is it?", "描述这张图片。", "How many are there?", "它在哪里？", "What colour is it?")
NUM_TOKENS = 48
KINDS = ("light", "torch")


def load(kind: str, folder: str | None) -> Any:
    """The model, and in how many seconds; imports count by themselves."""
    started = time.perf_counter()
    if kind == "light":
        from visglm.light import VisGLM

        imported = time.perf_counter()
        vlm: Any = VisGLM.from_pretrained(folder)
    else:
        from visglm import VisGLM as Torch

        imported = time.perf_counter()
        vlm = Torch.from_pretrained(folder, device="cpu")
    return vlm, imported - started, time.perf_counter() - imported


def drawn(numbers: random.Random) -> Image.Image:
    """A coloured box on a coloured ground."""
    colours = [tuple(numbers.choices(range(256), k=3)) for _ in range(2)]
    picture = Image.new("RGB", (numbers.randint(60, 300), numbers.randint(60, 300)), colours[0])
    picture.paste(colours[1], (10, 10, numbers.randint(20, 60), numbers.randint(20, 60)))
    return picture


def resident() -> float:
    """Megabytes of this process at most, and now."""
    with open("/proc/self/status", encoding="utf-8") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmHWM"].split()[0]) / 1e3


def worker(kind: str, folder: str | None) -> None:
    """Answer what is asked on standard input, a line of JSON each."""
    vlm, imports, start = load(kind, folder)
    first = time.perf_counter()
    vlm.chat(drawn(random.Random(0)), QUESTIONS[0])
    first = time.perf_counter() - first
    print(json.dumps({"imports": imports, "start": start, "first": first, "memory": resident()}), flush=True)
    histories: dict[str, Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        pictures = [drawn(random.Random(seed)) for seed in asked["pictures"]]
        started = time.perf_counter()
        reply = vlm.chat(pictures, asked["question"], histories.get(asked["talk"]), **asked["settings"])
        seconds = time.perf_counter() - started
        histories = {asked["talk"]: reply.history}
        timings = reply.timings
        told = {"ids": reply.ids, "seconds": seconds, "encode": timings.encode, "decode": timings.total}
        print(json.dumps(told | {"first_token": timings.first_token}), flush=True)


class Side:
    """A process that answers."""

    def __init__(self, kind: str, folder: str | None):
        words = [sys.executable, __file__, "--worker", kind, *(["--folder", folder] if folder else [])]
        if kind == "light":  # as its command is started, which does not wait for torch
            code = f"import sys; sys.orig_argv[1:2] = ['visglm-light']; sys.argv = {words[1:]!r}; "
            words = [sys.executable, "-c", code + f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.started: dict[str, float] = json.loads(self.process.stdout.readline())  # type: ignore[union-attr]

    def ask(self, talk: str, pictures: list[int], question: str, **settings: Any) -> dict[str, Any]:
        asked = {"talk": talk, "pictures": pictures, "question": question, "settings": settings}
        self.process.stdin.write(json.dumps(asked) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return json.loads(self.process.stdout.readline())  # type: ignore[union-attr]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", help="what `visglm export` wrote (default: the embedded visglm-tiny)")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=0, help="greedy answers to compare")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.folder)
        return
    sides = {kind: Side(kind, arguments.folder) for kind in KINDS}
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    looks: dict[str, list[float]] = {kind: [] for kind in KINDS}
    length = {"max_new_tokens": NUM_TOKENS, "min_new_tokens": NUM_TOKENS}
    for number in range(arguments.rounds):
        for kind, side in sides.items():
            told = side.ask(f"rate {number}", [number], QUESTIONS[number % len(QUESTIONS)], **length)
            rates[kind].append((NUM_TOKENS - 1) / (told["decode"] - told["first_token"]))
            looks[kind].append(told["encode"] + told["first_token"])
    print("| | light | torch | light beside torch |\n|---|---|---|---|")
    for name, unit in (("imports", "s"), ("start", "s"), ("first", "s"), ("memory", "MB")):
        one, other = (sides[kind].started[name] for kind in KINDS)
        digits = 0 if unit == "MB" else 2
        print(f"| {name} | {one:.{digits}f} {unit} | {other:.{digits}f} {unit} | {one / other:.2f} × |")
    for name, found in (("tokens a second", rates), ("picture and first token, s", looks)):
        one, other = (statistics.median(found[kind]) for kind in KINDS)
        ratio = statistics.median(a / b for a, b in zip(found["light"], found["torch"], strict=True))
        print(f"| {name} | {one:.3g} | {other:.3g} | {ratio:.2f} × |")
    numbers, same = random.Random(1), 0
    for number in range(arguments.prompts):
        pictures = [numbers.randrange(10**6) for _ in range(numbers.choice((0, 1, 1, 2)))]
        talk = f"same {number - number % 3}"  # three turns to a conversation
        question = numbers.choice(QUESTIONS)
        one, other = (side.ask(talk, pictures, question, max_new_tokens=24)["ids"] for side in sides.values())
        same += one == other
    if arguments.prompts:
        print(f"\nThe same tokens in {same} of {arguments.prompts} greedy answers.")
    for side in sides.values():
        side.process.communicate()


if __name__ == "__main__":
    main()
