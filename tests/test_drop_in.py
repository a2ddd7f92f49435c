"""The script in VisualGLM-6B's README, minus trust_remote_code."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

import visglm
from tests.tiny import GOLDEN_HF, GOLDEN_SAT, expected
from visglm.errors import ConfigError, ContextLengthError, PromptError

SCRIPT = """
import visglm
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({folder!r})
model = AutoModel.from_pretrained({folder!r}).half()
image_path = {image!r}
response, history = model.chat(tokenizer, image_path, "描述这张图片。", history=[])
print(response)
response, history = model.chat(tokenizer, image_path, "这张图片可能是在什么场所拍摄的？", history=history)
print(response)
assert len(history) == 2 and history[1][1] == response, history
"""


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    return str(path)


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(GOLDEN_HF)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(GOLDEN_HF)


@pytest.mark.timeout(300)
def test_the_readme_script_runs(picture):
    code = SCRIPT.format(folder=str(GOLDEN_HF), image=picture)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@torch.no_grad()
def test_it_is_the_golden_network(model):
    golden = expected("visualglm")
    torch.testing.assert_close(model(golden["text_ids"]).logits, golden["text_logits"], rtol=0, atol=1e-4)


def test_answers_are_those_of_visglm(model, tokenizer, picture):
    """`max_length` counts prompt and answer together, as it did."""
    vlm = visglm.VisGLM.from_pretrained(GOLDEN_HF, device="cpu")
    reply = vlm.chat(picture, "问题", max_new_tokens=5)
    length = reply.usage.prompt_tokens + 5
    response, history = model.chat(tokenizer, picture, "问题", history=[], do_sample=False, max_length=length)
    assert (response, history) == (reply.text, [("问题", reply.text)])
    second = vlm.chat(None, "再问", history=reply.history, max_new_tokens=5)
    length = second.usage.prompt_tokens + 5
    response, history = model.chat(tokenizer, picture, "再问", history=history, do_sample=False, max_length=length)
    assert response == second.text and len(history) == 2


def test_by_default_an_answer_may_fill_the_context(model, tokenizer, picture):
    """The original's default was the length of its context, whatever the prompt left of it."""
    long = "问题" * 20
    vlm = visglm.VisGLM.from_pretrained(GOLDEN_HF, device="cpu")
    length = vlm.chat(picture, long, max_new_tokens=1).usage.prompt_tokens
    room = model.config.text_config.max_position_embeddings - length
    answer, _ = model.chat(tokenizer, picture, long, history=[], do_sample=False)
    assert 0 < room < 200 and answer == vlm.chat(picture, long, max_new_tokens=room).text


def test_a_length_that_leaves_no_room_is_told(model, tokenizer, picture):
    with pytest.raises(ContextLengthError, match="the limit is 5"):
        model.chat(tokenizer, picture, "问题", max_length=5)
    for length in (0, "5", 5.0):
        with pytest.raises(ConfigError, match="max_length must be at least 1, a whole number, or None"):
            model.chat(tokenizer, picture, "问题", max_length=length)


def test_streams_end_with_the_whole_answer(model, tokenizer, picture):
    pieces = list(model.stream_chat(tokenizer, picture, "问题", history=[], do_sample=False, max_length=100))
    assert pieces[-1] == model.chat(tokenizer, picture, "问题", do_sample=False, max_length=100)


def test_quantize_in_place(tokenizer, picture):
    model = AutoModel.from_pretrained(GOLDEN_HF)
    with pytest.raises(ConfigError, match="8 or 4 bits; got 2"):
        model.quantize(2)
    at_load = visglm.VisGLM.from_pretrained(GOLDEN_HF, device="cpu", dtype="float32", quantize="int8").model
    ids = expected("visualglm")["text_ids"]
    with torch.no_grad():
        torch.testing.assert_close(model.quantize(8)(ids).logits, at_load(ids).logits)
    assert model.chat(tokenizer, picture, "问题", history=[], max_length=100)[1][0][0] == "问题"


def test_other_formats_load_by_the_class_too():
    ids = expected("visualglm")["text_ids"]
    with torch.no_grad():
        logits = [
            type(AutoModel.from_pretrained(GOLDEN_HF)).from_pretrained(path)(ids).logits
            for path in (GOLDEN_HF, GOLDEN_SAT)
        ]
    assert torch.equal(*logits)


def test_what_it_does_not_know_is_refused(model, tokenizer, picture):
    with pytest.raises(ConfigError, match="device_map"):
        AutoModel.from_pretrained(GOLDEN_HF, device_map="auto")
    with pytest.raises(ConfigError, match="min_len"):
        model.chat(tokenizer, picture, "问题", min_len=3)
    with pytest.raises(PromptError, match="image_path, query, history"):
        model.chat(tokenizer, picture, "问题", [], 1)
