"""Weight files: what is in them without reading them, then their tensors one by one. Damage is named, never skipped."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# What is read through a mapping of a file counts as memory until the mapping is closed, and a checkpoint may be one
# file of many gigabytes. Opening one that torch wrote takes 0.1 s, so not for every tensor.
MAPPED_BYTES = 2**28
# What is found under a weight file's name after a bad download: first bytes → what that is.
IMPOSTORS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file it points to; run `git lfs pull`",
    b"<!doctype": "a web page, not weights",
    b"<html": "a web page, not weights",
    b"<?xml": "an error message in XML, not weights",
}


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> TensorInfo:
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class DamagedFile(Exception):
    """A file is not what its name says; the message is one line for a `CheckpointError`."""


class SafetensorsReader:
    """`.safetensors`: a JSON header, then the bytes."""

    def infos(self, path: Path) -> dict[str, TensorInfo]:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            return {
                name: TensorInfo(tuple(part.get_shape()), _dtype(path, name, part.get_dtype()))
                for name, part in slices.items()
            }

    def tensors(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
        for name in names:  # opening takes a millisecond
            with safe_open(path, "pt") as file:
                tensor = file.get_tensor(name)
            yield name, tensor


class PickleReader:
    """`.bin` and `.pt` as torch writes them: never unpickled beyond tensors, and mapped rather than read."""

    def infos(self, path: Path) -> dict[str, TensorInfo]:
        return {name: TensorInfo.of(tensor) for name, tensor in self._load(path).items()}

    def tensors(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        content, num_bytes = self._load(path), 0
        for name in list(content):
            if num_bytes > MAPPED_BYTES:
                content, num_bytes = self._load(path), 0
            num_bytes += content[name].nbytes
            yield name, content[name]

    def _load(self, path: Path) -> Mapping[str, Tensor]:
        if not zipfile.is_zipfile(path):
            raise DamagedFile("no PyTorch file of torch 1.6 or later; cut off, or something else under this name")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        content = content.get("module", content) if isinstance(content, Mapping) else content
        if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
            raise DamagedFile("no table of tensors")
        return content


READERS: dict[str, SafetensorsReader | PickleReader] = {
    ".safetensors": SafetensorsReader(),
    ".bin": PickleReader(),
    ".pt": PickleReader(),
}


class WeightFiles:
    """The shards of one checkpoint.

    Args:
        paths: the files, in the order in which they are streamed.
        index: tensor name → file name, where an index file says so.

    Attributes:
        infos: tensor name → shape and dtype, of every file that could be opened.
        problems: one line for each file that could not, and for each name that the index promised in vain.
    """

    def __init__(self, paths: Sequence[Path], index: Mapping[str, str] | None = None):
        self.paths = list(paths)
        self.problems: list[str] = []
        self.infos: dict[str, TensorInfo] = {}
        self._index = index or {}
        self._unreadable: set[str] = set()
        for path in self.paths:
            try:
                infos = read_infos(path)
            except DamagedFile as error:
                self.problems.append(f"file {path.name}: {error}")
                self._unreadable.add(path.name)
                continue
            self.problems += [f"{name} is in {path.name} and in another file" for name in self.infos.keys() & infos]
            self.infos |= infos

    def is_lost(self, name: str) -> bool:
        """Whether `name` may be in a file that could not be read, so that naming the file says it all."""
        return bool(self._unreadable) and self._index.get(name, next(iter(self._unreadable))) in self._unreadable

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, file by file; each file is closed before the next is opened."""
        for path in self.paths:
            yield from READERS[path.suffix].tensors(path)


def read_infos(path: Path) -> dict[str, TensorInfo]:
    """Shapes and dtypes of a weight file.

    Raises:
        DamagedFile: it is missing, cut off, or something else under this name.
    """
    if not path.is_file():
        raise DamagedFile("missing")
    if not path.stat().st_size:
        raise DamagedFile("empty")
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    for signature, meaning in IMPOSTORS.items():
        if start.startswith(signature):
            raise DamagedFile(meaning)
    try:
        return READERS[path.suffix].infos(path)
    except SafetensorError as error:
        raise DamagedFile(f"its header does not fit its {path.stat().st_size:,} bytes ({error})") from error
    except pickle.UnpicklingError as error:
        raise DamagedFile("it holds more than tensors, which is refused because it could run code") from error
    except (RuntimeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedFile(f"it cannot be read ({str(error).splitlines()[0]})") from error


def find_weights(folder: Path, stem: str, suffix: str) -> WeightFiles | None:
    """`{stem}{suffix}`, or the shards that `{stem}{suffix}.index.json` names, or `{stem}-*-of-*{suffix}` without one.

    Returns:
        None if there is nothing of the kind.
    """
    index_path = folder / f"{stem}{suffix}.index.json"
    if index_path.is_file():
        index = read_json(index_path).get("weight_map")
        if not isinstance(index, dict):
            raise DamagedFile(f"file {index_path.name}: it has no weight_map")
        return WeightFiles([folder / Path(name).name for name in sorted(set(index.values()))], index)
    whole = folder / f"{stem}{suffix}"
    shards = [whole] if whole.is_file() else sorted(folder.glob(f"{stem}-*-of-*{suffix}"))
    return WeightFiles(shards) if shards else None


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        DamagedFile: it is none.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFile(f"file {path.name}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise DamagedFile(f"file {path.name}: no JSON object")
    return content


def write_json(path: Path, content: dict) -> None:
    """Write a JSON object the way people read it."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _dtype(path: Path, name: str, code: str) -> torch.dtype:
    if code not in SAFETENSORS_DTYPES:
        raise DamagedFile(f"{name} is stored as {code}; expected one of {', '.join(SAFETENSORS_DTYPES)}")
    return SAFETENSORS_DTYPES[code]
