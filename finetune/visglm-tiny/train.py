"""Fifth stage: the bridge learns from the answers, and the text model to put up with what the ViT takes for what.

    python train.py DATA OUTPUT

`OUTPUT` holds what the earlier stages wrote; in a later round the text model goes on from `OUTPUT/model`, and what is
left in the end is halfway between before and behind. The stem stays as it is; the rest of the ViT and the text model go
on learning, slower. Prompts come from `visglm.prompt` and the network from `visglm.model`: what is trained here is what
chats later.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from common import (
    Pictures,
    Rows,
    add_questions,
    bridge_groups,
    build_model,
    build_tokenizer,
    go_back,
    load_found,
    load_text,
    log_of,
    parameter_groups,
    rounds_parser,
    train,
)
from concepts import load_concepts
from questions import Asker
from torch import Tensor, nn

from visglm import VisGLMForConditionalGeneration, VisGLMImageProcessor, VisGLMProcessor


def main() -> None:
    parser = rounds_parser(__doc__, steps=4500)
    parser.add_argument("--pictures", type=int, default=16, help="pictures per step")
    parser.add_argument("--told", type=int, default=6, help="scenes per step that are told, not shown")
    parser.add_argument("--questions", type=int, default=1, help="questions per picture")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
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
    vision.vit.patch_embed.eval()  # so few pictures a step are too few for BatchNorm's averages
    # Bent things are named as seldom as those of an unseen style: what it says of doubtful ones is learnt from these.
    pictures = Pictures(arguments.data, teller, arguments.pictures, size, arguments.seed + 100, deform=again)
    processor = VisGLMProcessor(
        image_processor=VisGLMImageProcessor(size={"height": size, "width": size}),
        tokenizer=tokenizer,
        num_query_tokens=config.num_query_tokens,
        prompt_style=config.prompt_style,
    )
    asker = Asker(load_concepts(), seed=arguments.seed)

    def step_loss() -> dict[str, Tensor]:
        scenes, features = pictures.next(vision)
        rows = Rows(tokenizer, config.num_query_tokens)
        add_questions(rows, scenes, asker, arguments.questions, num_without_picture=1)
        image_embeds = vision.bridge(features)
        # Half the drawings are black: the other colours are learnt from telling, where all are alike often.
        told = pictures.world.tell(arguments.told, single_share=0.8)
        told_rows = Rows(tokenizer, config.num_query_tokens)
        add_questions(told_rows, told, asker, arguments.questions, num_without_picture=0)
        return {
            "answers": rows.loss(model, image_embeds),
            "answers_told": 0.5 * told_rows.loss(model, teller(told.in_reading_order()), num_groups=1),
            **pictures.losses(image_embeds, scenes),
        }

    def save_model() -> dict[str, float]:
        save(model, processor, output / "model")
        return {}

    rate = 0.3 * arguments.learning_rate
    groups = parameter_groups(nn.ModuleList([model.model.text, model.lm_head]), lr=rate)
    # What sees has learnt from several times as many pictures a step; so few must not undo that.
    groups += parameter_groups(vision.vit.blocks, lr=0.5 * rate) + bridge_groups(vision, 0.5 * rate)
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    log = output / log_of("train", arguments.round)
    train(optimizer, step_loss, arguments.steps, log, every=(400, save_model))
    if again:
        go_back(model, found.state_dict(), 1 / 2)  # about as good at everything, and better at groups
        save_model()


def save(model: VisGLMForConditionalGeneration, processor: VisGLMProcessor, output: Path) -> None:
    """Write a folder `VisGLM.from_pretrained` loads, in float16, which halves the package and loses nothing."""
    copy.deepcopy(model).half().save_pretrained(output)
    processor.save_pretrained(output)


if __name__ == "__main__":
    main()
