"""Fourth stage: the bridge alone learns to tell what the ViT sees.

    python pretrain_bridge.py DATA OUTPUT

`OUTPUT` holds what the earlier stages wrote. The visual tokens of a picture become what the text model was told in its
place, object by object in reading order. Without the text model a picture costs a fifth of what it does in the last
stage, and teaches as much as a dozen answers would.
"""

from __future__ import annotations

import torch
from common import Pictures, arguments_parser, build_model, build_tokenizer, load_text, parameter_groups, train
from torch import Tensor, nn


def main() -> None:
    parser = arguments_parser(__doc__, steps=3000)
    parser.add_argument("--batch-size", type=int, default=32, help="pictures per step")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer(arguments.data)
    model = build_model(tokenizer)
    teller = load_text(model, tokenizer, arguments.output)
    vision = model.model.vision
    pictures = Pictures(arguments.data, arguments.output, teller, arguments.batch_size, arguments.seed + 300)

    def step_loss() -> dict[str, Tensor]:
        _, features, told = pictures.next()
        return {"told": pictures.distance(vision.bridge(features), told)}

    groups = parameter_groups(nn.ModuleList([vision.qformer, vision.projection]))
    groups.append({"params": [vision.query_tokens], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.98))
    train(optimizer, step_loss, arguments.steps, arguments.output / "pretrain_bridge.jsonl")
    bridge = {name: value for name, value in vision.state_dict().items() if not name.startswith("vit.")}
    torch.save(bridge, arguments.output / "bridge.pt")


if __name__ == "__main__":
    main()
