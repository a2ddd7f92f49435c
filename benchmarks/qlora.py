"""QLoRA of a model of full size: peak memory, seconds per step, and what the run had expected.

    visglm new /tmp/full --preset visualglm-6b --random --quantize int4
    python benchmarks/qlora.py /tmp/full

Starts `visglm finetune` as a person would, on a few captioned emoji, and looks at the process from outside (Linux only).
Of what is resident, "of its own" is what nothing but the process holds; the rest are pages of files, packed weights
among them, which the system may take back and read again when memory is short.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = ROOT / "finetune/emoji/train.jsonl"
KINDS = {"VmRSS": "resident", "RssAnon": "of its own", "RssFile": "pages of files"}


def write_rows(count: int, folder: Path) -> Path:
    """The first rows of the emoji example, beside nothing: with the whole paths of their pictures."""
    rows = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()[:count]]
    for row in rows:
        row["images"] = [str(DATA.parent / image) for image in row["images"]]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def memory_of(process: subprocess.Popen[str]) -> dict[str, int]:
    """Bytes by kind; nothing of a process that has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return {}
    values = dict(line.split(":", 1) for line in lines)
    return {name: int(values[name].split()[0]) * 1024 for name in KINDS if name in values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of the checkpoint, in 4 bits")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8, help="captioned pictures, of which one or two are held out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="visglm-benchmark-") as made:
        output = Path(made) / "out"
        command = [
            sys.executable, "-m", "visglm", "finetune", str(write_rows(arguments.rows, Path(made))),
            "--model", arguments.folder, "--method", "qlora", "--device", "cpu", "--output-dir", str(output),
            "--batch-size", "1", "--gradient-checkpointing", "--max-steps", str(arguments.steps), "--num-workers", "0",
            "--held-out", "0.15", "--report-to", "none",
        ]  # fmt: skip
        process = subprocess.Popen(command, text=True)
        peak: dict[str, int] = {}
        fullest: dict[str, int] = {}  # when most was resident
        while process.poll() is None:
            now = memory_of(process)
            peak = {name: max(size, peak.get(name, 0)) for name, size in now.items()} or peak
            fullest = max(fullest, now, key=lambda sizes: sizes.get("VmRSS", 0))
            time.sleep(0.2)
        if process.returncode:
            raise SystemExit(process.returncode)
        report = json.loads((output / "report.json").read_text("utf-8"))
    measured = report["memory"].pop("peak_of_the_process")
    print("| memory, GB | peak | when most was resident |\n|---|---|---|")
    for name, title in KINDS.items():
        print(f"| {title} | {peak[name] / 1e9:.2f} | {fullest[name] / 1e9:.2f} |")
    print(f"| resident, as the run itself reports it | {measured / 1e9:.2f} | |")
    for name, size in report["memory"].items():
        print(f"| expected: {name} | {size / 1e9:.2f} | |")
    print(f"| expected together | {sum(report['memory'].values()) / 1e9:.2f} | |")
    losses = [row["loss"] for row in report["history"] if "loss" in row]
    print(f"\n{1 / report['speed']['examples_per_second']:.1f} s a step, losses {', '.join(f'{x:.2f}' for x in losses)}.")


if __name__ == "__main__":
    main()
