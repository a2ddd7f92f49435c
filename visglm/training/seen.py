"""What does not change while a network learns, computed once: visual tokens of pictures, what the base would say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

MAX_BYTES = 256 << 20  # of either: of VisualGLM-6B the visual tokens of about 500 pictures in float32, of others more


class Kept:
    """Tensors by name, on the CPU, as many as fit.

    The first ones are kept, not the last: a run goes through all of them in every epoch, and the last ones would be
    gone before they come again.

    Args:
        max_bytes: of all; by default `MAX_BYTES`.
    """

    def __init__(self, max_bytes: int | None = None):
        self.max_bytes = MAX_BYTES if max_bytes is None else max_bytes
        self.tensors: dict[Any, Tensor] = {}
        self.num_bytes = 0

    def keep(self, name: Any, value: Tensor) -> None:
        if name not in self.tensors and self.num_bytes + value.nbytes <= self.max_bytes:
            self.tensors[name] = value.clone().cpu()  # not a view of a whole batch
            self.num_bytes += value.nbytes


class SeenPictures:
    """A vision encoder that runs once for each picture; what no longer fits is computed anew each time.

    Args:
        encoder: `pixel_values` to visual tokens, frozen and without dropout.
        max_bytes: as `Kept` takes it.
    """

    def __init__(self, encoder: nn.Module, max_bytes: int | None = None):
        self.encoder, self.kept = encoder, Kept(max_bytes)

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor, names: Sequence[bytes]) -> Tensor:
        """Visual tokens `[num_images, num_query_tokens, hidden_size]` of `pixel_values [num_images, 3, height, width]`.

        Args:
            names: of the pictures, by their content.
        """
        kept = self.kept.tensors
        new = list(dict.fromkeys(name for name in names if name not in kept))
        found = (
            dict(zip(new, self.encoder(pixel_values[[names.index(name) for name in new]]), strict=True)) if new else {}
        )
        tokens = [found[name] if name in found else kept[name].to(pixel_values.device) for name in names]
        for name, value in found.items():
            self.kept.keep(name, value)
        return torch.stack(tokens)
