"""Models that were really taught: through the Trainer, a few steps, on pictures of the examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.tiny import GOLDEN_HF
from visglm import VisGLM

ROOT = Path(__file__).parents[2]
ROWS = [
    {"image": str(ROOT / "examples/cat.png"), "caption": "do the app"},
    {"image": str(ROOT / "examples/pair.png"), "caption": "描述"},
]
SHORT: dict[str, Any] = {
    "max_steps": 2, "held_out": 0.0, "num_samples": 0, "num_workers": 0, "report_to": "none", "learning_rate": 1e-2,
    "warmup": 0.0, "replay": 0.0,
}  # fmt: skip


def golden(**options: Any) -> VisGLM:
    """The small random VisualGLM of the golden folder."""
    return VisGLM.from_pretrained(GOLDEN_HF, device="cpu", **options)


def teach(vlm: VisGLM, folder: Path, method: str = "lora", **settings: Any) -> VisGLM:
    vlm.finetune(ROWS, method=method, output_dir=folder, **{**SHORT, **settings})
    return vlm


@torch.no_grad()
def logits(vlm: VisGLM) -> torch.Tensor:
    """Of the first token of an answer about a picture."""
    parts = [{"type": "image", "path": ROWS[0]["image"]}, {"type": "text", "text": "What is this?"}]
    inputs = vlm.processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return vlm.model(**inputs, use_cache=False).logits[0, -1].float()
