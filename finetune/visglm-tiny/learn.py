"""A later version learns from what is kept: the bridge alone while the text model has its own lesson, then both.

    python learn.py DATA OUTPUT bridge
    python learn.py DATA OUTPUT both

The networks that see stay as they are; of the recogniser, what it tells the others learns along. In the end the bridge
goes halfway back to what was inherited.
"""

from __future__ import annotations

import torch
from common import (
    Rows,
    add_echoes,
    add_questions,
    add_talks,
    arguments_parser,
    bridge_groups,
    build_model,
    build_tokenizer,
    load_text,
    make_of,
    parameter_groups,
    steps_done,
    telling_losses,
    train,
    without_photograph,
    write_words,
)
from concepts import load_all_concepts
from kept import TOLD, Kept
from pretrain_bridge import told_of_photographs
from pretrain_text import name_pieces
from questions import Asker
from talks import Talker
from torch import Tensor, nn
from train import ask_about_photographs, save
from world import Scenes, World

from visglm.vision import VisionEncoder

BRIDGE = ("qformer.", "projection.", "query_tokens")


@torch.no_grad()
def go_halfway_back(vision: VisionEncoder, inherited: dict[str, Tensor]) -> None:
    """The bridge halfway to what was inherited: there it tells the scenes that the old weights knew and those that are
    new better than at either end. (A text model that goes on learning from there loses counts again.)"""
    for name, value in vision.state_dict().items():
        if name.startswith(BRIDGE):
            value.lerp_(inherited[f"model.vision.{name}"], 0.5)


def main() -> None:
    parser = arguments_parser(__doc__, steps=20000)
    parser.add_argument("stage", choices=("bridge", "both"))
    parser.add_argument("--minutes", type=float, help="end after so many, at most STEPS")
    parser.add_argument("--pictures", type=int, default=24, help="drawn scenes per step")
    parser.add_argument("--doubtful", type=int, default=3, help="drawings per step that may be taken for photographs")
    parser.add_argument("--photographs", type=int, default=12, help="photographs per step, half of them in collages")
    parser.add_argument("--told", type=int, default=6, help="scenes per step that are told, not shown")
    parser.add_argument("--talks", type=int, default=6, help="longer conversations per step")
    arguments = parser.parse_args()
    output, both = arguments.output, arguments.stage == "both"
    log = output / f"learn_{arguments.stage}.jsonl"
    seed = arguments.seed + steps_done(log)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(arguments.data)
    model = build_model(tokenizer)
    inherited = torch.load(output / "inherited.pt", weights_only=True)
    model.load_state_dict(inherited)
    vision, config = model.model.vision, model.config
    teller = load_text(model, tokenizer, output)
    vision.recogniser.load_state_dict(torch.load(output / "recogniser.pt", weights_only=True))
    write_words(vision.recogniser, teller)
    if both:
        vision.load_state_dict(torch.load(output / "vision.pt", weights_only=True))
    vision.vit.requires_grad_(False)
    recogniser = vision.recogniser.requires_grad_(False)
    names = teller.name(torch.arange(len(teller.groups)))
    kept = Kept(output, seed)
    kept.look()

    def see() -> tuple:
        """Drawn scenes and all visual tokens of them, photographs and theirs, what is recognised of those, losses."""
        scenes, seen = kept.next("drawn", arguments.pictures)
        drawn = vision.bridge(without_photograph(seen["features"]))
        guesses = recogniser.nothing.expand(len(drawn), config.vision_config.num_recogniser_tokens, -1)
        doubtful, seen = kept.next("doubtful", arguments.doubtful)
        recognised = make_of(recogniser, seen["whole"], seen["pooled"])
        drawn = torch.cat([drawn, vision.bridge(torch.cat([seen["features"], recognised.cells], 1))])
        guesses = torch.cat([guesses, recognised.guesses])
        scenes = Scenes(*(torch.cat([getattr(some, name) for some in (scenes, doubtful)]) for name in TOLD))
        photographs, seen = kept.next("photographed", arguments.photographs)
        recognised = make_of(recogniser, seen["whole"], seen["pooled"])
        telling = vision.bridge(torch.cat([seen["features"], recognised.cells], 1))
        losses = telling_losses(teller, names, drawn, scenes)
        losses |= told_of_photographs(teller, photographs, telling, recognised)
        photographed = torch.cat([telling, recognised.guesses], 1)
        return scenes, torch.cat([drawn, guesses], 1), photographs, photographed, recognised, losses

    learners = nn.ModuleList([recogniser.cells, recogniser.impression]).requires_grad_(True)
    rate = 0.3 * arguments.learning_rate
    groups = bridge_groups(vision, rate) + parameter_groups(learners, lr=rate)
    if both:
        groups = bridge_groups(vision, 0.5 * rate) + parameter_groups(learners, lr=0.5 * rate)
        groups += parameter_groups(nn.ModuleList([model.model.text, model.lm_head]), lr=rate)
        world = World(arguments.data / "train.npz", seed=seed + 100)
        asker = Asker(load_all_concepts(), seed=seed)
        talker = Talker(asker, name_pieces(tokenizer))

    def step_loss() -> dict[str, Tensor]:
        scenes, drawn, photographs, photographed, recognised, losses = see()
        if not both:
            return losses
        rows = Rows(tokenizer, config.num_query_tokens)
        add_questions(rows, scenes, asker, 1, num_without_picture=1)
        add_talks(rows, scenes, talker, arguments.talks)
        add_echoes(rows, talker, arguments.talks // 2)
        ask_about_photographs(rows, photographs, recognised, asker, talker, first=len(drawn))
        shown = torch.cat([drawn, photographed])
        # Half the drawings are black: the other colours are learnt from telling, where all are alike often.
        told = world.tell(arguments.told, single_share=0.8)
        told_rows = Rows(tokenizer, config.num_query_tokens)
        add_questions(told_rows, told, asker, 1, num_without_picture=0)
        answers = {"answers": rows.loss(model, shown)}
        answers["answers_told"] = 0.5 * told_rows.loss(model, teller(told.in_reading_order()), num_groups=1)
        return answers | losses

    def keep() -> dict[str, float]:
        torch.save(vision.state_dict(), output / "vision.pt")
        if both:
            save(model, tokenizer, output / "model")
        return {"parts": kept.look()}

    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    train(optimizer, step_loss, arguments.steps, log, (200, keep), arguments.minutes)
    if both:
        go_halfway_back(vision, inherited)
        keep()


if __name__ == "__main__":
    main()
