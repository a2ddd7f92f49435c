"""How long a newcomer waits: whole processes, beside a process that does nothing but `import torch`.

    OMP_NUM_THREADS=1 python benchmarks/first_contact.py --repeats 5
    python benchmarks/first_contact.py --load FOLDER

All commands run in turn, so that a machine that others use is as busy for one as for the next; ratios are of the
medians. `--load` times `VisGLM.from_pretrained(FOLDER)` in a process of its own, imports not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PICTURE = Path(__file__).parents[1] / "examples" / "cat.png"
YARDSTICK = "import torch"
VISGLM = ["-m", "visglm"]
COMMANDS: dict[str, list[str]] = {
    YARDSTICK: ["-c", "import torch"],
    "visglm --help": [*VISGLM, "--help"],
    "visglm --version": [*VISGLM, "--version"],
    "visglm chat cat.png -q": [*VISGLM, "chat", str(PICTURE), "-q", "What is this?"],
}
LOAD = """
import resource, sys, time
from visglm import VisGLM
wall, cpu = time.perf_counter(), time.process_time()
VisGLM.from_pretrained(sys.argv[1], device="cpu")
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f"loaded in {wall:.1f} s, {cpu:.1f} s of CPU time; peak of the process {peak:.2f} GiB")
"""


def run(words: list[str]) -> tuple[float, float]:
    """CPU and wall-clock seconds of a process."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *words], capture_output=True, check=False)
    wall, after = time.perf_counter() - started, os.times()
    return sum(after[2:4]) - sum(before[2:4]), wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--load", metavar="FOLDER", help="time loading this checkpoint, and nothing else")
    arguments = parser.parse_args()
    if arguments.load:
        for _ in range(arguments.repeats):
            subprocess.run([sys.executable, "-c", LOAD, arguments.load], check=True)
        return
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.repeats):
        for name, words in COMMANDS.items():
            found[name].append(run(words))
    print(f"| process | CPU | wall | CPU, beside `{YARDSTICK}` |\n|---|---|---|---|")
    medians = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
    for name, (cpu, wall) in medians.items():
        print(f"| {name} | {cpu:.2f} s | {wall:.2f} s | {cpu / medians[YARDSTICK][0]:.2f} × |")


if __name__ == "__main__":
    main()
