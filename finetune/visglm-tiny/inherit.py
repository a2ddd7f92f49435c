"""First stage of a later version: what the weights in the package know, in the network of the next.

    python inherit.py DATA OUTPUT

The ViT, the bridge and the text model go over as they are, with the rows of those pieces of the vocabulary that both
have; pieces that the old weights never learnt to say start anew, for among them one cannot be told from the other. How
scenes are told in place of a picture is not in the package: it is read off, from what the old bridge tells of pictures
whose scenes are known.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from classifier import pixel_values
from common import (
    Teller,
    arguments_parser,
    build_model,
    build_tokenizer,
    fast_products,
    train,
    without_photograph,
)
from concepts import load_all_concepts
from torch import Tensor
from tower import VIT_SIZE
from tqdm import tqdm
from world import MAX_TOLD, World

from visglm import ChatGLMTokenizer, VisGLMForConditionalGeneration
from visglm.checkpoint import EMBEDDED_MODEL

BATCH_SIZE = 48
NEVER_SAID = 0.9  # cosine to their mean from which on output rows are those of pieces that were never an answer


@torch.no_grad()
def take_over(
    model: VisGLMForConditionalGeneration,
    tokenizer: ChatGLMTokenizer,
    old: VisGLMForConditionalGeneration,
    old_tokenizer: ChatGLMTokenizer,
) -> int:
    """Everything that `old` has goes into `model`; the number of pieces whose rows came along."""
    for part in ("text.layers", "text.norm"):
        model.model.get_submodule(part).load_state_dict(old.model.get_submodule(part).state_dict())
    left = old.model.vision.state_dict()
    missing, unknown = model.model.vision.load_state_dict(left, strict=False)
    if unknown or any(not name.startswith("recogniser.") for name in missing):
        raise SystemExit(f"the old weights are of another network: {unknown or missing}")
    said = rows_said(old.lm_head.weight)
    known = old_tokenizer.get_vocab()
    pairs = [(number, known[piece]) for piece, number in tokenizer.get_vocab().items() if piece in known]
    new, before = torch.tensor([(number, row) for number, row in pairs if said[row]]).T
    for ours, theirs in (
        (model.get_input_embeddings().weight, old.get_input_embeddings().weight),
        (model.lm_head.weight, old.lm_head.weight),
    ):
        ours[new] = theirs[before]
    return len(new)


def rows_said(rows: Tensor) -> Tensor:
    """Which output rows `[pieces, hidden_size]` were ever an answer: the others were pushed the same way, all alike."""
    direction = F.normalize(rows, dim=-1)
    middle = F.normalize(direction.median(0).values, dim=-1)
    alike = direction @ middle > NEVER_SAID
    return ~(direction @ F.normalize(direction[alike].mean(0), dim=-1) > NEVER_SAID)  # NaN where none are alike


def main() -> None:
    parser = arguments_parser(__doc__, steps=1500, image_size=VIT_SIZE)
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL, help="folder (default: the embedded model)")
    parser.add_argument("--pictures", type=int, default=1536, help="scenes that are looked at")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    output = arguments.output
    tokenizer = build_tokenizer(arguments.data)
    model = build_model(tokenizer)
    old = VisGLMForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    number = take_over(model, tokenizer, old, ChatGLMTokenizer.from_pretrained(arguments.model))
    print(f"{number} of {len(tokenizer.sp_model)} pieces came along")
    vision = model.model.vision.requires_grad_(False).eval()
    teller = Teller(load_all_concepts(), tokenizer, copy.deepcopy(model.get_input_embeddings()).requires_grad_(False))
    # As the old bridge knows them: not restyled, each thing in a place of its own.
    world = World(arguments.data / "train.npz", arguments.image_size, arguments.seed + 900, augment=False)
    batches = []
    for _ in tqdm(range(0, arguments.pictures, BATCH_SIZE), desc="scenes"):
        count, chosen = world.choose(BATCH_SIZE, single_share=0.35)
        scenes = world.draw(count.clamp(max=MAX_TOLD), chosen)
        with torch.no_grad(), fast_products():
            features = vision.vit(pixel_values(scenes.pictures)).float()
            batches.append((scenes.in_reading_order(), vision.bridge(without_photograph(features)).float()))
    chance = random.Random(arguments.seed)

    def step_loss() -> dict[str, Tensor]:
        scenes, telling = chance.choice(batches)
        told = teller(scenes)[:, : telling.shape[1]]
        return {"told": F.mse_loss(told, telling) / telling.var()}

    learners = [parameter for parameter in teller.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learners, lr=5 * arguments.learning_rate, weight_decay=0)
    train(optimizer, step_loss, arguments.steps, output / "inherit.jsonl")
    torch.save(model.state_dict(), output / "inherited.pt")
    torch.save(
        {name: value for name, value in model.state_dict().items() if ".vision." not in name}, output / "text.pt"
    )
    torch.save(teller.state_dict(), output / "teller.pt")


if __name__ == "__main__":
    main()
