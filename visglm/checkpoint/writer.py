"""Folders that are whole or not there, and weights written shard by shard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from .files import READERS, write_json

SHARD_BYTES = 2 * 2**30
SAVE: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    ".safetensors": lambda tensors, path: save_file(tensors, path, metadata={"format": "pt"}),
    ".bin": lambda tensors, path: torch.save(tensors, path),
}


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the `with` block ends, and leaves no trace if it fails.

    Files of the old folder that are no part of a checkpoint, such as notes, are kept.

    Raises:
        CheckpointError: it cannot be written; what was there before is still there.
    """
    target = Path(folder).expanduser().absolute()
    partial, old = (target.with_name(f".{target.name}.{word}") for word in ("partial", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if target.exists():
            for path in target.iterdir():
                if not (partial / path.name).exists() and not is_part_of_checkpoint(path):
                    shutil.copytree(path, partial / path.name) if path.is_dir() else shutil.copy2(path, partial)
            shutil.rmtree(old, ignore_errors=True)
            os.rename(target, old)
        os.rename(partial, target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(
            target, [f"it cannot be written ({error.strerror or error})"],
            "What was there before is intact. Make room, or choose another folder.",
        ) from error  # fmt: skip
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_part_of_checkpoint(path: Path) -> bool:
    """Whether a checkpoint of any format may own the file, so that an old one must not stay beside a new one."""
    if path.is_dir():
        return any(path.glob("mp_rank_*"))
    return path.suffix in (*READERS, ".json", ".model") or path.name == "latest"


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
        SAVE[self.suffix](self._tensors, self.folder / f"{len(self._shards)}{self.suffix}")
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
