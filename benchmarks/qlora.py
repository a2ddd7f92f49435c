"""QLoRA of a model of full size: memory before, while and after it trains, seconds per step, and what was expected.

    visglm new /tmp/full --preset visualglm-6b --random --quantize int4
    OMP_NUM_THREADS=2 python benchmarks/qlora.py /tmp/full

Starts `visglm finetune` as a person would, on a few captioned emoji, and looks at it from outside (Linux only).
Of what is resident, "of its own" is what nothing but the process holds; the rest are pages of files, packed weights
among them, which the system may take back and read again when memory is short.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = ROOT / "finetune/emoji/train.jsonl"
FIELDS = {"VmRSS": "resident", "RssAnon": "of its own"}  # of /proc/PID/status
PHASES = ("loading, and answers before", "training", "answers after")
LIBRARIES = "import os, visglm.training, transformers, peft; print(open('/proc/self/status').read())"


def write_rows(count: int, folder: Path) -> Path:
    """The first rows of the emoji example, with the whole paths of their pictures."""
    rows = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()[:count]]
    for row in rows:
        row["images"] = [str(DATA.parent / image) for image in row["images"]]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def memory_in(status: str) -> dict[str, int]:
    """Bytes by field; nothing of a process that has ended."""
    values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {name: int(values[name].split()[0]) * 1024 for name in FIELDS if name in values}


def cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def watch(command: list[str], output: Path, num_steps: int) -> tuple[dict[str, dict[str, int]], float]:
    """Run it; the peaks of every phase, in bytes, and the seconds of CPU that a step took."""
    peaks: dict[str, dict[str, int]] = {phase: {} for phase in PHASES}
    log = output.with_name("log")
    cpu = dict.fromkeys(PHASES, 0.0)  # when a phase was last seen
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stderr=file)
    while process.poll() is None:
        ended = (output / f"checkpoint-{num_steps}").exists()
        phase = PHASES[2 if ended else 1 if "training:" in log.read_text("utf-8") else 0]
        try:
            now = memory_in(Path(f"/proc/{process.pid}/status").read_text())
            cpu[phase] = cpu_seconds(process.pid)
        except OSError:  # it has just ended
            break
        for name, size in now.items():
            peaks[phase][name] = max(size, peaks[phase].get(name, 0))
        time.sleep(0.2)
    if process.wait():
        raise SystemExit(log.read_text("utf-8"))
    return peaks, (cpu[PHASES[1]] - cpu[PHASES[0]]) / num_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of the checkpoint, in 4 bits")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, default=6, help="captioned pictures, of which one is held out")
    arguments = parser.parse_args()
    alone = memory_in(
        subprocess.run([sys.executable, "-c", LIBRARIES], check=True, capture_output=True, text=True).stdout
    )
    with tempfile.TemporaryDirectory(prefix="visglm-benchmark-") as made:
        output = Path(made) / "out"
        command = [
            sys.executable, "-m", "visglm", "finetune", str(write_rows(arguments.rows, Path(made))),
            "--model", arguments.folder, "--method", "qlora", "--device", "cpu", "--output-dir", str(output),
            "--batch-size", "1", "--gradient-checkpointing", "--max-steps", str(arguments.steps), "--num-workers", "0",
            "--held-out", "0.15", "--report-to", "none", "--every", str(arguments.steps), "--allow-outside",
        ]  # fmt: skip
        peaks, seconds = watch(command, output, arguments.steps)
        report = json.loads((output / "report.json").read_text("utf-8"))
    expected = {name: size for name, size in report["memory"].items() if name != "peak_of_the_process"}
    print("| memory, GB | resident | of its own |\n|---|---|---|")
    rows = {"Python and libraries alone": alone, **peaks}
    for name, sizes in rows.items():
        print(f"| {name} | {sizes['VmRSS'] / 1e9:.2f} | {sizes['RssAnon'] / 1e9:.2f} |")
    for name, size in expected.items():
        print(f"| expected before training: {name} | {size / 1e9:.2f} | |")
    together = sum(expected.values()) + alone["VmRSS"]
    share = together / peaks[PHASES[1]]["VmRSS"]
    print(f"| expected, with the libraries | {together / 1e9:.2f} | |\n")
    print(
        f"Expected: {share:.0%} of what training took. {1 / report['speed']['examples_per_second']:.1f} s a step; ",
        end="",
    )
    print(f"{seconds:.1f} s of CPU a step, with one held-out loss and the checkpoint among them.")
    print("Losses: " + ", ".join(f"{row['loss']:.2f}" for row in report["history"] if "loss" in row) + ".")


if __name__ == "__main__":
    main()
