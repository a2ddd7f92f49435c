"""Second stage: teach the whole ViT to name what it sees, before any language is involved.

    python pretrain_vision.py DATA OUTPUT

`OUTPUT` holds the stem of the first stage. From pictures of one to four objects each cell of the feature map learns
which concept covers it, and the class token the name of a lone object. The heads are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import arguments_parser, normalize, parameter_groups, train
from torch import Tensor, nn
from world import AMBIGUOUS, BACKGROUND, Scenes, SceneStream, World

from visglm import PRESETS, VisGLMVisionConfig
from visglm.vision import build_vit


class Classifier(nn.Module):
    """The ViT with a linear head for whole pictures and one for cells, and one for the pictures its stem sees."""

    def __init__(self, num_concepts: int):
        super().__init__()
        config = VisGLMVisionConfig(**PRESETS["visglm-tiny"]["vision_config"])
        self.image_size, self.patch_size = config.image_size, config.patch_size
        self.num_concepts = num_concepts
        self.vit = build_vit(config)
        self.stem_head = nn.Linear(config.hidden_size, num_concepts)
        self.whole_head = nn.Linear(config.hidden_size, num_concepts)
        self.cell_head = nn.Linear(config.hidden_size, num_concepts + 1)

    def stem(self, pictures: Tensor) -> Tensor:
        """Logits `[batch, concepts]` of the stem alone."""
        patches = self.vit.patch_embed(normalize(pictures).contiguous(memory_format=torch.channels_last))
        return self.stem_head(patches.mean((1, 2)))

    def forward(self, pictures: Tensor) -> Tensor:
        """Features `[batch, 1 + cells, hidden_size]`, the class token first."""
        return self.vit(normalize(pictures).contiguous(memory_format=torch.channels_last))

    def name(self, pictures: Tensor) -> Tensor:
        """Logits `[batch, concepts]` of whole pictures."""
        return self.whole_head(self(pictures)[:, 0])

    def losses(self, features: Tensor, scenes: Scenes) -> dict[str, Tensor]:
        """Cross entropy of the names of lone objects, and of the cells of all pictures."""
        whole, cells = self.whole_head(features[:, 0]), self.cell_head(features[:, 1:])
        alone = scenes.count == 1
        labels = scenes.dense_labels(self.image_size // self.patch_size).flatten()
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
        }


@torch.no_grad()
def accuracy(name: Callable[[Tensor], Tensor], world: World) -> float:
    """Share of lone, centred, unaugmented pictures that `name`, pictures to logits, gets right."""
    hits = 0
    for chosen in torch.arange(len(world.sprites)).split(256):
        scenes = world.draw(torch.ones_like(chosen), chosen[:, None].expand(-1, 4))
        hits += int((name(scenes.pictures).argmax(-1) == world.concept[chosen]).sum())
    return hits / len(world.sprites)


def look(model: Classifier, name: Callable[[Tensor], Tensor], world: World, output: Path) -> dict[str, float]:
    """Keep the weights so far, and measure them on pictures that are looked at, never learnt from."""
    torch.save(model.state_dict(), output)
    model.eval()
    share = accuracy(name, world)
    model.train()
    return {"openmoji_accuracy": share}


def main() -> None:
    parser = arguments_parser(__doc__, steps=3000)
    parser.add_argument("--batch-size", type=int, default=48)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    size = PRESETS["visglm-tiny"]["vision_config"]["image_size"]
    world = World(arguments.data / "train.npz", image_size=size, seed=arguments.seed + 1)
    unseen = World(arguments.data / "openmoji.npz", image_size=size, seed=1, augment=False)
    model = Classifier(int(world.concept.max()) + 1).to(memory_format=torch.channels_last)
    model.load_state_dict(torch.load(arguments.output / "stem.pt", weights_only=True))
    scenes_of = iter(SceneStream(world, arguments.batch_size).loader())
    rate = arguments.learning_rate
    blocks = [module for name, module in model.vit.named_children() if name != "patch_embed"]
    groups = parameter_groups(model.vit.patch_embed, lr=0.3 * rate)
    groups += parameter_groups(nn.ModuleList([*blocks, model.whole_head, model.cell_head]))
    groups.append({"params": [model.vit.cls_token, model.vit.pos_embed], "weight_decay": 0.0})

    def step_loss() -> dict[str, Tensor]:
        scenes = next(scenes_of)
        return model.losses(model(scenes.pictures), scenes)

    optimizer = torch.optim.AdamW(groups, lr=rate)
    every = (200, lambda: look(model, model.name, unseen, arguments.output / "classifier.pt"))
    train(optimizer, step_loss, arguments.steps, arguments.output / "pretrain_vision.jsonl", every)


if __name__ == "__main__":
    main()
