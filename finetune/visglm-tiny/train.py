"""Second stage: bridge and text model learn to answer, over the frozen ViT of the first stage.

    python train.py DATA OUTPUT --vit VIT.pt --minutes 30

Prompts come from `visglm.prompt` and the network from `visglm.model`: what is trained here is what chats later.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from common import normalize, parameter_groups, write_row
from questions import Asker, load_concepts, things_of
from torch import nn
from world import World

from visglm import (
    PRESETS,
    ChatGLMTokenizer,
    VisGLMConfig,
    VisGLMForConditionalGeneration,
    VisGLMImageProcessor,
    VisGLMProcessor,
)
from visglm.prompt import IGNORE_INDEX, Turn, render


def build_config(tokenizer: ChatGLMTokenizer) -> VisGLMConfig:
    """The preset, with the ids of this tokenizer."""
    fields = copy.deepcopy(PRESETS["visglm-tiny"])
    fields["text_config"] |= {
        "vocab_size": len(tokenizer.sp_model),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "mask_token_id": tokenizer.mask_token_id,
        "gmask_token_id": tokenizer.gmask_token_id,
    }
    return VisGLMConfig(**fields | {"image_token_id": tokenizer.image_token_id})


class Rows:
    """Rendered rows of a batch: `input_ids`, `attention_mask`, `labels [rows, length]`, and each row's picture."""

    def __init__(self, tokenizer: ChatGLMTokenizer, num_query_tokens: int):
        self.options = {"tokenizer": tokenizer, "style": "visualglm", "num_query_tokens": num_query_tokens}
        self.pad = tokenizer.pad_token_id
        self.rendered: list = []
        self.picture: list[int] = []

    def add(self, text: str, answer: str, language: str, picture: int | None) -> None:
        turn = Turn(text, answer, num_images=0 if picture is None else 1)
        self.rendered.append(render([turn], language=language, **self.options))
        self.picture += [] if picture is None else [picture]

    def tensors(self) -> dict[str, torch.Tensor]:
        length = max(len(row.input_ids) for row in self.rendered)
        return {
            "input_ids": torch.tensor([r.input_ids + [self.pad] * (length - len(r.input_ids)) for r in self.rendered]),
            "attention_mask": torch.tensor(
                [[1] * len(r.input_ids) + [0] * (length - len(r.input_ids)) for r in self.rendered]
            ),
            "labels": torch.tensor([r.labels + [IGNORE_INDEX] * (length - len(r.labels)) for r in self.rendered]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--vit", type=Path, required=True, help="weights of the first stage")
    parser.add_argument("--minutes", type=float, default=30, help="wall time to train for")
    parser.add_argument("--pictures", type=int, default=48, help="pictures per step")
    parser.add_argument("--questions", type=int, default=3, help="questions per picture")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_flush_denormal(True)
    arguments.output.mkdir(parents=True, exist_ok=True)

    tokenizer = ChatGLMTokenizer.from_pretrained(arguments.data / "tokenizer")
    config = build_config(tokenizer)
    model = VisGLMForConditionalGeneration(config).train()
    vision = model.model.vision
    vision.vit.load_state_dict(torch.load(arguments.vit, weights_only=True))
    vision.vit.requires_grad_(False).eval()
    size = config.vision_config.image_size
    processor = VisGLMProcessor(
        image_processor=VisGLMImageProcessor(size={"height": size, "width": size}),
        tokenizer=tokenizer,
        num_query_tokens=config.num_query_tokens,
        prompt_style=config.prompt_style,
    )
    world = World(arguments.data / "train.npz", image_size=size, seed=arguments.seed + 100)
    asker = Asker(load_concepts(), seed=arguments.seed)

    optimizer = torch.optim.AdamW(parameter_groups(model), lr=arguments.learning_rate, betas=(0.9, 0.98))
    log = arguments.output / "train.jsonl"
    log.unlink(missing_ok=True)
    started, step = time.time(), 0
    while (progress := (time.time() - started) / 60 / arguments.minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * min(progress / 0.03, 1) * 0.5 * (1 + math.cos(math.pi * progress))
        scenes = world.sample(arguments.pictures)
        rows = Rows(tokenizer, config.num_query_tokens)
        for index, count in enumerate(scenes.count.tolist()):
            values = (scenes.concept, scenes.centre, scenes.colour)
            things = things_of(*(value[index, :count].tolist() for value in values))
            for _ in range(arguments.questions):
                question = asker.ask(things)
                rows.add(question.text, question.answer, question.language, index)
        for _ in range(2):
            question = asker.ask_without_picture()
            rows.add(question.text, question.answer, question.language, None)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                features = vision.vit(normalize(scenes.pictures))
            image_embeds = vision.bridge(features.float())
            loss = model(**rows.tensors(), image_embeds=image_embeds[rows.picture], use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            write_row(log, step=step, minutes=(time.time() - started) / 60, loss=loss.item())
        if step % 500 == 0:
            save(model, processor, arguments.output)
    save(model, processor, arguments.output)


def save(model: VisGLMForConditionalGeneration, processor: VisGLMProcessor, output: Path) -> None:
    """Write a folder `VisGLM.from_pretrained` loads, in float16, which halves the package and loses nothing."""
    copy.deepcopy(model).half().save_pretrained(output)
    processor.save_pretrained(output)


if __name__ == "__main__":
    main()
