"""What the networks that see make of scenes, kept: what only the bridge and the text model learn from costs no seeing.

    python kept.py DATA OUTPUT PHOTOGRAPHS

The ViT stays as it was inherited, and so does the recogniser's network. The scenes come in parts, each of which is
learnt from as soon as it is there.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from classifier import pixel_values
from common import arguments_parser, build_model, build_tokenizer, fast_products, network_features
from concepts import load_all_concepts
from taught_photographs import TaughtPhotographs
from torch import Tensor
from tower import VIT_SIZE, WHOLE_SIZE
from world import Scenes, World

from visglm.vision import VisionEncoder

DRAWN, PHOTOGRAPHED = 576, 96  # scenes of a part
LOOKED_AT = 96  # further drawings of a part, of which those are kept that the recogniser might take for photographs
MIGHT_BE = -4.6  # from this logit of its gate on: one in a hundred
BATCH_SIZE = 48
TOLD = ("count", "concept", "centre", "colour")


class Kept:
    """Batches of the scenes in OUTPUT.

    Args:
        folder: where `python kept.py` puts its parts. seed: of what is chosen.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.parts: dict[str, dict] = {}

    def look(self) -> int:
        """Take in the parts that came since; how many there are."""
        for file in sorted(self.folder.glob("kept_*.pt")):
            if file.name not in self.parts:
                self.parts[file.name] = torch.load(file, weights_only=True)
        return len(self.parts)

    def next(self, kind: str, num: int) -> tuple[Scenes, dict[str, Tensor]]:
        """So many scenes of one part, "drawn", "doubtful" or "photographed", and what is seen of them."""
        part = self.random.choice([part[kind] for part in self.parts.values() if len(part[kind]["count"]) >= num])
        chosen = torch.tensor(self.random.sample(range(len(part["count"])), num))
        rows = {name: value[chosen] for name, value in part.items()}
        scenes = Scenes(*(rows.pop(name).long() if name != "centre" else rows.pop(name) for name in TOLD))
        return scenes, {name: value.float() for name, value in rows.items()}


def told(scenes: Scenes) -> dict[str, Tensor]:
    return {name: getattr(scenes, name) for name in TOLD}


def gather(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def draw(world: World, number: int) -> Scenes:
    """Every other batch evenly placed, as the weights before were taught; a quarter as it was drawn, the others
    restyled, every third of them bent."""
    world.free = number % 2 == 1
    world.augment = number % 4 > 0
    world.deform = number % 4 == 2
    return world.sample(BATCH_SIZE, single_share=0.35)


@torch.no_grad()
def see_drawn(vision: VisionEncoder, world: World) -> dict[str, Tensor]:
    parts = []
    for number in range(DRAWN // BATCH_SIZE):
        scenes = draw(world, number)
        with fast_products():
            parts.append(told(scenes) | {"features": vision.vit(pixel_values(scenes.pictures)).half()})
    return gather(parts)


@torch.no_grad()
def see_whole(vision: VisionEncoder, scenes: Scenes) -> dict[str, Tensor]:
    """Of pictures of the size that the recogniser looks at, what both networks make of them."""
    with fast_products():
        features = vision.vit(pixel_values(F.adaptive_avg_pool2d(scenes.pictures, VIT_SIZE)))
    whole, pooled = network_features(vision.recogniser, pixel_values(scenes.pictures))
    return told(scenes) | {"features": features.half(), "whole": whole.half(), "pooled": pooled}


@torch.no_grad()
def see_doubtful(vision: VisionEncoder, world: World) -> dict[str, Tensor]:
    """Drawings for which the recogniser's gate opens a little: the one that a person shows first may be of them."""
    world.image_size = WHOLE_SIZE
    seen = gather([see_whole(vision, draw(world, number)) for number in range(LOOKED_AT // BATCH_SIZE)])
    world.image_size = VIT_SIZE
    is_doubtful = vision.recogniser.gate(seen["pooled"])[:, 0] > MIGHT_BE
    return {name: value[is_doubtful] for name, value in seen.items()}


def main() -> None:
    parser = arguments_parser(__doc__, steps=24)
    parser.add_argument("folder", type=Path, help="folder of photographs, with photos.tsv")
    arguments = parser.parse_args()
    output = arguments.output
    model = build_model(build_tokenizer(arguments.data))
    model.load_state_dict(torch.load(output / "inherited.pt", weights_only=True))
    vision = model.model.vision.requires_grad_(False).eval()
    vision.recogniser.load_state_dict(torch.load(output / "recogniser.pt", weights_only=True))
    taught = TaughtPhotographs(arguments.folder, load_all_concepts(), arguments.seed + 500)
    world = World(arguments.data / "train.npz", VIT_SIZE, arguments.seed + 300)
    for number in range(arguments.seed, arguments.seed + arguments.steps):
        photographs = [see_whole(vision, taught.next(8, 8)) for _ in range(PHOTOGRAPHED // 16)]
        part = {
            "drawn": see_drawn(vision, world),
            "doubtful": see_doubtful(vision, world),
            "photographed": gather(photographs),
        }
        new = output / f"new_{number}.pt"
        torch.save(part, new)
        new.rename(output / f"kept_{number:03}.pt")


if __name__ == "__main__":
    main()
