"""A later version learns from scenes that are drawn anew: bridge and ViT, then the text model with them, then again.

    python learn.py DATA OUTPUT PHOTOGRAPHS bridge
    python learn.py DATA OUTPUT PHOTOGRAPHS both
    python learn.py DATA OUTPUT PHOTOGRAPHS again

It begins where `inherit.py`, `pretrain_text.py` and `pretrain_recogniser.py` left off. The recogniser's network stays
as it is; what it tells the others learns along. After the second stage what sees goes a little of the way back to what
was inherited, and the last one, for which the stem stays as it is, goes on from there and a little back again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from classifier import pixel_values
from common import (
    Rows,
    add_echoes,
    add_questions,
    add_talks,
    bridge_groups,
    build_model,
    build_tokenizer,
    fast_products,
    go_back,
    load_found,
    load_text,
    parameter_groups,
    scenes_parser,
    steps_done,
    telling_losses,
    train,
    without_photograph,
    write_words,
)
from concepts import load_all_concepts
from pretrain_bridge import told_of_photographs
from pretrain_text import name_pieces
from pretrain_vision import make_trainable
from questions import Asker
from talks import Talker
from taught_photographs import TaughtPhotographs
from torch import Tensor, nn
from tower import NUM_QUERIES, VIT_SIZE, WHOLE_SIZE
from train import ask_about_photographs, look_at_photographs, save
from world import Scenes, SceneStream, World

from visglm.vision import VisionEncoder

TOLD = ("count", "concept", "centre", "colour")
STAGES = ("bridge", "both", "again")
SEEING = ("vit.", "qformer.", "projection.", "query_tokens")
BACK = {"both": 0.2, "again": 0.15}  # which share of the way what sees goes back when a stage is done


class Lessons:
    """What each step looks at: drawings of the ViT's size, drawings of the size that the
    recogniser sees (which may take them for photographs), and photographs. Pictures are bytes, as in files.

    Args:
        data, folder: where the drawings and the photographs are. numbers: of the three. seed: of what is drawn.
    """

    def __init__(self, data: Path, folder: Path, numbers: tuple[int, int, int], seed: int):
        self.world = World(data / "train.npz", VIT_SIZE, seed + 300)
        self.taught = TaughtPhotographs(folder, load_all_concepts(), seed + 500)
        self.taught.random = self.world.random  # which every process that draws seeds for itself
        self.numbers = numbers

    def draw(self, number: int, image_size: int) -> Scenes:
        """Two thirds of them free, the others evenly placed; a quarter as they were drawn, every third of the others
        bent: each kind was worse than before where the last learnt from the others alone."""
        chance = self.world.rand(3)
        self.world.image_size = image_size
        self.world.free = bool(chance[0] < 0.65)
        self.world.augment = bool(chance[1] < 0.75)
        self.world.deform = self.world.augment and bool(chance[2] < 0.33)
        return self.world.sample(number, single_share=0.35)

    def next(self) -> tuple[Scenes, ...]:
        drawn, whole, photographs = self.numbers
        drawings = joined([self.draw(part, VIT_SIZE) for part in parts_of(drawn)])
        collages = photographs // 2
        shown = (drawings, self.draw(whole, WHOLE_SIZE), self.taught.next(photographs - collages, collages))
        return tuple(as_bytes(scenes) for scenes in shown)

    def stream(self) -> SceneStream:
        return SceneStream(self.next, self.world.random)


def parts_of(number: int, most: int = 16) -> list[int]:
    """So many in parts of at most 16, each of which is drawn in a manner of its own."""
    return [min(most, number - start) for start in range(0, number, most)]


def joined(parts: list[Scenes], fields: tuple[str, ...] = (*TOLD, "pictures")) -> Scenes:
    return Scenes(*(torch.cat([getattr(part, field) for part in parts]) for field in fields))


def as_bytes(scenes: Scenes) -> Scenes:
    return replace(scenes, pictures=scenes.pictures.mul(255).round().byte(), coverage=None)


def shown_on(scenes: Scenes, device: torch.device) -> Scenes:
    """The scenes there, their pictures from 0 to 1 again."""
    scenes = scenes.to(device)
    return replace(scenes, pictures=scenes.pictures.float() / 255)


def first_of(scenes: Scenes, number: int) -> Scenes:
    return Scenes(*(value if value is None else value[:number] for value in vars(scenes).values()))


def go_back_a_little(vision: VisionEncoder, inherited: dict[str, Tensor], share: float) -> None:
    """What sees a share of the way back: there it counts and tells places better, and names nearly as well."""
    there = vision.state_dict()
    go_back(vision, {n: inherited[f"model.vision.{n}"] if n.startswith(SEEING) else there[n] for n in there}, share)


def trained_groups(vision: VisionEncoder, rate: float) -> list[dict]:
    """What sees, for an optimizer: the bridge, the ViT behind it more slowly, the stem more slowly still."""
    vit, recogniser = vision.vit, vision.recogniser
    learners = nn.ModuleList([recogniser.cells, recogniser.impression]).requires_grad_(True)
    rest = nn.ModuleList(module for name, module in vit.named_children() if name != "patch_embed")
    return [
        *bridge_groups(vision, rate),
        *parameter_groups(learners, lr=rate),
        *parameter_groups(rest, lr=0.6 * rate),
        {"params": [vit.cls_token, vit.pos_embed], "weight_decay": 0.0, "lr": 0.6 * rate},
        *parameter_groups(vit.patch_embed, lr=0.2 * rate),
    ]


def main() -> None:
    parser = scenes_parser(__doc__, steps=1000)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--pictures", type=int, default=96, help="drawn scenes per step")
    parser.add_argument("--whole", type=int, default=6, help="drawings per step that the recogniser looks at")
    parser.add_argument("--photographs", type=int, default=12, help="photographs per step, half of them in collages")
    parser.add_argument("--asked", type=int, default=32, help="of the drawn scenes, how many are asked about")
    parser.add_argument("--told", type=int, default=8, help="scenes per step that are told, not shown")
    parser.add_argument("--talks", type=int, default=8, help="longer conversations per step")
    arguments = parser.parse_args()
    output, both, again = arguments.output, arguments.stage != "bridge", arguments.stage == "again"
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
    if again:
        model.load_state_dict(load_found(output).state_dict())
    recogniser = vision.recogniser.requires_grad_(False)
    numbers = (arguments.pictures, arguments.whole, arguments.photographs)
    lessons = Lessons(arguments.data, arguments.folder, numbers, seed + 1000 * STAGES.index(arguments.stage))
    drawn_lessons = iter(lessons.stream().loader(arguments.workers))
    device = torch.device(arguments.device)
    torch.set_default_device(device)
    for module in (model, teller):
        module.to(device)
    vision.to(memory_format=torch.channels_last)
    if again:
        vision.vit.patch_embed.requires_grad_(False)
    else:
        make_trainable(vision.vit.patch_embed.backbone)
    for network in (vision.vit.patch_embed, recogniser):
        network.eval()  # the averages of BatchNorm are those of far more pictures
    names = teller.name(torch.arange(len(teller.groups)))

    def see() -> tuple:
        """Drawn scenes and all visual tokens of them, photographs and theirs, what is recognised of those, losses. The
        scenes are on the CPU, where questions are made up."""
        parts = next(drawn_lessons)
        drawings, whole, photographs = (shown_on(part, device) for part in parts)
        with fast_products():
            features = vision.vit(pixel_values(drawings.pictures))
        drawn = vision.bridge(without_photograph(features.float()))
        silent = recogniser.nothing.expand(len(drawn), config.vision_config.num_recogniser_tokens, -1)
        tokens_of_whole, _ = look_at_photographs(vision, whole, VIT_SIZE)
        tokens_of_photographs, recognised = look_at_photographs(vision, photographs, VIT_SIZE)
        tokens = torch.cat([tokens_of_whole, torch.cat([drawn, silent], 1)])
        losses = telling_losses(teller, names, tokens[:, :NUM_QUERIES], joined([whole, drawings], TOLD))
        losses |= told_of_photographs(teller, photographs, tokens_of_photographs[:, :NUM_QUERIES], recognised)
        return joined([parts[1], parts[0]], TOLD), tokens, parts[2], tokens_of_photographs, recognised, losses

    rate = 0.3 * arguments.learning_rate
    groups = trained_groups(vision, 0.5 * rate if both else rate)
    if both:
        groups += parameter_groups(nn.ModuleList([model.model.text, model.lm_head]), lr=rate)
        asker = Asker(load_all_concepts(), seed=seed)
        talker = Talker(asker, name_pieces(tokenizer))

    def step_loss() -> dict[str, Tensor]:
        scenes, drawn, photographs, photographed, recognised, losses = see()
        if not both:
            return losses
        asked = arguments.whole + arguments.asked
        scenes, drawn = first_of(scenes, asked), drawn[:asked]
        rows = Rows(tokenizer, config.num_query_tokens)
        add_questions(rows, scenes, asker, 1, num_without_picture=2)
        add_talks(rows, scenes, talker, arguments.talks)
        add_echoes(rows, talker, arguments.talks // 2)
        ask_about_photographs(rows, photographs, recognised, asker, talker, first=len(drawn))
        # Half the drawings are black: the other colours are learnt from telling, where all are alike often.
        with torch.device("cpu"):
            told = lessons.world.tell(arguments.told, single_share=0.8)
        told = told.to(device)
        told_rows = Rows(tokenizer, config.num_query_tokens)
        add_questions(told_rows, told, asker, 1, num_without_picture=0)
        answers = {"answers": rows.loss(model, torch.cat([drawn, photographed]))}
        answers["answers_told"] = 0.5 * told_rows.loss(model, teller(told.in_reading_order()), num_groups=1)
        return answers | losses

    def keep() -> dict[str, float]:
        torch.save(vision.state_dict(), output / "vision.pt")
        if both:
            save(model, tokenizer, output / "model")
        return {}

    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    train(optimizer, step_loss, arguments.steps, log, (400, keep), arguments.minutes)
    if both:
        go_back_a_little(vision, inherited, BACK[arguments.stage])
        keep()


if __name__ == "__main__":
    main()
