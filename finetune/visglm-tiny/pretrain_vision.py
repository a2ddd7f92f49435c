"""Second stage: teach the whole ViT to name what it sees, before any language is involved.

    python pretrain_vision.py DATA OUTPUT

`OUTPUT` holds the stem of the first stage. From pictures of one to four objects each cell of the feature map learns
which concept covers it and in what colour, and the class token the name of a lone object. The bridge begins with what
the heads have found.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from classifier import Classifier
from common import arguments_parser, fast_products, parameter_groups, train
from torch import Tensor, nn
from world import SceneStream, World

NUM_FROZEN = 3  # stages of the stem, of seven


def make_trainable(backbone: nn.Module) -> None:
    """Edges and blobs are learnt: the first, costliest layers of the stem stay as they are, but for the averages of
    BatchNorm. The others' depthwise convolutions stay in float32: back through one takes a third of the time then."""
    for layer in (backbone.conv_stem, backbone.bn1, *backbone.blocks[:NUM_FROZEN]):
        layer.requires_grad_(False)
    if torch.get_default_device().type != "cpu":
        return
    for layer in backbone.blocks[NUM_FROZEN:].modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            layer.forward = in_float32(layer.forward)


def in_float32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    forward = torch.autocast("cpu", enabled=False)(forward)
    return lambda features: forward(features.float())


@torch.no_grad()
def accuracy(name: Callable[[Tensor], Tensor], world: World) -> float:
    """Share of lone, centred, unaugmented pictures that `name`, pictures to logits, gets right."""
    hits = 0
    device = torch.get_default_device()
    for chosen in torch.arange(len(world.sprites), device="cpu").split(256):
        with torch.device("cpu"):
            scenes = world.draw(torch.ones_like(chosen), chosen[:, None].expand(-1, 4))
        hits += int((name(scenes.pictures.to(device)).argmax(-1).cpu() == world.concept[chosen]).sum())
    return hits / len(world.sprites)


def look(model: nn.Module, name: Callable[[Tensor], Tensor], world: World, output: Path) -> dict[str, float]:
    """Keep the weights so far, and measure them on pictures that are looked at, never learnt from."""
    torch.save(model.state_dict(), output)
    model.eval()
    share = accuracy(name, world)
    model.train()
    return {"openmoji_accuracy": share}


def vit_groups(model: Classifier, rate: float) -> list[dict]:
    """What a whole ViT learns with, for an optimizer: its stem, which knows much already, more slowly."""
    vit = model.vit
    rest = nn.ModuleList(module for name, module in vit.named_children() if name != "patch_embed")
    return [
        *parameter_groups(nn.ModuleList([model.whole_head, model.cell_head, model.colour_head]), lr=rate),
        *parameter_groups(vit.patch_embed, lr=0.3 * rate),
        *parameter_groups(rest, lr=rate),
        {"params": [vit.cls_token, vit.pos_embed], "weight_decay": 0.0, "lr": rate},
    ]


def main() -> None:
    parser = arguments_parser(__doc__, steps=2400, image_size=112)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    size = arguments.image_size
    world = World(arguments.data / "train.npz", image_size=size, seed=arguments.seed + 1)
    unseen = World(arguments.data / "openmoji.npz", image_size=size, seed=1, augment=False)
    model = Classifier(int(world.concept.max()) + 1)
    model.load_state_dict(torch.load(arguments.output / "stem.pt", weights_only=True))
    make_trainable(model.vit.patch_embed.backbone)
    model.to(memory_format=torch.channels_last)
    scenes_of = iter(SceneStream(lambda: world.sample(arguments.batch_size, 0.35), world.random).loader())
    rate = arguments.learning_rate

    def step_loss() -> dict[str, Tensor]:
        scenes = next(scenes_of)
        with fast_products():
            features = model(scenes.pictures)
        return model.losses(features.float(), scenes)

    optimizer = torch.optim.AdamW(vit_groups(model, rate), lr=rate)
    every = (200, lambda: look(model, model.name, unseen, arguments.output / "classifier.pt"))
    model.train()
    train(optimizer, step_loss, arguments.steps, arguments.output / "pretrain_vision.jsonl", every)


if __name__ == "__main__":
    main()
