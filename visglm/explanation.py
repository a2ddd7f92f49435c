"""A heat map over a picture, whoever computed it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .errors import PromptError, counted
from .prompt import Turn
from .reply import thumbnail_url

# Heat 0 to 1 → RGB, evenly spaced: dark blue, violet, orange, pale yellow. Light grows with heat throughout, so that
# the map reads without colour vision too.
PALETTE = np.array([(13, 8, 75), (110, 20, 140), (200, 60, 100), (248, 140, 50), (252, 235, 110)], np.float32)
OVERLAY_SIZE = 1024  # longest side of an overlay, in pixels: a few dozen patches lie on it, whatever the picture's size


@dataclass(frozen=True)
class Explanation:
    """A heat map over one picture. Notebooks show it over the picture.

    Args:
        heat: `[rows, columns]`, one value per patch of the image encoder, 0 to 1: how much the answer drew on it,
            relative to the patch it drew on most. The grid lies over the whole picture, stretched to its shape.
        image: the picture, RGB.
        answer: the answer that is explained.
    """

    heat: np.ndarray
    image: Image.Image
    answer: str

    def overlay(self, image: Image.Image | None = None, strength: float = 0.75) -> Image.Image:
        """The heat map over the picture, RGB, in the picture's size, its longer side `OVERLAY_SIZE` at most.

        Args:
            image: what to lay it over; None for the picture that was explained.
            strength: opacity of the hottest place, 0 to 1; cold places leave the picture nearly as it is.
        """
        picture = self.image if image is None else image
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        largest = max(picture.size)
        if largest > OVERLAY_SIZE:
            size = [max(1, round(side * OVERLAY_SIZE / largest)) for side in picture.size]
            picture = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC, reducing_gap=2.0)
        heat = np.asarray(Image.fromarray(self.heat).resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)
        place = heat * (len(PALETTE) - 1)
        low = np.minimum(place.astype(int), len(PALETTE) - 2)
        colour = PALETTE[low] + (PALETTE[low + 1] - PALETTE[low]) * (place - low)[..., None]
        opacity = strength * (0.35 + 0.65 * heat)[..., None]
        return Image.fromarray((np.asarray(picture) * (1 - opacity) + colour * opacity).round().astype(np.uint8))

    def _repr_html_(self) -> str:
        overlay = thumbnail_url(self.overlay())
        return f'<figure><img src="{overlay}"><figcaption>{html.escape(self.answer)}</figcaption></figure>'


def check_pictures(turns: Sequence[Turn], images: Sequence[Image.Image], picture: int, *, has_eyes: bool) -> None:
    """Raise `PromptError` where there is nothing to explain, or no such picture in the conversation."""
    if not has_eyes:
        raise PromptError("this is a text-only model: it looked at no picture, so there is nothing to explain.")
    num_images = sum(turn.num_images for turn in turns)
    if len(images) != num_images or not -num_images <= picture < num_images:
        raise PromptError(
            f"the conversation has {counted(num_images, 'picture')}; got {len(images)}, and number {picture} to "
            "explain. Pass all of them in order, those of the history first."
        )


def count_new(images: Sequence[Image.Image], turns: Sequence[Turn]) -> int:
    """How many of a conversation's pictures came with its last question, behind those of the `turns` before.

    Raises:
        PromptError: there are fewer than the turns had, or none at all.
    """
    num_past = sum(turn.num_images for turn in turns)
    if not images or len(images) < num_past:
        raise PromptError(
            f"explain needs all pictures of the conversation, at least one; got {len(images)}, and the history "
            f"has {num_past}. Pass those of the history first, then the new ones."
        )
    return len(images) - num_past
