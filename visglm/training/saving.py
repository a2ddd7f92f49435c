"""What a run leaves: checkpoints that are whole or not there, and the result.

A checkpoint is written beside its place, flushed, marked complete, then renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters import HERE, Adapters, Home, base_tensors, is_adapter, read_delta, write_delta
from ..checkpoint import read_weights, replacing, save_base, write_model
from ..errors import CheckpointError, ConfigError, TrainingError
from ..processor import VisGLMProcessor
from ..recipe import FinetuneArguments, checkpoints_in
from ..untrusted import DamagedFile, read_json
from .data import TrainingData
from .methods import METHODS, rate_of, tower_names

MARKER_NAME = "complete.json"  # lists every file with its size
PARTIAL_NAME = "partial"  # where a checkpoint is until it is whole
FACTS_NAME = "run.json"  # what must be the same where a run goes on
BASE_NAME = "base"  # of a base that no other folder holds


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
        sizes = read_json(folder / MARKER_NAME)
        return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())
    except (DamagedFile, OSError, ValueError):
        return False


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return [path for path in checkpoints_in(output_dir) if is_complete(path)]


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


def examples_per_step(settings: FinetuneArguments) -> int:
    """Over all processes."""
    return settings.batch_size * (settings.accumulation or 1) * int(os.environ.get("WORLD_SIZE", 1))


def facts_of(settings: FinetuneArguments, config: Any, train: TrainingData | None) -> dict[str, Any]:
    """What must be the same where a run goes on: by the first of these it finds its place in the data, the others are
    what learns, and what the checkpoint's optimizer and schedule say in place of the settings.

    Args:
        config: of the network. train: the answers to learn; None for a stream.
    """
    towers = tower_names(settings, config)
    return {
        "method": settings.method,
        "examples per step": examples_per_step(settings),
        "seed": settings.seed,
        "answers": None if train is None else len(train),
        "checksum of what the rows say": None if train is None else train.checksum,
        "replay": settings.replay,
        "towers": ", ".join(towers),
        **{name: getattr(settings, name) for name in METHODS[settings.method].heeds},
        **{f"learning rate of {tower}": rate_of(settings, tower, config) for tower in towers},
        "weight_decay": settings.weight_decay,
    }


def write_facts(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Note in a checkpoint what `check_resumed` asks for."""
    (checkpoint / FACTS_NAME).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def check_resumed(checkpoint: Path, adapters: Adapters, now: Mapping[str, Any]) -> None:
    """Whether a run can go on from a checkpoint.

    Args:
        now: the run's `facts_of`.

    Raises:
        ConfigError: it was started with other settings, or over another base.
    """
    try:
        facts = read_json(checkpoint / FACTS_NAME)
    except DamagedFile:  # an older visglm wrote none
        facts = {}
    different = [
        f"{name} was {facts[name]!r}, is {value!r}" for name, value in now.items() if facts.get(name, value) != value
    ]
    if is_adapter(checkpoint):
        base = read_delta(checkpoint).base
        if base.fingerprint not in (None, adapters.fingerprint()):
            different.append(f"its base is another one, {base.name} as seen from {checkpoint}; load that")
    if different:
        raise ConfigError(
            f"the run cannot go on from {checkpoint}: {'; '.join(different)}. Give it what it was started with, or "
            "start anew in another output_dir."
        )


def settle_home(
    adapters: Adapters, processor: VisGLMProcessor, output_dir: Path, *, is_main: bool, is_resumed: bool
) -> Home:
    """Where the base of this run is found again; one that no folder holds is written into the run's, once.

    Args:
        is_main: whether this is the process that writes. is_resumed: the run goes on, and has written it already.

    Raises:
        ConfigError: the result would take the place of its own base.
        CheckpointError: the base cannot be written.
    """
    home = adapters.home
    if home is not None and home.name != HERE:
        refuse_own_folder(home, output_dir)
        return home
    folder = output_dir.resolve() / BASE_NAME
    home = Home(str(folder), adapters.fingerprint())
    if is_main and not (is_resumed and folder.is_dir()):
        with replacing(folder) as partial:
            save_base(adapters, processor, partial)
    adapters.home = home
    return home


def refuse_own_folder(home: Home, output_dir: Path) -> None:
    """Raise `ConfigError` where the result would take the place of the model that is to be taught."""
    if Path(home.name).is_absolute() and Path(home.name).resolve() == output_dir.resolve():
        raise ConfigError(
            f"output_dir is {output_dir}, which holds the model that is to be taught: the result would take the "
            "place of its own base. Name another folder."
        )


def save_trained(
    folder: Path,
    adapters: Adapters,
    processor: VisGLMProcessor,
    home: Home | None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write what is being trained, as it is, so that it can be gone on from and `VisGLM.from_pretrained` reads it.

    Args:
        home: the base as seen from the folder's final place; None where the result is a model of its own.
        state_dict: the network's tensors, where it holds only a part of them itself (sharded training).
    """
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    if home is not None:
        write_delta(folder, adapters.delta(home, state_dict))
        return
    live = base_tensors(adapters.network)
    source: Mapping[str, Tensor] = state_dict if state_dict is not None else live
    write_model(adapters.network, ((name, source[name]) for name in live), folder)


def read_trained(checkpoint: Path, adapters: Adapters) -> dict[str, Tensor]:
    """What `save_trained` wrote for the parameters that are being trained, by their names in the files.

    Raises:
        CheckpointError: it is from another method or other settings, or is damaged.
    """
    wanted = adapters.learning.parameters()
    if is_adapter(checkpoint):
        stored: Mapping[str, Tensor] = read_delta(checkpoint).tensors
    else:
        stored = {name: tensor.clone() for name, tensor in read_weights(checkpoint) if name in wanted}
    problems = [
        f"{name}: {list(stored[name].shape) if name in stored else 'missing'}, expected {list(parameter.shape)}"
        for name, parameter in wanted.items()
        if name not in stored or stored[name].shape != parameter.shape
    ]
    if problems:
        raise CheckpointError(
            checkpoint, problems, "Resume with the settings it was started with, or start anew in another folder."
        )
    return {name: stored[name] for name in wanted}


def load_trained(checkpoint: Path, adapters: Adapters) -> None:
    """Put what `save_trained` wrote back into the network that is being trained."""
    stored = read_trained(checkpoint, adapters)
    with torch.no_grad():
        for name, parameter in adapters.learning.parameters().items():
            parameter.copy_(stored[name])


def write_result(
    checkpoint: Path, output_dir: Path, adapters: Adapters, processor: VisGLMProcessor, home: Home | None
) -> None:
    """Put the model of a checkpoint where `from_pretrained(output_dir)` looks, in the base's own dtypes.

    Args:
        home: as that of `save_trained`, seen from `output_dir`.
    """
    dtypes = adapters.learning.dtypes()
    with replacing(output_dir) as partial:
        processor.save_pretrained(partial)
        if home is not None:
            delta = read_delta(checkpoint)
            tensors = {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in delta.tensors.items()}
            write_delta(partial, replace(delta, tensors=tensors, base=home))
            return
        stored = read_weights(checkpoint)
        tensors_in_turn = ((name, tensor.to(dtypes.get(name, tensor.dtype))) for name, tensor in stored)
        write_model(adapters.network, tensors_in_turn, partial)


def disk_error(error: OSError, folder: Path) -> TrainingError:
    """What to say when a checkpoint could not be written."""
    last = checkpoints(folder)
    kept = f"The last complete checkpoint, {last[-1]}, is intact." if last else "There is no earlier checkpoint."
    return TrainingError(
        f"a checkpoint cannot be written to {folder} ({error.strerror or error}). {kept} "
        "Make room and go on with resume=True (--resume)."
    )
