"""Fifth stage: the bridge learns from the answers, and the text model to put up with what the ViT takes for what.

    python train.py DATA OUTPUT PHOTOGRAPHS

`OUTPUT` holds what the earlier stages wrote; in a later round the text model goes on from `OUTPUT/model`, and what is
left in the end is between before and behind. The stem stays as it is; the rest of the ViT and the text model go
on learning, slower. Prompts come from `visglm.prompt` and the network from `visglm.model`: what is trained here is what
chats later.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from classifier import pixel_values
from common import (
    Pictures,
    Recognised,
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
    log_of,
    parameter_groups,
    recognise,
    rounds_parser,
    steps_done,
    train,
    without_photograph,
)
from concepts import load_all_concepts, load_photographed
from pretrain_text import name_pieces
from questions import Asker, things_in
from talks import Guess, Talker
from taught_photographs import TaughtPhotographs
from torch import Tensor, nn
from tower import WHOLE_SIZE
from world import Scenes, SceneStream

from visglm import ChatGLMTokenizer, VisGLMForConditionalGeneration, VisGLMImageProcessor, VisGLMProcessor
from visglm.vision import VisionEncoder


def main() -> None:
    parser = rounds_parser(__doc__, steps=4500)
    parser.add_argument("--pictures", type=int, default=16, help="pictures per step")
    parser.add_argument("--told", type=int, default=6, help="scenes per step that are told, not shown")
    parser.add_argument("--questions", type=int, default=1, help="questions per picture")
    parser.add_argument("--talks", type=int, default=3, help="longer conversations per step")
    parser.add_argument("--photographs", type=int, default=6, help="photographs per step, half of them in collages")
    arguments = parser.parse_args()
    log = arguments.output / log_of("train", arguments.round)
    seed = arguments.seed + steps_done(log)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(arguments.data)
    model = build_model(tokenizer)
    vision, config = model.model.vision, model.config
    output, size = arguments.output, arguments.image_size
    teller = load_text(model, tokenizer, output)
    again = arguments.round > 1
    if again:
        found = load_found(output)
        model.model.text.load_state_dict(found.model.text.state_dict())
        model.lm_head.load_state_dict(found.lm_head.state_dict())
    vision.load_state_dict(torch.load(output / "vision.pt", weights_only=True))
    vision.vit.requires_grad_(False).blocks.requires_grad_(True)
    vision.recogniser.requires_grad_(False)
    vision.vit.patch_embed.eval()  # so few pictures a step are too few for BatchNorm's averages
    # Bent things are named as seldom as those of an unseen style: what it says of doubtful ones is learnt from these.
    pictures = Pictures(arguments.data, teller, arguments.pictures, size, seed + 100, again, arguments.workers)
    concepts = load_all_concepts()
    asker = Asker(concepts, seed=seed)
    talker = Talker(asker, name_pieces(tokenizer))
    taught = TaughtPhotographs(arguments.folder, concepts, seed + 500)
    half = arguments.photographs // 2
    photographs = iter(SceneStream(lambda: taught.next(half, half), taught.random).loader(arguments.workers))
    device = torch.device(arguments.device)
    torch.set_default_device(device)
    for module in (model, teller):
        module.to(device)

    def step_loss() -> dict[str, Tensor]:
        scenes, features = pictures.next(vision)
        rows = Rows(tokenizer, config.num_query_tokens)
        add_questions(rows, scenes, asker, arguments.questions, num_without_picture=1)
        add_talks(rows, scenes, talker, arguments.talks)
        add_echoes(rows, talker, arguments.talks)
        image_embeds = vision.bridge(without_photograph(features))
        silent = vision.recogniser.nothing.expand(len(features), config.vision_config.num_recogniser_tokens, -1)
        seen = next(photographs).to(device)
        photographed, recognised = look_at_photographs(vision, seen, size)
        ask_about_photographs(rows, seen, recognised, asker, talker, first=len(features))
        shown = torch.cat([torch.cat([image_embeds, silent], 1), photographed])
        # Half the drawings are black: the other colours are learnt from telling, where all are alike often.
        with torch.device("cpu"):
            told = pictures.world.tell(arguments.told, single_share=0.8)
        told = told.to(device)
        told_rows = Rows(tokenizer, config.num_query_tokens)
        add_questions(told_rows, told, asker, arguments.questions, num_without_picture=0)
        return {
            "answers": rows.loss(model, shown),
            "answers_told": 0.5 * told_rows.loss(model, teller(told.in_reading_order()), num_groups=1),
            **pictures.losses(image_embeds, scenes),
        }

    def save_model() -> dict[str, float]:
        save(model, tokenizer, output / "model")
        return {}

    rate = 0.3 * arguments.learning_rate
    groups = parameter_groups(nn.ModuleList([model.model.text, model.lm_head]), lr=rate)
    # What sees has learnt from several times as many pictures a step; so few must not undo that.
    groups += parameter_groups(vision.vit.blocks, lr=0.5 * rate) + bridge_groups(vision, 0.5 * rate)
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    log = output / log_of("train", arguments.round)
    train(optimizer, step_loss, arguments.steps, log, (400, save_model), arguments.minutes)
    if again:
        go_back(model, found.state_dict(), 1 - arguments.kept)
        save_model()


def look_at_photographs(vision: VisionEncoder, scenes: Scenes, size: int) -> tuple[Tensor, Recognised]:
    """All visual tokens of photographs `[num, 12, hidden_size]`, and what the recogniser makes of them."""
    with fast_products():
        features = vision.vit(pixel_values(F.adaptive_avg_pool2d(scenes.pictures, size)))
    seen = recognise(vision.recogniser, pixel_values(scenes.pictures))
    telling = vision.bridge(torch.cat([features.float(), seen.cells], 1))
    return torch.cat([telling, seen.guesses], 1), seen


def ask_about_photographs(
    rows: Rows, scenes: Scenes, seen: Recognised, asker: Asker, talker: Talker, first: int
) -> None:
    """A question about each photograph, alone as sure as the recogniser is; `first` is the number of its scene."""
    likeliest = seen.probability.topk(2)
    concepts = {concept.english[0]: number for number, concept in enumerate(asker.concepts)}
    of_name = [concepts[concept.english[0]] for concept, _ in load_photographed()]
    for index, things in enumerate(things_in(scenes)):
        if len(things) == 1:
            names = [of_name[name] for name in likeliest.indices[index].tolist()]
            question = talker.guess(Guess(*names, *likeliest.values[index].tolist(), things[0].colour))
        else:
            question = asker.ask(things)
        rows.add([(question.text, question.answer, 1)], question.language, first + index)


def save(model: VisGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer, output: Path) -> None:
    """Write a folder `VisGLM.from_pretrained` loads, in float16, which halves the package and loses nothing."""
    processor = VisGLMProcessor(
        image_processor=VisGLMImageProcessor(size={"height": WHOLE_SIZE, "width": WHOLE_SIZE}),
        tokenizer=tokenizer,
        num_query_tokens=model.config.num_query_tokens,
        prompt_style=model.config.prompt_style,
    )
    copy.deepcopy(model).cpu().half().save_pretrained(output)
    processor.save_pretrained(output)


if __name__ == "__main__":
    main()
