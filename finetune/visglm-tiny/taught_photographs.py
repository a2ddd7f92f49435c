"""Photographs to learn from: alone and in collages, a little different each time. None of them is held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from concepts import Concept
from photographs import Photograph, read_folder
from PIL import Image
from torch import Tensor
from tower import WHOLE_SIZE as SIDE
from world import COLOURS, MAX_OBJECTS, MAX_TOLD, Scenes

CENTRES = {
    2: (((0.25, 0.5), (0.75, 0.5)), ((0.5, 0.25), (0.5, 0.75))),
    3: (((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)),),
    4: (((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)),),
}


class TaughtPhotographs:
    """Batches of photographs with what is in them.

    Args:
        folder: with `photos.tsv`. concepts: their names are found among these. seed: of what is drawn.
    """

    def __init__(self, folder: Path, concepts: Sequence[Concept], seed: int):
        index = {concept.english[0]: number for number, concept in enumerate(concepts)}
        taught = [photograph for photograph in read_folder(folder) if not photograph.held_out]
        self.pictures = torch.stack([squared(photograph) for photograph in taught])
        self.concept = torch.tensor([index[photograph.english[0]] for photograph in taught])
        self.colour = torch.tensor([COLOURS.index(p.colour) if p.colour else -1 for p in taught])
        # Every name alike often, however many photographs there are of it.
        self.weight = 1 / self.concept.bincount()[self.concept].float()
        self.random = torch.Generator().manual_seed(seed)

    def choose(self, num: int) -> Tensor:
        return torch.multinomial(self.weight, num, replacement=True, generator=self.random)

    def next(self, num_alone: int, num_collages: int) -> Scenes:
        """So many photographs of one thing, then collages of two to four of them."""
        parts = [self.alone(num_alone), self.collages(num_collages)]
        fields = ("count", "concept", "centre", "colour", "pictures")
        return Scenes(*(torch.cat([getattr(part, field) for part in parts]) for field in fields))

    def alone(self, num: int) -> Scenes:
        chosen = self.choose(num)
        scenes = empty_scenes(num)
        scenes.count[:] = 1
        scenes.concept[:, 0], scenes.colour[:, 0], scenes.centre[:, 0] = self.concept[chosen], self.colour[chosen], 0.5
        scenes.pictures = self.vary(self.pictures[chosen].float() / 255, SIDE)
        return scenes

    def collages(self, num: int) -> Scenes:
        scenes = empty_scenes(num)
        scenes.count[:] = torch.randint(2, MAX_TOLD + 1, (num,), generator=self.random)
        scenes.pictures = torch.rand(num, 3, 1, 1, generator=self.random).round().expand(-1, -1, SIDE, SIDE).clone()
        for row, count in enumerate(scenes.count.tolist()):
            layouts = CENTRES[count]
            layout = layouts[int(torch.randint(len(layouts), (1,), generator=self.random))]
            cells = torch.randperm(len(layout), generator=self.random)[:count]
            chosen = self.choose(count)
            side = int(SIDE * (0.34 + 0.15 * torch.rand(1, generator=self.random)))
            shown = self.vary(self.pictures[chosen].float() / 255, side)
            for slot, (cell, picture) in enumerate(zip(cells.tolist(), shown, strict=True)):
                x, y = layout[cell]
                left, top = round(x * SIDE - side / 2), round(y * SIDE - side / 2)
                scenes.pictures[row, :, top : top + side, left : left + side] = picture
                scenes.centre[row, slot] = torch.tensor([x, y])
            scenes.concept[row, :count], scenes.colour[row, :count] = self.concept[chosen], self.colour[chosen]
        return scenes

    def vary(self, pictures: Tensor, side: int) -> Tensor:
        """Cut, mirrored, brighter or darker: `[num, 3, side, side]`."""
        num = len(pictures)
        scale = 0.7 + 0.3 * torch.rand(num, generator=self.random)
        mirror = (torch.rand(num, generator=self.random) < 0.5).float() * 2 - 1
        shift = (torch.rand(num, 2, generator=self.random) * 2 - 1) * (1 - scale)[:, None]
        zero = torch.zeros(num)
        matrix = torch.stack(
            [torch.stack([scale * mirror, zero, shift[:, 0]], -1), torch.stack([zero, scale, shift[:, 1]], -1)], 1
        )
        grid = F.affine_grid(matrix, [num, 3, side, side], align_corners=False)
        shown = F.grid_sample(pictures, grid, align_corners=False, padding_mode="reflection")
        light = 0.8 + 0.4 * torch.rand(num, 1, 1, 1, generator=self.random)
        return (shown * light).clamp(0, 1)


def empty_scenes(num: int) -> Scenes:
    nothing = torch.full((num, MAX_OBJECTS), -1)
    return Scenes(torch.zeros(num, dtype=torch.long), nothing, torch.zeros(num, MAX_OBJECTS, 2), nothing.clone())


def squared(photograph: Photograph) -> Tensor:
    """`[3, 256, 256]` uint8, squashed as the image processor does it."""
    picture = photograph.open().resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
