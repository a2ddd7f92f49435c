"""Weight files: what is in them without reading them, then their tensors one by one. Damage is named, never skipped."""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..quant.memory import Stretch, forget, map_file
from ..untrusted import DamagedFile, read_json

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# What is read through a mapping of a file counts as memory until the mapping is closed, and a checkpoint may be one
# file of many gigabytes. Opening one that torch wrote takes 0.1 s, so not for every tensor.
MAPPED_BYTES = 2**28
MOST_SHARDS = 4096
MAX_SHARED = 2  # tensors may share their bytes in a file, as embeddings and head do
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
        """Views of one mapping of the file, which a view may outlive: what packed weights are read from stays there.
        safetensors maps the file for each tensor, and gives nothing by which pages could be let go."""
        infos = self.infos(path)  # which checks the header, too
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
        mapping, start = map_file(path), 8 + header_bytes
        for name, info in sorted(infos.items(), key=lambda item: header[item[0]]["data_offsets"]):
            begin, end = header[name]["data_offsets"]
            if begin == end:
                yield name, torch.empty(info.shape, dtype=info.dtype)
                continue
            count = torch.Size(info.shape).numel()
            yield name, torch.frombuffer(mapping, dtype=info.dtype, count=count, offset=start + begin).view(info.shape)
            # Pages that were read count as memory of this process.
            forget(Stretch(mapping, start + begin, end - begin))


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
        check_pickle(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        content = content.get("module", content) if isinstance(content, Mapping) else content
        if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
            raise DamagedFile("no table of tensors")
        for name, tensor in content.items():
            if not isinstance(name, str):
                raise DamagedFile("no table of tensors by their names")
            if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in SAFETENSORS_DTYPES.values():
                raise DamagedFile(f"{name} is stored as {tensor.dtype}, {tensor.layout}; expected plain numbers")
            if tensor.nbytes > tensor.untyped_storage().nbytes():
                raise DamagedFile(f"{name} claims {tensor.nbytes:,} bytes, stored are fewer")
        return content


# What a pickle of tensors is made of; torch allows more, such as arrays of any size out of nothing.
PICKLED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch\.storage (Typed|Untyped)Storage"
    r"|torch (\w+Storage|float16|bfloat16|float32|float64|u?int\d+|bool|Size|device)"
)
PICKLE_BYTES = 2**26  # of names and shapes alone


def check_pickle(path: Path) -> None:
    """Look through the pickle of a file of torch's without running it.

    Raises:
        DamagedFile: it is none, or holds more than tensors.
    """
    if not zipfile.is_zipfile(path):
        raise DamagedFile("no PyTorch file of torch 1.6 or later; cut off, or something else under this name")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        pickled = [part for part in parts if part.filename.endswith("/data.pkl")]
        if len({part.filename for part in parts}) != len(parts) or len(pickled) != 1:
            raise DamagedFile("no PyTorch file: its parts do not have names of their own")
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or pickled[0].file_size > PICKLE_BYTES:
            raise DamagedFile("no PyTorch file as torch writes it: its parts are compressed, or names take gigabytes")
        for operation, argument, _ in pickletools.genops(archive.read(pickled[0])):
            if "GLOBAL" in operation.name and not PICKLED.fullmatch(str(argument)):
                raise DamagedFile("it holds more than tensors, which is refused because it could run code")


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
            if (total := sum(info.num_bytes for info in infos.values())) > MAX_SHARED * path.stat().st_size:
                self.problems.append(f"file {path.name}: its tensors claim {total:,} bytes, more than the file has")
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
    except DamagedFile:
        raise
    except SafetensorError as error:
        raise DamagedFile(f"its header does not fit its {path.stat().st_size:,} bytes ({error})") from error
    except pickle.UnpicklingError as error:
        raise DamagedFile("it holds more than tensors, which is refused because it could run code") from error
    except Exception as error:  # torch and zipfile have any error there is for bytes that make no sense
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise DamagedFile(f"it cannot be read ({line[:200]})") from error


def find_weights(folder: Path, stem: str, suffix: str) -> WeightFiles | None:
    """`{stem}{suffix}`, or the shards that `{stem}{suffix}.index.json` names, or `{stem}-*-of-*{suffix}` without one.

    An index none of whose shards is there was left behind by an earlier save: transformers does not remove it when it
    writes one file.

    Returns:
        None if there is nothing of the kind.

    Raises:
        CheckpointError: there are two sets, so that nobody knows which of them is meant.
        DamagedFile: the index is none.
    """
    index_path, whole = folder / f"{stem}{suffix}.index.json", folder / f"{stem}{suffix}"
    if index_path.is_file():
        index = read_json(index_path).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) and name for name in index.values()):
            raise DamagedFile(f"file {index_path.name}: it has no weight_map of file names")
        shards = [folder / Path(name).name for name in sorted(set(index.values()))]
        if not whole.is_file() or whole in shards:
            return WeightFiles(shards, index)
        if any(path.is_file() for path in shards):
            raise CheckpointError(
                folder,
                [f"two sets of weights: {whole.name}, and the {len(shards)} files that {index_path.name} names"],
                f"Remove the older one: {whole.name}, or the index with its files.",
            )
    if whole.is_file():
        return WeightFiles([whole])
    shards = sorted(folder.glob(f"{stem}-*-of-*{suffix}"))
    counts = {path.stem.rpartition("-")[2] for path in shards}
    if len(counts) == 1 and (count := counts.pop()).isdecimal() and len(shards) < int(count) <= MOST_SHARDS:
        # Those that did not come are named, rather than every tensor in them.
        width = len(shards[0].stem.removeprefix(f"{stem}-").partition("-")[0])
        named = {folder / f"{stem}-{number:0{width}d}-of-{count}{suffix}" for number in range(1, int(count) + 1)}
        shards = sorted(named.union(shards) if len(named.intersection(shards)) == len(shards) else shards)
    if len(counts) > 1:
        raise CheckpointError(
            folder,
            [f"{len(counts)} sets of weights: {', '.join(path.name for path in shards)}"],
            "Remove those that do not belong here.",
        )
    return WeightFiles(shards) if shards else None


def write_json(path: Path, content: dict) -> None:
    """Write a JSON object the way people read it."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _dtype(path: Path, name: str, code: str) -> torch.dtype:
    if code not in SAFETENSORS_DTYPES:
        raise DamagedFile(f"{name} is stored as {code}; expected one of {', '.join(SAFETENSORS_DTYPES)}")
    return SAFETENSORS_DTYPES[code]
