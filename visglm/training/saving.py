"""Checkpoints that are whole or not there: written beside their place, flushed, marked complete, then renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from ..errors import TrainingError

MARKER_NAME = "complete.json"  # lists every file with its size
PARTIAL_NAME = "partial"  # where a checkpoint is until it is whole
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def complete(folder: Path) -> None:
    """Mark a folder as complete, with everything in it on disk."""
    sizes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    marker = folder / MARKER_NAME
    with marker.open("w", encoding="utf-8") as file:
        json.dump(sizes, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def is_complete(folder: Path) -> bool:
    """Whether every file is there at its full size."""
    try:
        sizes = json.loads((folder / MARKER_NAME).read_text("utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [
        (int(match[1]), path)
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := CHECKPOINT.fullmatch(path.name)) and is_complete(path)
    ]
    return [path for _, path in sorted(found)]


def publish(partial: Path, target: Path) -> None:
    """Make a folder that was written aside the checkpoint `target`, in one step."""
    complete(partial)
    if target.exists():  # of a run that was killed between this and its next step, or a half one
        shutil.rmtree(target)
    os.replace(partial, target)


def rotate(output_dir: Path, keep: int, best: str | None) -> None:
    """Remove the oldest complete checkpoints, except the `keep` last ones and the best."""
    old = checkpoints(output_dir)[:-keep]
    for path in old:
        if best is None or path.resolve() != Path(best).resolve():
            shutil.rmtree(path)


def copy_result(checkpoint: Path, output_dir: Path, names: list[str]) -> None:
    """Put a checkpoint's model files where `from_pretrained(output_dir)` looks, each replaced in one step."""
    for name in names:
        part = output_dir / f".{name}.part"
        shutil.copyfile(checkpoint / name, part)
        os.replace(part, output_dir / name)


def disk_error(error: OSError, folder: Path) -> TrainingError:
    """What to say when a checkpoint could not be written."""
    last = checkpoints(folder)
    kept = f"The last complete checkpoint, {last[-1]}, is intact." if last else "There is no earlier checkpoint."
    return TrainingError(
        f"a checkpoint cannot be written to {folder} ({error.strerror or error}). {kept} "
        "Make room and go on with resume=True (--resume)."
    )
