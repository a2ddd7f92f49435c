"""What is found out before a run starts: what there is to learn, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import DataError, TrainingError, VisGLMError
from ..model import VisGLMForConditionalGeneration
from ..prompt import IGNORE_INDEX
from ..quant.memory import available_memory
from .collator import Collator
from .data import TrainingData
from .methods import trainable

__all__ = ["Preflight", "available_memory", "check_memory", "describe", "estimate_memory", "scan", "try_longest"]

NUM_SCANNED = 20_000  # examples whose length is measured; of larger sets an even sample
ADAM_BYTES = 4 + 8  # gradient and two moments of a float32 parameter
# Numbers kept per token and unit of width of a layer for the way back, about: inputs of its products and its scores.
KEPT_PER_LAYER, KEPT_WHEN_CHECKPOINTING = 24, 1


@dataclass(frozen=True)
class Preflight:
    """What a look at the examples has found.

    Args:
        num_supervised: tokens that are learnt, in all or by a sample. longest: place of the longest example, and its
            `longest_length` in tokens. num_cut: examples that do not fit whole.
    """

    num_supervised: int
    longest: int
    longest_length: int
    num_cut: int
    num_scanned: int


def scan(data: TrainingData) -> Preflight:
    """Render examples, without their pictures.

    Raises:
        DataError: there is no token to learn.
    """
    step = -(-len(data) // NUM_SCANNED)
    num_supervised = num_cut = longest = longest_length = 0
    for place in range(0, len(data), step):
        try:
            rendered, is_cut = data.rendered(place)
        except VisGLMError:  # too long; training leaves it out and names it
            continue
        num_supervised += sum(label != IGNORE_INDEX for label in rendered.labels)
        num_cut += is_cut
        if len(rendered.input_ids) > longest_length:
            longest, longest_length = place, len(rendered.input_ids)
    if not num_supervised:
        raise DataError("there is no token to learn in the training rows: every answer is empty or cut away.")
    return Preflight(num_supervised, longest, longest_length, num_cut, -(-len(data) // step))


def estimate_memory(
    model: VisGLMForConditionalGeneration, length: int, batch_size: int, gradient_checkpointing: bool
) -> dict[str, int]:
    """Bytes that training takes at its peak, by what takes them; activations within a factor of two or so."""
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    text = model.config.text_config
    dtype_bytes = torch.finfo(model.dtype).bits // 8
    kept = KEPT_WHEN_CHECKPOINTING if gradient_checkpointing else KEPT_PER_LAYER
    per_token = text.num_hidden_layers * text.hidden_size * kept * dtype_bytes + text.vocab_size * 3 * 4
    return {
        "weights": weights,
        "gradients and optimizer": sum(p.numel() for p in trainable(model).values()) * ADAM_BYTES,
        "activations": batch_size * length * per_token,
    }


def check_memory(estimate: Mapping[str, int], available: int | None) -> None:
    """Refuse to start what cannot fit: the weights are there already, the rest must find room.

    Raises:
        TrainingError: the rest is larger than what is free.
    """
    needed = sum(estimate.values()) - estimate["weights"]
    if available is not None and needed > available:
        parts = ", ".join(f"{name} {size / 2**30:.1f} GiB" for name, size in estimate.items())
        raise TrainingError(
            f"training needs about {needed / 2**30:.1f} GiB beside the weights ({parts}), and "
            f"{available / 2**30:.1f} GiB are free. Lower batch_size or max_length, switch gradient_checkpointing on, "
            "or choose a method that trains less (lora, qlora)."
        )


def describe(found: Preflight, estimate: Mapping[str, int], available: int | None) -> str:
    """What is to be learnt and what it takes, as people read it before the run starts."""
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in estimate.items())
    free = f"; {available / 1e9:.1f} GB are free beside the weights" if available is not None else ""
    return (
        f"{found.num_supervised} tokens to learn in {found.num_scanned} answers, the longest example has "
        f"{found.longest_length}. Memory, about: {sum(estimate.values()) / 1e9:.2f} GB ({parts}){free}."
    )


def try_longest(model: nn.Module, data: TrainingData, place: int, collator: Collator, precision: str) -> float:
    """One forward and backward on the longest example, leaving no trace; its loss.

    Raises:
        TrainingError: it does not fit into memory, or no gradient comes back.
    """
    batch: dict[str, Any] = collator([data[place]])
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng(), torch.autocast(device.type, dtype, enabled=precision in ("bf16", "fp16")):
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the longest example ({inputs['input_ids'].shape[1]} tokens, {batch['where'][0]}) does not fit into "
            "the GPU's memory. Lower max_length, switch gradient_checkpointing on, or use qlora."
        ) from error
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    value = float(loss.detach())
    if not norms or not all(map(torch.isfinite, map(torch.tensor, [value, *norms]))) or max(norms) == 0:
        raise TrainingError(
            f"the longest example ({batch['where'][0]}) gives the loss {value} and no usable gradient. "
            "Check its answer; with precision fp16, try bf16 or float32."
        )
    return value
