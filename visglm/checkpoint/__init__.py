"""Folders and hub ids → a network and its processor, whole or not at all.

`open_source(path)` recognises a checkpoint's format and gives it as a `Source`: native names and tensors, lazily;
`assemble(source, …)` makes the network. A new format is one `Source` and one row of `FORMATS`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from .. import auto  # noqa: F401 (processors are found through the Auto classes)
from ..adapters import EMBEDDED, HERE, Adapters, Delta, Fingerprint, Home, is_adapter, read_delta
from ..errors import CheckpointError, ConfigError
from ..untrusted import DamagedFile
from .adapter import AdapterSource
from .assemble import Prepare, assemble, build, check, compute_buffers, fill
from .convert import EXPORTS, convert, read_weights, save, save_adapter, save_base, write_as, write_model
from .estimate import Estimate, estimate
from .files import TensorInfo, write_json
from .hub import HUB_ID, find, find_folder
from .inspect import Check, inspect
from .layouts import FORMATS, recognise
from .made import QuantizedSource, RandomSource
from .parts import PartsSource
from .quantized import assemble_quantized, choose_quantization
from .source import Source, refuse_source
from .writer import replacing

LARGE_MODEL = 1_000_000_000  # parameters above which float32 on a CPU costs more memory than people expect

EMBEDDED_MODEL = Path(__file__).parents[1] / "assets" / "visglm-tiny"

__all__ = [
    "EMBEDDED_MODEL", "EXPORTS", "FORMATS", "AdapterSource", "Check", "Estimate", "Loaded", "PartsSource", "Prepare",
    "QuantizedSource", "RandomSource", "Source", "TensorInfo", "assemble", "assemble_quantized", "build", "check",
    "choose_quantization", "compute_buffers", "convert", "count_parameters", "estimate", "fill", "find_delta",
    "inspect", "load", "open_source", "pick_device", "pick_dtype", "read_weights", "realize", "refuse_source",
    "replacing", "save", "save_adapter", "save_base", "stored_dtype", "torch_dtype", "write_as", "write_json",
    "write_model",
]  # fmt: skip


class Loaded(NamedTuple):
    """A network with its processor, and with what is attached to it."""

    model: PreTrainedModel
    processor: Any
    adapters: Adapters


def open_source(
    name_or_path: str | Path | None, tokenizer: str | Path | None = None, base: str | Path | None = None
) -> Source:
    """The checkpoint in a folder, of whatever format; no weights are read yet, but those of an adapter.

    Args:
        name_or_path: folder or hub id, of a model or of an adapter; None for the embedded visglm-tiny.
        tokenizer: folder to take the tokenizer from, for checkpoints that come without.
        base: folder or hub id of an adapter's base, in place of the one that the adapter names.

    Raises:
        CheckpointError: there is no checkpoint, its format is unknown, or there are two; a hub id cannot be downloaded.
        ConfigError: `base` is given for what is no adapter.
    """
    folder, home = (EMBEDDED_MODEL, Home(EMBEDDED)) if name_or_path is None else find(name_or_path)
    vocabulary = None if tokenizer is None else find_folder(tokenizer)
    if not is_adapter(folder):
        if base is not None:
            raise ConfigError(f"base={str(base)!r} is for adapters, and {folder} holds none. Leave it out.")
        return open_base(folder, home, vocabulary)
    delta = read_delta(folder)
    return AdapterSource(folder, delta, open_base(*find_base(folder, delta, base), vocabulary))


def find_delta(name_or_path: str | Path) -> Delta:
    """The adapter in a folder or at a hub id.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    folder = find_folder(name_or_path)
    if not is_adapter(folder):
        raise CheckpointError(folder, ["it holds no adapter"], "Name the folder that fine-tuning made.")
    return read_delta(folder)


def find_base(folder: Path, delta: Delta, base: str | Path | None) -> tuple[Path, Home]:
    """The folder of an adapter's base.

    Raises:
        CheckpointError: it is not on this machine (what only a file names is not downloaded), or is an adapter itself.
    """
    name = delta.base.name
    if base is not None:
        found, home = find(base)
    elif name == HERE:
        return folder, delta.base
    elif name == EMBEDDED:
        found, home = EMBEDDED_MODEL, Home(EMBEDDED)
    elif name.startswith("."):
        found, home = find((folder / name).resolve())
    else:
        try:
            found, home = find(name, delta.base.revision, download=False)
        except CheckpointError:
            found, home = Path(name), delta.base
    if not found.is_dir():
        at = f" (revision {delta.base.revision})" if delta.base.revision else ""
        raise CheckpointError(
            folder, [f"its base, {name}{at}, is not on this machine"],
            "Name the base yourself: VisGLM.from_pretrained(folder, base=…), or --base on the command line, with its "
            "folder here or its hub id" + (", which downloads it." if HUB_ID.fullmatch(name) else "."),
        )  # fmt: skip
    if is_adapter(found):
        raise CheckpointError(
            folder, [f"its base, {found}, is an adapter's folder itself"],
            "An adapter lies over a whole model: merge that one first, and name the result as the base.",
        )  # fmt: skip
    return found, home


def open_base(folder: Path, home: Home, tokenizer: Path | None = None) -> Source:
    """The model in a folder, whatever adapter lies beside it."""
    try:
        source = recognise(folder).open(folder, tokenizer)
    except DamagedFile as error:
        raise CheckpointError(folder, [str(error)], "Download the folder again, whole.") from error
    if source.delta() is None:  # else only the folder with both can be found again
        source.home = home
    return source


def load(
    name_or_path: str | Path | None,
    *,
    base: str | Path | None = None,
    tokenizer: str | Path | None = None,
    **options: Any,
) -> Loaded:
    """Load a model, its processor and its adapter; the arguments are those of `VisGLM.from_pretrained`.

    Raises:
        CheckpointError: weights are missing, unexpected or of the wrong shape; all problems are listed.
        ConfigError: `quantize` is no known scheme, the checkpoint is quantized already to another one, or `image_size`
            is no multiple of the patch size.
    """
    return realize(open_source(name_or_path, tokenizer, base), **options)


def realize(
    source: Source,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    image_size: int | None = None,
    quantize: str | None = None,
    quantize_vision: bool = False,
) -> Loaded:
    """What `source` describes, in memory; arguments and errors as those of `load`."""
    delta = source.delta()
    quantization = choose_quantization(source, quantize, quantize_vision)
    target = pick_device(device)
    if dtype == "auto":
        dtype = pick_dtype(target, count_parameters(source))
    processor = source.processor()
    if image_size is not None:
        processor.set_image_size(image_size, source.config)
    options: dict[str, Any] = {"device": target, "dtype": torch_dtype(dtype), "fingerprint": Fingerprint()}
    if quantization is not None:
        model = assemble_quantized(source, quantization, **options)
    else:
        model = assemble(source, **options)
    home = replace(source.home, fingerprint=options["fingerprint"].hex())
    adapters = Adapters(model, home)
    if delta is not None:
        adapters.attach(delta, where=source.path)
    return Loaded(model, processor, adapters)


def count_parameters(source: Source) -> int:
    """Numbers in the checkpoint."""
    return sum(torch.Size(info.shape).numel() for info in source.keys().values())


def stored_dtype(source: Source) -> torch.dtype:
    """Of the floating-point weights of a checkpoint; float32 where there are several."""
    found = {info.dtype for info in source.keys().values() if info.dtype.is_floating_point}
    return found.pop() if len(found) == 1 else torch.float32


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """`torch.float16` from itself or from `"float16"`.

    Raises:
        ConfigError: there is no such type.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ConfigError(f'dtype must be "auto" or a torch dtype such as "bfloat16"; got {dtype!r}.')
    return found


def pick_device(device: str | torch.device) -> torch.device:
    """The device asked for, or the fastest there is.

    Raises:
        ConfigError: there is no such device here.
    """
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f'device {device!r} cannot be used ({reason}). "auto" takes the fastest there is.'
            ) from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(device: torch.device, num_parameters: int) -> torch.dtype:
    """bfloat16 on accelerators, and on CPUs that compute in it for models too large for float32; else float32.

    Where a CPU has no bfloat16 instructions, products in it are emulated: 0.3 GFLOP/s were measured against 55.
    """
    if device.type == "cpu" and (num_parameters < LARGE_MODEL or not cpu_has_bfloat16()):
        return torch.float32
    return torch.bfloat16


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself (AVX-512 BF16, AMX, or Arm's BF16)."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
