"""What both training stages do alike."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from visglm import VisGLMImageProcessor

MEAN = torch.tensor(VisGLMImageProcessor.image_mean).view(3, 1, 1)
STD = torch.tensor(VisGLMImageProcessor.image_std).view(3, 1, 1)


def normalize(pictures: Tensor) -> Tensor:
    """`pixel_values` of RGB pictures `[batch, 3, height, width]` from 0 to 1, as the image processor makes them."""
    return (pictures - MEAN) / STD


def parameter_groups(module: nn.Module, weight_decay: float = 0.05) -> list[dict]:
    """Trainable parameters for an optimizer: matrices decay, biases and norms do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


class Cosine(LambdaLR):
    """Linear warm-up over the first 3 % of the steps, then a cosine to zero."""

    def __init__(self, optimizer: torch.optim.Optimizer, num_steps: int):
        def factor(step: int) -> float:
            progress = step / num_steps
            return min(progress / 0.03, 1) * 0.5 * (1 + math.cos(math.pi * progress))

        super().__init__(optimizer, factor)


def write_row(path: Path, **row: float) -> None:
    """Append one line to a JSONL log."""
    with path.open("a") as log:
        print(json.dumps(row), file=log)
