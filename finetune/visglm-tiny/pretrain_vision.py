"""Second stage: teach the whole ViT to name what it sees, before any language is involved.

    python pretrain_vision.py DATA OUTPUT

`OUTPUT` holds the stem of the first stage; with `--continue-from MODEL` a ViT that was trained before goes on learning
instead, or is kept as it is (`--heads-only`). From pictures of one to four objects each cell of the feature map learns
which concept covers it and in what colour, and the class token the name of a lone object. The bridge begins with what
the heads have found.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from classifier import Classifier
from common import arguments_parser, fast_products, parameter_groups, train
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from world import SceneStream, World

from visglm import PRESETS, VisGLM


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
    parser = arguments_parser(__doc__, steps=4800)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--continue-from", type=Path, metavar="MODEL", help="a folder that visglm-tiny was saved to")
    parser.add_argument("--heads-only", action="store_true", help="find the heads of a ViT that stays as it is")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    size = PRESETS["visglm-tiny"]["vision_config"]["image_size"]
    world = World(arguments.data / "train.npz", image_size=size, seed=arguments.seed + 1)
    unseen = World(arguments.data / "openmoji.npz", image_size=size, seed=1, augment=False)
    model = Classifier(int(world.concept.max()) + 1)
    if arguments.continue_from is None:
        model.load_state_dict(torch.load(arguments.output / "stem.pt", weights_only=True))
    else:
        trained = VisGLM.from_pretrained(arguments.continue_from, dtype="float32").model.model.vision.vit.state_dict()
        trained["pos_embed"] = resample_abs_pos_embed(trained["pos_embed"], model.vit.patch_embed.grid_size)
        model.vit.load_state_dict(trained)
    model.to(memory_format=torch.channels_last)
    scenes_of = iter(SceneStream(world, arguments.batch_size, single_share=0.35).loader())
    rate = arguments.learning_rate
    heads = nn.ModuleList([model.whole_head, model.cell_head, model.colour_head])
    groups = parameter_groups(heads)
    if not arguments.heads_only:
        # Edges and blobs are learnt: the first, costliest layers stay as they are, but for the averages of BatchNorm.
        stem = model.vit.patch_embed
        for layer in (stem.backbone.conv1, stem.backbone.bn1, stem.backbone.layer1):
            layer.requires_grad_(False)
        groups += parameter_groups(stem, lr=0.3 * rate)
        groups += parameter_groups(nn.ModuleList(m for name, m in model.vit.named_children() if name != "patch_embed"))
        groups.append({"params": [model.vit.cls_token, model.vit.pos_embed], "weight_decay": 0.0})

    def step_loss() -> dict[str, Tensor]:
        scenes = next(scenes_of)
        with fast_products(), torch.set_grad_enabled(not arguments.heads_only):
            features = model.train(not arguments.heads_only)(scenes.pictures)
        return model.losses(features.float(), scenes)

    optimizer = torch.optim.AdamW(groups, lr=rate)
    every = (200, lambda: look(model, model.name, unseen, arguments.output / "classifier.pt"))
    train(optimizer, step_loss, arguments.steps, arguments.output / "pretrain_vision.jsonl", every)


if __name__ == "__main__":
    main()
