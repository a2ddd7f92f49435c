"""A newcomer's backbone is one class and one row: it chats, streams, is saved, loaded and fine-tuned by that."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import LlamaConfig, LlamaModel
from transformers.masking_utils import create_masks_for_generate
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from visglm import VisGLM, VisGLMConfig, VisGLMForConditionalGeneration, VisGLMProcessor
from visglm.text import BACKBONES, register
from visglm.text.prefix import attentions

QUESTION = "What is this?"
FAST = {"max_steps": 1, "batch_size": 2, "num_workers": 0, "held_out": 0.0, "num_samples": 0, "report_to": "none"}


class ToyConfig(LlamaConfig):
    model_type = "visglm_toy"
    base_config_key = "text_config"


class ToyLayer(LlamaDecoderLayer):
    """Its attention has a name that no other backbone gives it."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.mixer = self._modules.pop("self_attn")

    @property
    def self_attn(self):
        return self.mixer


class ToyModel(LlamaModel):
    config_class = ToyConfig
    reads_prefix_both_ways = False
    attention_name = "mixer"
    _no_split_modules = ["ToyLayer"]

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList([ToyLayer(config, index) for index in range(config.num_hidden_layers)])
        self.post_init()

    @staticmethod
    def prompt_inputs(config, input_ids, attention_mask):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}

    @staticmethod
    def extend_position_ids(position_ids, num_new_tokens):
        return torch.cat([position_ids, position_ids[:, -1:] + torch.arange(1, num_new_tokens + 1)], dim=-1)

    @staticmethod
    def create_masks_for_generate(config, *args, **kwargs):
        return create_masks_for_generate(config.get_text_config(), *args, **kwargs)

    def forward(self, *args, token_type_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.fixture(scope="module")
def toy():
    """The embedded model with a toy in place of its text model, and random weights."""
    register(ToyModel)
    whole = VisGLM.from_pretrained(device="cpu")
    fields = whole.model.config.to_dict()
    fields.pop("architectures")
    text = ToyConfig(
        vocab_size=fields["text_config"]["vocab_size"], hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=whole.tokenizer.bos_token_id, eos_token_id=whole.tokenizer.eos_token_id,
        pad_token_id=whole.tokenizer.pad_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    config = VisGLMConfig(**fields | {"text_config": text.to_dict(), "prompt_style": "chatglm2"})
    yield VisGLM(VisGLMForConditionalGeneration(config), VisGLMProcessor.of(config, whole.tokenizer))
    del BACKBONES[ToyConfig.model_type]


@pytest.fixture(scope="module")
def picture():
    return Image.effect_noise((64, 64), 90).convert("RGB")


def test_its_configuration_names_it(toy):
    assert type(toy.model.model.text) is ToyModel and type(toy.model.config.text_config) is ToyConfig
    assert {"ToyLayer", "Block", "Blip2QFormerLayer"} <= set(toy.model._no_split_modules)
    assert [name for name, _ in attentions(toy.model.model.text)] == ["layers.0.mixer", "layers.1.mixer"]


def test_it_answers_in_a_batch_and_in_a_stream_as_alone(toy, picture):
    requests = [(picture, QUESTION), (None, "你好"), ([picture, picture], "Are they the same?")]
    singles = [toy.chat(*request, max_new_tokens=6).text for request in requests]
    assert [reply.text for reply in toy.batch(requests, progress=False, max_new_tokens=6)] == singles
    assert "".join(toy.stream_chat(*requests[0], max_new_tokens=6)) == singles[0]


def test_it_is_saved_and_loaded(toy, picture, tmp_path):
    toy.save_pretrained(tmp_path)
    again = VisGLM.from_pretrained(tmp_path, device="cpu")
    assert type(again.model.model.text) is ToyModel
    assert again.chat(picture, QUESTION, max_new_tokens=6) == toy.chat(picture, QUESTION, max_new_tokens=6)


@pytest.mark.parametrize("method", ["lora", "ptuning"])
def test_it_is_fine_tuned(toy, picture, method, tmp_path):
    turns = [{"role": "user", "content": f"<image>{QUESTION}"}, {"role": "assistant", "content": "Noise."}]
    toy.save_pretrained(tmp_path / "base")
    learner = VisGLM.from_pretrained(tmp_path / "base", device="cpu")
    rows = [{"images": [picture], "messages": turns}] * 2
    learner.finetune(rows, method, tmp_path / "out", learning_rate=0.3, **FAST)
    learnt = learner.chat(picture, QUESTION, max_new_tokens=6)
    assert VisGLM.from_pretrained(tmp_path / "out", device="cpu").chat(picture, QUESTION, max_new_tokens=6) == learnt
    assert learnt != toy.chat(picture, QUESTION, max_new_tokens=6)
