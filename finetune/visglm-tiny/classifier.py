"""The ViT while it learns to name."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tower import tower_config
from world import AMBIGUOUS, BACKGROUND, COLOURS, Scenes

from visglm import VisGLMImageProcessor
from visglm.vision import build_vit

MEAN = torch.tensor(VisGLMImageProcessor.image_mean).view(3, 1, 1)
STD = torch.tensor(VisGLMImageProcessor.image_std).view(3, 1, 1)


def pixel_values(pictures: Tensor) -> Tensor:
    """RGB pictures `[batch, 3, height, width]` from 0 to 1 as the image processor makes them, laid out for speed."""
    return ((pictures - MEAN.to(pictures.device)) / STD.to(pictures.device)).contiguous(
        memory_format=torch.channels_last
    )


class Classifier(nn.Module):
    """The ViT with linear heads: names of whole pictures, names and colours of cells, names of what its stem sees."""

    def __init__(self, num_concepts: int):
        super().__init__()
        config = tower_config()
        self.num_concepts = num_concepts
        self.vit = build_vit(config)
        self.stem_head = nn.Linear(config.hidden_size, num_concepts)
        self.whole_head = nn.Linear(config.hidden_size, num_concepts)
        self.cell_head = nn.Linear(config.hidden_size, num_concepts + 1)
        self.colour_head = nn.Linear(config.hidden_size, len(COLOURS))

    def stem(self, pictures: Tensor) -> Tensor:
        """Logits `[batch, concepts]` of the stem alone."""
        return self.stem_head(self.vit.patch_embed(pixel_values(pictures)).mean((1, 2)))

    def forward(self, pictures: Tensor) -> Tensor:
        """Features `[batch, 1 + cells, hidden_size]`, the class token first."""
        return self.vit(pixel_values(pictures))

    def name(self, pictures: Tensor) -> Tensor:
        """Logits `[batch, concepts]` of whole pictures."""
        return self.whole_head(self(pictures)[:, 0])

    def losses(self, features: Tensor, scenes: Scenes) -> dict[str, Tensor]:
        """Cross entropy of the names of lone objects, and of names and colours of the cells of all pictures."""
        whole, cells = self.whole_head(features[:, 0]), self.cell_head(features[:, 1:])
        colours = self.colour_head(features[:, 1:])
        alone = scenes.count == 1
        grid_size = math.isqrt(cells.shape[1])
        labels, shades = (of.flatten() for of in scenes.dense_labels(grid_size, scenes.concept, scenes.colour))
        is_empty = labels == BACKGROUND
        per_cell = F.cross_entropy(
            cells.flatten(0, 1),
            labels.masked_fill(is_empty, self.num_concepts),
            ignore_index=AMBIGUOUS,
            reduction="none",
            label_smoothing=0.1,
        )
        return {
            "whole": F.cross_entropy(whole[alone], scenes.concept[alone, 0], label_smoothing=0.1),
            # Half the cells are background and soon known, so they count less.
            "cells": per_cell[labels >= 0].mean() + 0.3 * per_cell[is_empty].mean(),
            # Names alone leave next to nothing of the colours.
            "cell_colours": F.cross_entropy(colours.flatten(0, 1)[shades >= 0], shades[shades >= 0]),
        }
