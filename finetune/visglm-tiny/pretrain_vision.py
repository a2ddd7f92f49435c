"""First stage: teach the ViT to name what it sees, cell by cell, before any language is involved.

    python pretrain_vision.py DATA OUTPUT --minutes 30

Every picture has one to four objects; each cell of the feature map learns which concept covers it (or none), and the
class token of a lone object learns its name. The heads are thrown away afterwards.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from world import AMBIGUOUS, BACKGROUND, World

from visglm import VisGLMVisionConfig
from visglm.config import PRESETS
from visglm.preprocess import VisGLMImageProcessor
from visglm.vision import build_vit

MEAN = torch.tensor(VisGLMImageProcessor.image_mean).view(3, 1, 1)
STD = torch.tensor(VisGLMImageProcessor.image_std).view(3, 1, 1)


class Classifier(nn.Module):
    """The ViT with one linear head for the class token and one for the cells."""

    def __init__(self, num_concepts: int):
        super().__init__()
        config = VisGLMVisionConfig(**PRESETS["visglm-tiny"]["vision_config"])
        self.grid_size = config.image_size // config.patch_size
        self.vit = build_vit(config)
        self.whole = nn.Linear(config.hidden_size, num_concepts)
        self.cells = nn.Linear(config.hidden_size, num_concepts + 1)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.vit((pictures - MEAN) / STD)
        return self.whole(features[:, 0]), self.cells(features[:, 1:])


@torch.no_grad()
def accuracy(model: Classifier, world: World) -> float:
    """Share of lone, centred, unaugmented pictures whose class token names them."""
    model.eval()
    hits = 0
    for chosen in torch.arange(len(world.sprites)).split(256):
        scenes = world.draw(torch.ones_like(chosen), chosen[:, None].expand(-1, 4))
        hits += int((model(scenes.pictures)[0].argmax(-1) == world.concept[chosen]).sum())
    model.train()
    return hits / len(world.sprites)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=30, help="wall time to train for")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_flush_denormal(True)
    arguments.output.mkdir(parents=True, exist_ok=True)

    world = World(arguments.data / "train.npz", seed=arguments.seed)
    num_concepts = int(world.concept.max()) + 1
    model = Classifier(num_concepts).to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=arguments.learning_rate
    )
    started, step, log = time.time(), 0, open(arguments.output / "pretrain.jsonl", "w")
    while (progress := (time.time() - started) / 60 / arguments.minutes) < 1:
        # Linear warm-up over 2 % and cosine to zero, by the clock.
        cosine = 0.5 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item())
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * min(progress / 0.02, 1) * cosine
        scenes = world.sample(arguments.batch_size)
        labels = scenes.dense_labels(model.grid_size).flatten(1)
        cell_labels = torch.where(labels == BACKGROUND, num_concepts, labels)
        with torch.autocast("cpu", torch.bfloat16):
            whole, cells = model(scenes.pictures.contiguous(memory_format=torch.channels_last))
        alone = scenes.count == 1
        loss_whole = F.cross_entropy(whole[alone].float(), scenes.concept[alone, 0], label_smoothing=0.1)
        # Half the cells are background and soon known: weigh each half alike.
        per_cell = F.cross_entropy(
            cells.float().flatten(0, 1),
            cell_labels.flatten(),
            ignore_index=AMBIGUOUS,
            reduction="none",
            label_smoothing=0.1,
        )
        is_object = cell_labels.flatten().ge(0) & cell_labels.flatten().ne(num_concepts)
        is_empty = cell_labels.flatten().eq(num_concepts)
        loss_cells = per_cell[is_object].mean() + 0.3 * per_cell[is_empty].mean()
        loss = loss_whole + loss_cells
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            row = {
                "step": step, "minutes": (time.time() - started) / 60, "whole": loss_whole.item(), "cells": loss_cells.item(),
                "batch_accuracy": (whole[alone].argmax(-1) == scenes.concept[alone, 0]).float().mean().item(),
            }  # fmt: skip
            print(json.dumps(row), file=log, flush=True)
            torch.save(model.vit.state_dict(), arguments.output / "vit.pt")
    torch.save(model.vit.state_dict(), arguments.output / "vit.pt")
    torch.save(model.state_dict(), arguments.output / "classifier.pt")
    plain = World(arguments.data / "train.npz", seed=1, augment=False)
    print(json.dumps({"steps": step, "train_accuracy": accuracy(model, plain)}), file=log, flush=True)


if __name__ == "__main__":
    main()
