"""First stage: teach the ViT to name what it sees, cell by cell, before any language is involved.

    python pretrain_vision.py DATA OUTPUT

Every picture has one to four objects; each cell of the feature map learns which concept covers it (or none), and the
class token of a lone object learns its name. The convolutional stem learns the same with heads of its own, or the
blocks above it would wait for thousands of steps until it says anything. All heads are thrown away afterwards.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import Cosine, normalize, parameter_groups, write_row
from torch import Tensor, nn
from world import AMBIGUOUS, BACKGROUND, Scenes, SceneStream, World

from visglm import PRESETS, VisGLMVisionConfig
from visglm.vision import build_vit

# Small pictures first: cheaper by a third, and most of what is learnt carries over. (pixels a side, share of the steps)
PHASES = ((64, 0.5), (80, 0.5))


class Classifier(nn.Module):
    """The ViT with two linear heads (whole pictures, cells), and its stem with the same two."""

    def __init__(self, num_concepts: int):
        super().__init__()
        config = VisGLMVisionConfig(**PRESETS["visglm-tiny"]["vision_config"])
        self.patch_size = config.patch_size
        self.num_concepts = num_concepts
        self.vit = build_vit(config)
        self.whole, self.stem_whole = (nn.Linear(config.hidden_size, num_concepts) for _ in range(2))
        self.cells, self.stem_cells = (nn.Linear(config.hidden_size, num_concepts + 1) for _ in range(2))
        self.vit.patch_embed.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, arguments: tuple, patches: Tensor) -> None:
        self.patches = patches.flatten(1, 2)

    def forward(self, pictures: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Logits of whole pictures `[batch, concepts]` and cells `[batch, cells, concepts + 1]`, ViT's and stem's."""
        features = self.vit(normalize(pictures))
        return (
            (self.whole(features[:, 0]), self.cells(features[:, 1:])),
            (self.stem_whole(self.patches.mean(1)), self.stem_cells(self.patches)),
        )

    def losses(self, scenes: Scenes) -> list[Tensor]:
        """Cross entropy of names and cells together, of the ViT and of its stem."""
        alone = scenes.count == 1
        labels = scenes.dense_labels(scenes.pictures.shape[-1] // self.patch_size).flatten()
        is_empty = labels == BACKGROUND
        losses = []
        for whole, cells in self(scenes.pictures.contiguous(memory_format=torch.channels_last)):
            loss_whole = F.cross_entropy(whole[alone], scenes.concept[alone, 0], label_smoothing=0.1)
            per_cell = F.cross_entropy(
                cells.flatten(0, 1),
                labels.masked_fill(is_empty, self.num_concepts),
                ignore_index=AMBIGUOUS,
                reduction="none",
                label_smoothing=0.1,
            )
            # Half the cells are background and soon known, so they count less.
            losses.append(loss_whole + per_cell[labels >= 0].mean() + 0.3 * per_cell[is_empty].mean())
        return losses


@torch.no_grad()
def accuracy(model: Classifier, world: World) -> float:
    """Share of lone, centred, unaugmented pictures whose class token names them."""
    model.eval()
    hits = 0
    for chosen in torch.arange(len(world.sprites)).split(256):
        scenes = world.draw(torch.ones_like(chosen), chosen[:, None].expand(-1, 4))
        hits += int((model(scenes.pictures)[0][0].argmax(-1) == world.concept[chosen]).sum())
    model.train()
    return hits / len(world.sprites)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_flush_denormal(True)
    arguments.output.mkdir(parents=True, exist_ok=True)

    world = World(arguments.data / "train.npz", seed=arguments.seed)
    plain = World(arguments.data / "openmoji.npz", seed=1, augment=False)  # looked at, never learnt from
    model = Classifier(int(world.concept.max()) + 1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=arguments.learning_rate)
    schedule = Cosine(optimizer, arguments.steps)
    log = arguments.output / "pretrain.jsonl"
    log.unlink(missing_ok=True)
    started, step = time.time(), 0
    for image_size, share in PHASES:
        world.image_size = image_size
        scenes_of = iter(SceneStream(world, arguments.batch_size).loader())
        for _ in range(round(share * arguments.steps)):
            scenes = next(scenes_of)
            loss, stem_loss = model.losses(scenes)
            optimizer.zero_grad(set_to_none=True)
            (loss + stem_loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step % 50 == 0:
                row = {"minutes": (time.time() - started) / 60, "loss": loss.item(), "stem_loss": stem_loss.item()}
                if step % 500 == 0:
                    plain.image_size = image_size
                    row["openmoji_accuracy"] = accuracy(model, plain)
                    torch.save(model.state_dict(), arguments.output / "classifier.pt")
                write_row(log, step=step, **row)
    torch.save(model.state_dict(), arguments.output / "classifier.pt")
    write_row(log, step=step, openmoji_accuracy=accuracy(model, plain), minutes=(time.time() - started) / 60)


if __name__ == "__main__":
    main()
