"""First stage: teach the convolutional stem of the ViT to name small pictures of single objects.

    python pretrain_stem.py DATA OUTPUT

A ViT learns little from a few thousand drawings, a convolution much; and alone it goes through more than a hundred
pictures a second on one core.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from classifier import Classifier
from common import arguments_parser, parameter_groups, train
from pretrain_vision import look
from torch import Tensor, nn
from world import SceneStream, World

IMAGE_SIZE = 48  # a lone object is then as large as one of several in a full picture


def main() -> None:
    parser = arguments_parser(__doc__, steps=9000)
    parser.add_argument("--batch-size", type=int, default=48)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    world = World(arguments.data / "train.npz", image_size=IMAGE_SIZE, seed=arguments.seed)
    unseen = World(arguments.data / "openmoji.npz", image_size=IMAGE_SIZE, seed=1, augment=False)
    model = Classifier(int(world.concept.max()) + 1).to(memory_format=torch.channels_last)
    scenes_of = iter(SceneStream(world, arguments.batch_size, single_share=1.0).loader())

    def step_loss() -> dict[str, Tensor]:
        scenes = next(scenes_of)
        return {"stem": F.cross_entropy(model.stem(scenes.pictures), scenes.concept[:, 0], label_smoothing=0.1)}

    groups = parameter_groups(nn.ModuleList([model.vit.patch_embed, model.stem_head]))
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate)
    every = (500, lambda: look(model, model.stem, unseen, arguments.output / "stem.pt"))
    train(optimizer, step_loss, arguments.steps, arguments.output / "pretrain_stem.jsonl", every)


if __name__ == "__main__":
    main()
