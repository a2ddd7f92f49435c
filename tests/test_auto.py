"""The Auto classes and pipelines of transformers on a folder, without remote code."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    TextIteratorStreamer,
    pipeline,
)

import visglm
from visglm.checkpoint import EMBEDDED_MODEL


@pytest.mark.parametrize(
    "auto, expected",
    [
        (AutoConfig, "VisGLMConfig"),
        (AutoModel, "VisGLMModel"),
        (AutoModelForImageTextToText, "VisGLMForConditionalGeneration"),
        (AutoProcessor, "VisGLMProcessor"),
        (AutoImageProcessor, "VisGLMImageProcessor"),
        (AutoTokenizer, "ChatGLMTokenizer"),
    ],
)
def test_auto_classes_find_ours(auto, expected):
    assert type(auto.from_pretrained(EMBEDDED_MODEL)) is getattr(visglm, expected)


def test_loading_says_nothing():
    """No hint about backends, no progress bar: a notebook shows what its reader asked for."""
    code = "from visglm import VisGLM; VisGLM.from_pretrained()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")


def test_the_pipeline_answers_as_chat_does():
    picture = Image.new("RGB", (64, 64), "green")
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]
    pipe = pipeline("image-text-to-text", str(EMBEDDED_MODEL), device="cpu", dtype=torch.float32)
    [record] = pipe(text=messages, max_new_tokens=8, return_full_text=False)
    reply = visglm.VisGLM.from_pretrained(device="cpu").chat(picture, "What?", max_new_tokens=8)
    assert record["generated_text"] == reply.text


@pytest.mark.parametrize("question", ["Describe the picture.", "描述这张图片。"])
def test_text_streamers_spell_what_is_decoded(question):
    vlm = visglm.VisGLM.from_pretrained(device="cpu")
    part = {"type": "image", "image": Image.new("RGB", (64, 64), "green")}
    inputs = vlm.processor.apply_chat_template(
        [{"role": "user", "content": [part, {"type": "text", "text": question}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    streamer = TextIteratorStreamer(vlm.tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = vlm.model.generate(**inputs, max_new_tokens=16, streamer=streamer)[:, inputs["input_ids"].shape[1] :]
    assert "".join(streamer) == vlm.tokenizer.decode(ids[0], skip_special_tokens=True)


def test_public_names_exist_and_are_documented():
    for name in visglm.__all__:
        assert name in dir(visglm)
        assert name == "PRESETS" or getattr(visglm, name).__doc__, name
    with pytest.raises(AttributeError, match="VisGML"):
        _ = visglm.VisGML


def test_the_core_loads_no_optional_package():
    # Not accelerate, peft and wandb: transformers itself loads them where they are installed.
    optional = ("datasets", "fastapi", "sat", "streamlit", "tensorboard")
    code = f"import sys, visglm.chat; print([name for name in {optional} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
