"""Folders and hub ids → a network and its processor, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch

from .. import auto  # noqa: F401 (from_pretrained goes through the Auto classes)
from ..errors import CheckpointError
from ..model import VisGLMForConditionalGeneration
from ..processor import VisGLMProcessor

EMBEDDED_MODEL = Path(__file__).parents[1] / "assets" / "visglm-tiny"
LARGE_MODEL = 1_000_000_000  # parameters above which float32 on a CPU costs more memory than people expect


def load(
    name_or_path: str | Path | None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    image_size: int | None = None,
) -> tuple[VisGLMForConditionalGeneration, VisGLMProcessor]:
    """Load a model and its processor; the arguments are those of `VisGLM.from_pretrained`.

    Raises:
        CheckpointError: weights are missing, unexpected or of the wrong shape; all problems are listed.
    """
    path = str(EMBEDDED_MODEL if name_or_path is None else name_or_path)
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise CheckpointError(path, ["config.json is missing"], "Name the folder that holds config.json and weights.")
    model, report = VisGLMForConditionalGeneration.from_pretrained(
        path, dtype=torch.float32 if dtype == "auto" else dtype, output_loading_info=True
    )
    problems = [
        f"{kind.removesuffix('_keys')}: {key}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for key in sorted(map(str, report[kind]))
    ]
    if problems:
        raise CheckpointError(path, problems, "Nothing was loaded. Download the folder again, whole.")
    processor = VisGLMProcessor.from_pretrained(path)
    if image_size is not None:
        processor.image_processor.size = {"height": image_size, "width": image_size}
    target = pick_device(device)
    if dtype == "auto":
        model = model.to(pick_dtype(target, model.num_parameters()))
    return model.to(target), processor


def pick_device(device: str | torch.device) -> torch.device:
    """The device asked for, or the fastest there is."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(device: torch.device, num_parameters: int) -> torch.dtype:
    """bfloat16 on accelerators and for large models, float32 for small ones on a CPU."""
    if device.type == "cpu" and num_parameters < LARGE_MODEL:
        return torch.float32
    return torch.bfloat16
