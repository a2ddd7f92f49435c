"""Folders and hub ids → a network and its processor, whole or not at all.

`open_source(path)` recognises a checkpoint's format and gives it as a `Source`: native names and tensors, lazily;
`assemble(source, …)` makes the network. A new format is one `Source` and one row of `FORMATS`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .. import auto  # noqa: F401 (processors are found through the Auto classes)
from ..errors import CheckpointError, ConfigError
from ..model import VisGLMForConditionalGeneration
from ..processor import VisGLMProcessor
from .adapter import (
    EMBEDDED_MODEL,
    activate,
    active,
    attach,
    attached,
    disabled,
    is_adapter,
    merge,
    read_metadata,
    save_adapter,
)
from .assemble import Prepare, assemble, build, check, fill
from .convert import EXPORTS, HERE, convert, save
from .estimate import Estimate, estimate
from .files import DamagedFile, TensorInfo
from .hub import find_folder
from .inspect import Check, inspect
from .layouts import FORMATS, recognise
from .layouts.legacy import SatSource
from .made import QuantizedSource, RandomSource
from .parts import PartsSource
from .quantized import assemble_quantized, choose_quantization
from .sat_adapter import attach_sat_adapter
from .source import Source

LARGE_MODEL = 1_000_000_000  # parameters above which float32 on a CPU costs more memory than people expect

__all__ = [
    "EMBEDDED_MODEL", "EXPORTS", "FORMATS", "Check", "Estimate", "PartsSource", "Prepare", "QuantizedSource",
    "RandomSource", "Source", "TensorInfo", "activate", "active", "assemble", "assemble_quantized", "attach",
    "attached", "build", "check", "choose_quantization", "convert", "count_parameters", "disabled", "estimate", "fill",
    "inspect", "is_adapter", "load", "merge", "open_source", "pick_device", "pick_dtype", "realize", "save",
    "save_adapter", "torch_dtype",
]  # fmt: skip


def open_source(name_or_path: str | Path | None, tokenizer: str | Path | None = None) -> Source:
    """The checkpoint in a folder, of whatever format; no weights are read yet.

    Args:
        name_or_path: folder or hub id; None for the embedded visglm-tiny.
        tokenizer: folder to take the tokenizer from, for checkpoints that come without.

    Raises:
        CheckpointError: there is no checkpoint, its format is unknown, or there are two; a hub id cannot be downloaded.
    """
    path = EMBEDDED_MODEL if name_or_path is None else find_folder(name_or_path)
    try:
        return recognise(path).open(path, None if tokenizer is None else find_folder(tokenizer))
    except DamagedFile as error:
        raise CheckpointError(path, [str(error)], "Download the folder again, whole.") from error


def load(
    name_or_path: str | Path | None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    image_size: int | None = None,
    tokenizer: str | Path | None = None,
    quantize: str | None = None,
    quantize_vision: bool = False,
) -> tuple[VisGLMForConditionalGeneration, VisGLMProcessor]:
    """Load a model and its processor; the arguments are those of `VisGLM.from_pretrained`.

    Raises:
        CheckpointError: weights are missing, unexpected or of the wrong shape; all problems are listed.
        ConfigError: `quantize` is no known scheme, the checkpoint is quantized already to another one, or `image_size`
            is no multiple of the patch size.
    """
    adapter = name_or_path if name_or_path is not None and is_adapter(name_or_path) else None
    base = read_metadata(adapter)["base"] if adapter is not None else HERE
    if adapter is not None and base != HERE:
        trained_over = (read_metadata(adapter)["quantization"] or {}).get("scheme")
        if quantize is None and trained_over and open_source(base, tokenizer).config.quantization is None:
            quantize = trained_over  # the base that the adapter knows, whose rounding it may have made up for
        model, processor = load(
            base, device=device, dtype=dtype, image_size=image_size, tokenizer=tokenizer, quantize=quantize,
            quantize_vision=quantize_vision,
        )  # fmt: skip
        attach(model, adapter)
        return model, processor
    source = open_source(name_or_path, tokenizer)
    model, processor = realize(
        source, device=device, dtype=dtype, image_size=image_size, quantize=quantize, quantize_vision=quantize_vision
    )
    if isinstance(source, SatSource):
        attach_sat_adapter(model, source)
    elif adapter is not None:
        attach(model, adapter)
        attached(model)["default"].beside_base = True
    return model, processor


def realize(
    source: Source,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    image_size: int | None = None,
    quantize: str | None = None,
    quantize_vision: bool = False,
) -> tuple[VisGLMForConditionalGeneration, VisGLMProcessor]:
    """A source's network and processor, without adapters; arguments and errors as those of `load`."""
    quantization = choose_quantization(source.config, quantize, quantize_vision)
    target = pick_device(device)
    if dtype == "auto":
        dtype = pick_dtype(target, count_parameters(source))
    processor = source.processor()
    if image_size is not None:
        if source.config.vision_config is not None:
            source.config.vision_config.check_image_size(image_size)
        processor.image_processor.size = {"height": image_size, "width": image_size}
    if quantization is not None:
        model = assemble_quantized(source, quantization, device=target, dtype=torch_dtype(dtype))
    else:
        model = assemble(source, device=target, dtype=torch_dtype(dtype))
    return model, processor


def count_parameters(source: Source) -> int:
    """Numbers in the checkpoint."""
    return sum(torch.Size(info.shape).numel() for info in source.keys().values())


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
