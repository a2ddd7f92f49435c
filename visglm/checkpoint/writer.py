"""Folders that are whole or not there, and weights written shard by shard.

What is saved is written into a folder of its own first, in the target, so that it is on the same device. One rename
makes that folder `.visglm-ready`: from then on the save has happened. Its files take their places one by one, and who
is killed over that is finished by the next process that loads from the folder or saves into it.
"""

from __future__ import annotations

import filecmp
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..untrusted import DamagedFile, read_json
from .files import write_json
from .owned import MARKER_NAME, is_within, owned, write_marker

try:
    import fcntl
except ImportError:  # Windows; there it is up to the caller that one process at a time saves into a folder
    fcntl = None  # type: ignore[assignment]

SHARD_BYTES = 2 * 2**30
READY_NAME, PARTIAL_START = ".visglm-ready", ".visglm-"
REPLACED_NAME = "replaced.json"  # in a folder that is ready: what has to go from the target
SAVE: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    ".safetensors": lambda tensors, path: save_file(tensors, path, metadata={"format": "pt"}),
    ".bin": lambda tensors, path: torch.save(tensors, path),
}


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """An empty folder whose files take the place of the checkpoint in `folder` when the `with` block ends.

    They get there all or not at all. The folder itself stays, and so do all files in it that are not the checkpoint's
    (see `owned`). Where the block or the disk fails, nothing has changed.

    Raises:
        CheckpointError: it cannot be written, or a foreign file has a name that is needed.
    """
    target = Path(os.path.realpath(Path(folder).expanduser()))  # a link to a folder stays a link
    partial: Path | None = None
    try:
        is_new = not target.exists()
        if not is_new and not target.is_dir():
            raise CheckpointError(target, ["it is no folder, and something is there"], "Choose another folder.")
        finish(target)
        beside = f".{target.name}{PARTIAL_START}"
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_remains(target.parent, beside)
        remove_remains(target, PARTIAL_START)
        home, start = (target.parent, beside) if is_new else (target, PARTIAL_START)
        partial = home / f"{start}{secrets.token_hex(8)}"
        partial.mkdir()
        with locked(partial):
            yield partial
            names = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
            write_marker(partial, names)
            old = owned(target)
            if problems := _in_the_way(target, partial, [*names, MARKER_NAME], old):
                raise CheckpointError(target, problems, "Nothing was written. Move them away, or take another folder.")
            if not is_new:
                write_json(partial / REPLACED_NAME, {"files": sorted(old - {*names, MARKER_NAME})})
            _settle(partial)
            if is_new:
                os.rename(partial, target)
            else:
                with locked(target):
                    _finish(target)  # another save may have become ready in the meantime
                    os.rename(partial, target / READY_NAME)
    except OSError as error:
        raise CheckpointError(
            target, [f"it cannot be written ({error.strerror or error})"],
            "What was there before is intact. Make room, or choose another folder.",
        ) from error  # fmt: skip
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    finish(target)


def finish(target: Path) -> None:
    """Put the files of a save that is ready into their places. Cheap where there is none.

    Raises:
        CheckpointError: there is one, and it cannot be finished here.
    """
    if not (target / READY_NAME).is_dir():
        return
    try:
        with locked(target):
            _finish(target)
    except OSError as error:
        raise CheckpointError(
            target, [f"a save into it is not finished, and cannot be here ({error.strerror or error})"],
            f"What was saved is whole, in {target / READY_NAME}. The next use by somebody who may write here "
            "finishes it.",
        ) from error  # fmt: skip


def _finish(target: Path) -> None:
    """Every step may be the last before the process is killed, and all are done again by the next."""
    ready = target / READY_NAME
    if ready.is_symlink() or not ready.is_dir():
        return
    if (ready / MARKER_NAME).is_file():  # the last to leave
        listed, staged = (_listed(target, ready / name) for name in (REPLACED_NAME, MARKER_NAME))
        for name in listed:
            (target / name).unlink(missing_ok=True)
            if len(Path(name).parts) == 2 and not any((target / name).parent.iterdir()):
                (target / name).parent.rmdir()
        for name in staged:
            if (ready / name).is_file():
                (target / name).parent.mkdir(exist_ok=True)
                os.replace(ready / name, target / name)
        os.replace(ready / MARKER_NAME, target / MARKER_NAME)
    synchronize(target)
    shutil.rmtree(ready)


def _listed(target: Path, path: Path) -> list[str]:
    try:
        names = read_json(path).get("files")
    except DamagedFile as error:
        raise OSError(str(error)) from error
    # The folder may be somebody else's, and this list theirs as well.
    return [name for name in names if isinstance(name, str) and is_within(target, name)] if names else []


def _in_the_way(target: Path, partial: Path, names: list[str], old: set[str]) -> list[str]:
    """What lies under a name that is needed and is no part of the checkpoint that is replaced, one line each."""
    problems = []
    for name in names:
        path = target / name
        if not is_within(target, name):
            problems.append(f"{name} is no kind of file that checkpoints are made of, or lies behind a link")
        elif path.parent != target and path.parent.exists() and not path.parent.is_dir():
            problems.append(f"{path.parent.name} is there and is no folder")
        elif path.is_dir():
            problems.append(f"{name} is there and is a folder")
        elif path.is_symlink() and name not in old:
            problems.append(f"{name} is there and is a link to something else")
        elif path.exists() and name not in old and not filecmp.cmp(path, partial / name, shallow=False):
            problems.append(f"{name} is there and is no part of a checkpoint that visglm knows")
    return problems


def _settle(partial: Path) -> None:
    """Get everything onto the disk, with the rights that any new file has: safetensors' are 0600."""
    mode = (partial / MARKER_NAME).stat().st_mode & 0o777
    for path in partial.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            synchronize(path)
    synchronize(partial)


def synchronize(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Be the only process that has the folder, where the system can see to that; without `wait`, whether one is."""
    if fcntl is None:
        yield wait
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:  # somebody has it, or a network disk knows no locks
            yield wait
        else:
            yield True
    finally:
        os.close(descriptor)


def remove_remains(home: Path, start: str) -> None:
    """Remove what killed saves have left half-written; a save that is under way holds a lock on its folder."""
    for path in home.glob(f"{start}{'[0-9a-f]' * 16}"):
        if path.is_dir() and not path.is_symlink():
            with locked(path, wait=False) as is_mine:
                if is_mine:
                    shutil.rmtree(path, ignore_errors=True)


class ShardWriter:
    """Write tensors into `{stem}{suffix}`, or into numbered shards with an index where they are too many.

    Args:
        suffix: `.safetensors` or `.bin`.
        shard_bytes: how large a file may become.
    """

    def __init__(self, folder: Path, stem: str, suffix: str, shard_bytes: int = SHARD_BYTES):
        self.folder, self.stem, self.suffix, self.shard_bytes = folder, stem, suffix, shard_bytes
        self._shards: list[dict[str, int]] = []  # of each file: name → bytes
        self._tensors: dict[str, Tensor] = {}
        self._size = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a copy of a tensor."""
        num_bytes = tensor.numel() * tensor.element_size()
        if self._tensors and self._size + num_bytes > self.shard_bytes:
            self._flush()
        self._tensors[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        self._size += num_bytes

    def _flush(self) -> None:
        save_tensors(self._tensors, self.folder / f"{len(self._shards)}{self.suffix}")
        self._shards.append({name: tensor.numel() * tensor.element_size() for name, tensor in self._tensors.items()})
        self._tensors, self._size = {}, 0

    def close(self) -> None:
        """Write what is left, and give the files their names."""
        if self._tensors:
            self._flush()
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, sizes in enumerate(self._shards):
            name = f"{self.stem}-{number + 1:05}-of-{count:05}{self.suffix}" if count > 1 else self.stem + self.suffix
            (self.folder / f"{number}{self.suffix}").rename(self.folder / name)
            weight_map |= dict.fromkeys(sizes, name)
        if count > 1:
            total = sum(sum(sizes.values()) for sizes in self._shards)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_json(self.folder / f"{self.stem}{self.suffix}.index.json", index)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file of the format that its suffix names.

    Raises:
        OSError: the disk is full, or there is no right to write; the libraries have errors of their own for it.
    """
    try:
        SAVE[path.suffix](tensors, path)
    except (SafetensorError, RuntimeError) as error:
        raise OSError(f"{path.name}: {str(error).splitlines()[0]}") from error
