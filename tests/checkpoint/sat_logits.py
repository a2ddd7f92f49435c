"""Run by test_sat.py in a process of its own: what SwissArmyTransformer computes from a folder.

    python sat_logits.py FOLDER INPUTS OUTPUTS

The composition of VisualGLM (ViT, Q-Former, projection, ChatGLM) is not part of SwissArmyTransformer; here it is put
together from its parts under the names its checkpoints have. Every key must be there: SAT itself refuses missing ones.
"""

from __future__ import annotations

import argparse
import sys

import torch
from safetensors.torch import load_file, save_file
from sat.model import BaseModel
from sat.model.mixins import BaseMixin
from sat.model.official.chatglm_model import ChatGLMModel
from sat.model.official.vit_model import ViTModel
from torch import nn


class FinalNorm(BaseMixin):
    def __init__(self, size):
        super().__init__()
        self.ln_vision = nn.LayerNorm(size)

    def final_forward(self, logits, **kwargs):
        return self.ln_vision(logits)


class Vit(ViTModel):
    def __init__(self, args, transformer=None, **kwargs):
        super().__init__(args, transformer=transformer, **kwargs)
        self.del_mixin("cls")
        self.add_mixin("cls", FinalNorm(args.hidden_size))

    def forward(self, image):
        ids = torch.zeros(image.shape[0], 1, dtype=torch.long)
        return super().forward(input_ids=ids, position_ids=None, attention_mask=torch.ones(1, 1), image=image)[0]


class QFormer(BaseModel):
    def __init__(self, args, transformer=None, **kwargs):
        super().__init__(args, transformer=transformer, activation_func=nn.functional.gelu, **kwargs)
        self.transformer.position_embeddings = None
        self.num_queries = args.vocab_size

    def final_forward(self, logits, **kwargs):
        return logits

    def position_embedding_forward(self, position_ids, **kwargs):
        return None

    def forward(self, features):
        ids = torch.arange(self.num_queries)[None].expand(features.shape[0], -1)
        one = torch.ones(1, 1)
        return super().forward(
            input_ids=ids, position_ids=None, attention_mask=one, encoder_outputs=features, cross_attention_mask=one
        )[0]


class Bridge(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.vit = Vit(part_of(args, args.eva_args))
        self.qformer = QFormer(part_of(args, args.qformer_args))
        self.glm_proj = nn.Linear(args.qformer_args["hidden_size"], args.hidden_size)

    def forward(self, image):
        return self.glm_proj(self.qformer(self.vit(image)))


class Eye(BaseMixin):
    def __init__(self, args):
        super().__init__()
        self.model = Bridge(args)

    def word_embedding_forward(self, input_ids, image=None, **kwargs):
        words = self.transformer.word_embeddings(input_ids)
        if image is None:
            return words
        seen = self.model(image)
        return torch.cat([words[:, :1], seen, words[:, 1 + seen.shape[1] :]], dim=1)


class VisualGLM(ChatGLMModel):
    def __init__(self, args, transformer=None, **kwargs):
        super().__init__(args, transformer=transformer, **kwargs)
        self.add_mixin("eva", Eye(args))


def part_of(args, fields):
    """The arguments of a tower: those of the whole, with its own on top."""
    defaults = {"inner_hidden_size": None, "is_decoder": False, "cross_attn_hidden_size": None}
    return argparse.Namespace(**{**vars(args), "hidden_size_per_attention_head": None, **defaults, **fields})


@torch.no_grad()
def main(folder, inputs, outputs):
    model, _ = VisualGLM.from_pretrained(folder)
    model.eval()
    given = load_file(inputs)
    logits = model(input_ids=given["input_ids"], image=given["pixel_values"])[0]
    text_logits = model(input_ids=given["text_ids"])[0]
    save_file({"logits": logits.contiguous(), "text_logits": text_logits.contiguous()}, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
