"""Third stage: the bridge learns to tell the text model what the ViT sees.

    python train.py DATA OUTPUT --vit CLASSIFIER.pt --text TEXT.pt

The ViT of the first stage stays as it is; the text model of the second goes on learning, slower. Prompts come from
`visglm.prompt` and the network from `visglm.model`: what is trained here is what chats later.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from common import (
    Rows,
    add_questions,
    arguments_parser,
    build_model,
    build_tokenizer,
    normalize,
    parameter_groups,
    train,
)
from questions import Asker, load_concepts
from torch import Tensor
from world import SceneStream, World

from visglm import VisGLMForConditionalGeneration, VisGLMImageProcessor, VisGLMProcessor


def main() -> None:
    parser = arguments_parser(__doc__, steps=1500)
    parser.add_argument("--vit", type=Path, required=True, help="weights of the first stage")
    parser.add_argument("--text", type=Path, required=True, help="weights of the second stage")
    parser.add_argument("--pictures", type=int, default=32, help="pictures per step")
    parser.add_argument("--questions", type=int, default=2, help="questions per picture")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer(arguments.data)
    model = build_model(tokenizer)
    vision, config = model.model.vision, model.config
    classifier = torch.load(arguments.vit, weights_only=True)
    vision.vit.load_state_dict({k.removeprefix("vit."): v for k, v in classifier.items() if k.startswith("vit.")})
    vision.vit.requires_grad_(False).eval()
    model.load_state_dict(torch.load(arguments.text, weights_only=True), strict=False)
    size = config.vision_config.image_size
    processor = VisGLMProcessor(
        image_processor=VisGLMImageProcessor(size={"height": size, "width": size}),
        tokenizer=tokenizer,
        num_query_tokens=config.num_query_tokens,
        prompt_style=config.prompt_style,
    )
    world = World(arguments.data / "train.npz", image_size=size, seed=arguments.seed + 100)
    scenes_of = iter(SceneStream(world, arguments.pictures).loader())
    asker = Asker(load_concepts(), seed=arguments.seed)

    def step_loss() -> dict[str, Tensor]:
        scenes = next(scenes_of)
        rows = Rows(tokenizer, config.num_query_tokens)
        add_questions(rows, scenes, asker, arguments.questions)
        with torch.no_grad():
            features = vision.vit(normalize(scenes.pictures))
        return {"loss": rows.loss(model, vision.bridge(features))}

    def save_model() -> dict[str, float]:
        save(model, processor, arguments.output / "model")
        return {}

    rate = arguments.learning_rate
    text_and_head = torch.nn.ModuleList([model.model.text, model.lm_head])
    groups = parameter_groups(vision, lr=rate) + parameter_groups(text_and_head, lr=0.4 * rate)
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    train(optimizer, step_loss, arguments.steps, arguments.output / "train.jsonl", every=(250, save_model))


def save(model: VisGLMForConditionalGeneration, processor: VisGLMProcessor, output: Path) -> None:
    """Write a folder `VisGLM.from_pretrained` loads, in float16, which halves the package and loses nothing."""
    copy.deepcopy(model).half().save_pretrained(output)
    processor.save_pretrained(output)


if __name__ == "__main__":
    main()
