"""Fourth stage: the bridge learns to tell the text model what the ViT sees.

    python train.py DATA OUTPUT

`OUTPUT` holds what the earlier stages wrote. The ViT stays as it is; the text model goes on learning, slower. Beside
the answers, the bridge learns the visual tokens that the third stage used in place of a picture, object by object in
reading order: one picture teaches as much as a dozen answers would. Prompts come from `visglm.prompt` and the network
from `visglm.model`: what is trained here is what chats later.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from common import (
    Rows,
    Teller,
    add_questions,
    arguments_parser,
    build_model,
    build_tokenizer,
    parameter_groups,
    train,
)
from concepts import load_concepts
from pretrain_vision import Classifier
from questions import Asker
from torch import Tensor, nn
from world import SceneStream, World

from visglm import VisGLMForConditionalGeneration, VisGLMImageProcessor, VisGLMProcessor


def main() -> None:
    parser = arguments_parser(__doc__, steps=1200)
    parser.add_argument("--pictures", type=int, default=16, help="pictures per step")
    parser.add_argument("--questions", type=int, default=1, help="questions per picture")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer(arguments.data)
    model = build_model(tokenizer)
    vision, config = model.model.vision, model.config
    model.load_state_dict(torch.load(arguments.output / "text.pt", weights_only=True), strict=False)
    concepts = load_concepts()
    # With a copy of the embeddings: what is to be told must not move while the text model learns on.
    teller = Teller(concepts, tokenizer, copy.deepcopy(model.get_input_embeddings()))
    teller.load_state_dict(torch.load(arguments.output / "teller.pt", weights_only=True))
    classifier = Classifier(len(concepts)).requires_grad_(False).eval()
    classifier.load_state_dict(torch.load(arguments.output / "classifier.pt", weights_only=True))
    vision.vit = classifier.vit
    size = config.vision_config.image_size
    processor = VisGLMProcessor(
        image_processor=VisGLMImageProcessor(size={"height": size, "width": size}),
        tokenizer=tokenizer,
        num_query_tokens=config.num_query_tokens,
        prompt_style=config.prompt_style,
    )
    world = World(arguments.data / "train.npz", image_size=size, seed=arguments.seed + 100)
    scenes_of = iter(SceneStream(world, arguments.pictures).loader())
    asker = Asker(concepts, seed=arguments.seed)

    def step_loss() -> dict[str, Tensor]:
        scenes = next(scenes_of)
        rows = Rows(tokenizer, config.num_query_tokens)
        add_questions(rows, scenes, asker, arguments.questions, num_without_picture=1)
        with torch.no_grad():
            told = teller(scenes.in_reading_order())
            features = classifier(scenes.pictures)
        image_embeds = vision.bridge(features)
        return {
            "answers": rows.loss(model, image_embeds),
            "told": F.mse_loss(image_embeds, told) / told.var(),
        }

    def save_model() -> dict[str, float]:
        save(model, processor, arguments.output / "model")
        return {}

    rate = arguments.learning_rate
    rates = (
        (nn.ModuleList([vision.qformer, vision.projection]), rate),
        (nn.ModuleList([model.model.text, model.lm_head]), 0.4 * rate),
    )
    groups = [group for modules, lr in rates for group in parameter_groups(modules, lr=lr)]
    groups.append({"params": [vision.query_tokens], "weight_decay": 0.0, "lr": rate})
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    train(optimizer, step_loss, arguments.steps, arguments.output / "train.jsonl", every=(400, save_model))


def save(model: VisGLMForConditionalGeneration, processor: VisGLMProcessor, output: Path) -> None:
    """Write a folder `VisGLM.from_pretrained` loads, in float16, which halves the package and loses nothing."""
    copy.deepcopy(model).half().save_pretrained(output)
    processor.save_pretrained(output)


if __name__ == "__main__":
    main()
