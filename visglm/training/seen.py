"""Visual tokens of pictures that a frozen vision encoder has looked at before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MAX_BYTES = 256 << 20  # of visual tokens that are kept: of VisualGLM-6B about 500 pictures in float32, of others more


class SeenPictures:
    """A vision encoder that runs once for each picture; what no longer fits is computed anew each time.

    The first pictures are kept, not the last: a run goes through all of them in every epoch, and the last ones would be
    gone before they come again.

    Args:
        encoder: `pixel_values` to visual tokens, frozen and without dropout.
        max_bytes: of what is kept, on the CPU; by default `MAX_BYTES`.
    """

    def __init__(self, encoder: nn.Module, max_bytes: int | None = None):
        self.encoder = encoder
        self.max_bytes = MAX_BYTES if max_bytes is None else max_bytes
        self.kept: dict[bytes, Tensor] = {}
        self.num_bytes = 0

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor, names: Sequence[bytes]) -> Tensor:
        """Visual tokens `[num_images, num_query_tokens, hidden_size]` of `pixel_values [num_images, 3, height, width]`.

        Args:
            names: of the pictures, by their content.
        """
        new = list(dict.fromkeys(name for name in names if name not in self.kept))
        found = (
            dict(zip(new, self.encoder(pixel_values[[names.index(name) for name in new]]), strict=True)) if new else {}
        )
        tokens = [found[name] if name in found else self.kept[name].to(pixel_values.device) for name in names]
        for name, value in found.items():
            if self.num_bytes + value.nbytes <= self.max_bytes:
                self.kept[name] = value.clone().cpu()  # not a view of the whole batch
                self.num_bytes += value.nbytes
        return torch.stack(tokens)
