"""How long the embedded model takes to load and to answer, and the command line to show its help.

    python benchmarks/tiny.py

Every figure stands beside a yardstick of the same run, so that runs on different or busy machines compare: time is
CPU time of this process unless it says otherwise. A fresh interpreter does each import, from a warm disk.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOAD = """
import time
start = time.process_time(), time.perf_counter()
def lap():
    global start
    now = time.process_time(), time.perf_counter()
    print(now[0] - start[0], now[1] - start[1])
    start = time.process_time(), time.perf_counter()
import torch
lap()
import transformers.modeling_utils, transformers.processing_utils, timm
lap()
from visglm import VisGLM
VisGLM
lap()
vlm = VisGLM.from_pretrained(device="cpu")
lap()
"""
STEPS = ("import torch", "import transformers and timm", "import visglm", "VisGLM.from_pretrained()")
QUESTIONS = ("What is this?", "这是什么？", "How many objects are there?", "图中有猫吗？", "What colour is it?")


def time_loading(repeats: int) -> dict[str, tuple[float, float]]:
    """Median CPU and wall-clock seconds of each step."""
    runs = []
    for _ in range(repeats + 1):
        result = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
        runs.append([tuple(map(float, line.split())) for line in result.stdout.splitlines()])
    runs = runs[1:]  # the first one warms the disk
    return {
        step: tuple(statistics.median(run[index][clock] for run in runs) for clock in (0, 1))  # type: ignore[misc]
        for index, step in enumerate(STEPS)
    }


def time_command(arguments: list[str], repeats: int) -> float:
    """Median wall-clock seconds of a process."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def time_answers(repeats: int) -> None:
    from visglm import VisGLM

    vlm = VisGLM.from_pretrained(device="cpu")
    picture = ROOT / "examples" / "cat.png"
    vlm.chat(picture, QUESTIONS[0])
    print("\n| question | picture to tokens | first token | whole answer, wall | CPU | tokens |")
    print("|---|---|---|---|---|---|")
    for question in QUESTIONS:
        replies, seconds, cpu = [], [], []
        for _ in range(repeats):
            started = time.perf_counter(), time.process_time()
            replies.append(vlm.chat(picture, question))
            seconds.append(time.perf_counter() - started[0])
            cpu.append(time.process_time() - started[1])
        encode = statistics.median(reply.timings.encode for reply in replies)
        first = statistics.median(reply.timings.first_token for reply in replies)
        whole = f"{statistics.median(seconds):.3f} s | {statistics.median(cpu):.3f} s"
        print(f"| {question} | {encode:.3f} s | {first:.3f} s | {whole} | {replies[0].usage.completion_tokens} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats

    steps = time_loading(repeats)
    yardstick = steps["import torch"][0]
    print("| step | CPU | wall | CPU, beside `import torch` |\n|---|---|---|---|")
    for step, (cpu, wall) in steps.items():
        print(f"| {step} | {cpu:.2f} s | {wall:.2f} s | {cpu / yardstick:.2f} × |")
    bare, shown = time_command(["-c", "pass"], repeats), time_command(["-m", "visglm", "--help"], repeats)
    print(f"| visglm --help (a process) | | {shown:.2f} s | {shown / bare:.1f} × an empty Python process |")
    time_answers(repeats)


if __name__ == "__main__":
    main()
