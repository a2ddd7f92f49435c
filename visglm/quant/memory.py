"""Where packed numbers lie: in files that are read when they are needed, and what is freed goes back to the system."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import VisGLMError


class Stretch(NamedTuple):
    """Some bytes of a file that is mapped into memory."""

    mapping: mmap.mmap
    start: int
    num_bytes: int


# Address → a mapping of a checkpoint's file, as long as any tensor is a view of it.
MAPPED: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()


def map_file(path: Path) -> mmap.mmap:
    """A file as memory, for tensors to be views of. Writing to them does not change the file."""
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    MAPPED[torch.frombuffer(mapping, dtype=torch.uint8, count=1).data_ptr()] = mapping
    return mapping


def stretch_of(tensor: Tensor) -> Stretch | None:
    """Where in a checkpoint's file the numbers lie, if they do, and nobody has written over them since."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor._version:
        return None
    for address, mapping in MAPPED.items():
        if 0 <= (start := tensor.data_ptr() - address) < len(mapping):
            return Stretch(mapping, start, tensor.nbytes)
    return None


def in_file(tensor: Tensor) -> tuple[Tensor, Stretch | None]:
    """As `to_file`, but what is a view of a checkpoint's file stays one."""
    there = stretch_of(tensor)
    return to_file(tensor) if there is None else (tensor, there)


def to_file(tensor: Tensor) -> tuple[Tensor, Stretch | None]:
    """The same numbers in a temporary file, mapped: they take memory from when something reads them until `forget`.

    The file has no name, and its space is free again when the tensor is gone or the process ends. What is smaller than
    a page stays where it is, without a mapping.

    Raises:
        VisGLMError: there is no room for it.
    """
    tensor = tensor.contiguous()
    if tensor.nbytes < mmap.PAGESIZE:
        return tensor, None
    try:
        with tempfile.TemporaryFile(prefix="visglm-", dir=folder_of_files()) as file:
            file.write(tensor.numpy().data)
            file.flush()
            # Writing to the tensor writes to the file: `forget` loses nothing.
            mapping = mmap.mmap(file.fileno(), tensor.nbytes, access=mmap.ACCESS_WRITE)
    except OSError as error:
        raise VisGLMError(
            f"{tensor.nbytes:,} bytes of packed weights cannot be written to {folder_of_files()} "
            f"({error.strerror or error}); as many as the weights take must fit there. Name a folder on a larger disk "
            "by the environment variable TMPDIR."
        ) from error
    return torch.frombuffer(mapping, dtype=tensor.dtype).view(tensor.shape), Stretch(mapping, 0, tensor.nbytes)


def forget(stretch: Stretch | None) -> None:
    """Take the pages out of memory; whoever reads them again gets them from the file. What was written over a view of a
    checkpoint's file would be lost: `stretch_of` knows none of those."""
    if stretch is not None and hasattr(mmap, "MADV_DONTNEED"):
        outside = stretch.start % mmap.PAGESIZE  # of the page in which it begins
        stretch.mapping.madvise(mmap.MADV_DONTNEED, stretch.start - outside, stretch.num_bytes + outside)


def folder_of_files() -> str:
    """TMPDIR, or /var/tmp: /tmp lies in memory on many systems, where a file takes what it should save."""
    usual = Path("/var/tmp")
    return str(usual) if "TMPDIR" not in os.environ and os.access(usual, os.W_OK) else tempfile.gettempdir()


@functools.cache
def c_library() -> Any:
    """glibc, or None on other systems."""
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "malloc_trim") else None
    except OSError:
        return None


def give_back_memory() -> None:
    """Return to the system what was freed. glibc keeps it where it lies between what is still in use, and packing one
    weight after the other leaves more of it than there is of packed weights."""
    if (library := c_library()) is not None:
        library.malloc_trim(0)


def available_memory(device: torch.device) -> int | None:
    """Free bytes where the model is (and, on a CPU, what can be freed); None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type == "cpu" and meminfo.is_file():
        values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(values["MemAvailable"].split()[0]) * 1024
    if device.type == "cpu" and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
