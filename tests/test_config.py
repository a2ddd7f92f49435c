"""Configurations: presets, sub-configurations, and what must not become a silent default."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, Blip2QFormerConfig

from visglm import PRESETS, ChatGLMConfig, VisGLMConfig, VisGLMForConditionalGeneration, VisGLMVisionConfig
from visglm.errors import ConfigError

TINY = {
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    },
    "qformer_config": {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16},
    "text_config": {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    | {f"{name}_token_id": index for index, name in enumerate(("pad", "bos", "eos", "mask", "gmask"))},
    "image_token_id": 31,
}  # fmt: skip


def test_parts_become_configurations_of_their_own():
    config = VisGLMConfig(**TINY)
    parts = (config.vision_config, config.qformer_config, config.text_config)
    assert [type(part) for part in parts] == [VisGLMVisionConfig, Blip2QFormerConfig, ChatGLMConfig]
    assert config.qformer_config.encoder_hidden_size == 16
    assert config.get_text_config() is config.text_config


def test_a_configuration_survives_its_file(tmp_path):
    config = VisGLMConfig(**TINY, num_query_tokens=5, prompt_style="chatglm")
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is VisGLMConfig
    assert again.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}


def test_presets_have_the_published_sizes():
    """Counted by hand: 12 h² + 13 h per ChatGLM layer, embeddings and head, final norm; 7.8 billion in all."""
    num_parameters = {}
    for name in ("visualglm-6b", "chatglm-6b"):
        with torch.device("meta"):
            model = VisGLMForConditionalGeneration(VisGLMConfig.preset(name))
        num_parameters[name] = model.num_parameters()
    hidden, vocab = 4096, 130528
    assert num_parameters["chatglm-6b"] == 28 * (12 * hidden**2 + 13 * hidden) + 2 * vocab * hidden + 2 * hidden
    assert round(num_parameters["visualglm-6b"] / 1e9, 1) == 7.8
    with pytest.raises(ConfigError, match="visualglm-6b"):
        VisGLMConfig.preset("VisualGLM")
    assert "visglm-tiny" in PRESETS


@pytest.mark.parametrize(
    "part, key, hint",
    [
        ("vision_config", "num_layers", "num_hidden_layers"),
        ("text_config", "hiden_size", "hidden_size"),
        (None, "num_query_token", "num_query_tokens"),
    ],
)
def test_a_misspelt_size_is_no_silent_default(part, key, hint):
    fields = {name: dict(value) if isinstance(value, dict) else value for name, value in TINY.items()}
    (fields if part is None else fields[part])[key] = 3
    with pytest.raises(ConfigError, match=hint):
        VisGLMConfig(**fields)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_token_id": None}, "image_token_id"),
        ({"image_token_id": 0}, "pad_token_id, too"),
        ({"image_token_id": 2}, "eos_token_id, too"),
        ({"qformer_config": None}, "together"),
        ({"text_config": {"hidden_size": 18, "num_attention_heads": 4}}, "multiple of"),
        ({"text_config": {"hidden_size": 12, "num_attention_heads": 2}}, "multiple of 4"),
        ({"vision_config": {"image_size": 30, "patch_size": 14}}, "multiple of.* Nearest: 28 or 42"),
        ({"vision_config": {"image_size": 9, "patch_size": 14}}, "multiple of.* Nearest: 14."),
        ({"vision_config": {"image_size": 0, "patch_size": 14}}, "image_size must be a multiple of 14, .*got 0"),
        ({"vision_config": {"image_size": -28, "patch_size": 14}}, "image_size must be a multiple of 14, .*got -28"),
        ({"vision_config": {"image_size": "28", "patch_size": 14}}, "image_size must be .*got '28'|image_size"),
        ({"vision_config": {"patch_size": 0}}, "patch_size must be a whole number from 1 on; got 0"),
        ({"vision_config": {"num_attention_heads": 0}}, "num_attention_heads must be a whole number from 1 on; got 0"),
        ({"num_query_tokens": 0}, "num_query_tokens must be a whole number from 1 on; got 0"),
    ],
)
def test_what_cannot_be_built_raises(change, message):
    with pytest.raises(ConfigError, match=message):
        VisGLMConfig(**{**TINY, **change})
