"""Memory of a fine-tuning run by the number of its rows: it must not be that of the data.

    OMP_NUM_THREADS=1 python benchmarks/rows.py --rows 10000 1000000

Writes a JSONL of so many captions, repeated over a few pictures, to a temporary folder; trains visglm-tiny on it for
two steps in a process of its own, which opens the file, checks every row, measures thousands, shuffles them all and
reads its batches; and takes that process's peak. The folder is deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PICTURES = Path(__file__).parents[1] / "finetune/emoji/pictures/noto"
NUM_PICTURES = 8
CAPTION = "Picture {number} of very many, described at the length that captions on the web have, or somewhat below it."


def write_rows(path: Path, count: int) -> None:
    pictures = [str(picture) for picture in sorted(PICTURES.glob("*.png"))[:NUM_PICTURES]]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {"image": pictures[number % NUM_PICTURES], "caption": CAPTION.format(number=number)}
            file.write(json.dumps(row) + "\n")


def train(path: str) -> None:
    """In a process of its own: prints seconds and the peak in bytes, and both before there was any data."""
    from visglm import VisGLM

    vlm = VisGLM.from_pretrained()
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.process_time()
    report = vlm.finetune(
        path, output_dir=Path(path).parent / "out", max_steps=2, every=2, batch_size=4, num_workers=0, held_out=0.0,
        report_to="none", allow_outside=True,
    )  # fmt: skip
    found = {"seconds": time.process_time() - started, "peak": report.memory["peak_of_the_process"], "loaded": loaded}
    print(json.dumps(found | {"rows": report.data["rows"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000], metavar="COUNT")
    parser.add_argument("--train", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train)
        return
    print("| rows | file, MB | CPU seconds | peak, MiB | bytes a row beyond the first size |\n|---|---|---|---|---|")
    first: dict[str, float] = {}
    for count in arguments.rows:
        with tempfile.TemporaryDirectory(prefix="visglm-rows-") as folder:
            path = Path(folder) / "rows.jsonl"
            write_rows(path, count)
            size = path.stat().st_size
            command = [sys.executable, __file__, "--train", str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        assert found["rows"] == count
        first = first or found
        more = count - first["rows"]
        per_row = f"{(found['peak'] - first['peak']) / more:.0f}" if more else ""
        print(
            f"| {count:,} | {size / 1e6:.0f} | {found['seconds']:.0f} | {found['peak'] / 2**20:.0f} | {per_row} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
