"""Heat maps: of the right place, of the right picture, and without a trace left on the model."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional

from visglm import Explanation, VisGLM, VisGLMConfig, VisGLMForConditionalGeneration
from visglm.errors import PromptError, VisGLMError
from visglm.explain import answer_log_likelihood
from visglm.explanation import OVERLAY_SIZE, PALETTE
from visglm.prompt import Turn, render


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained()


def disc(colour: str = "red", size: tuple[int, int] = (90, 60)) -> Image.Image:
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).ellipse((10, 10, size[0] // 2, size[1] - 10), colour)
    return picture


def test_heat_covers_the_patches_and_ends_at_one(vlm):
    explanation = vlm.explain(disc(), "What is this?", "It is a cat.")
    vision = vlm.model.config.vision_config
    assert explanation.heat.shape == (vision.image_size // vision.stride,) * 2
    assert explanation.heat.min() >= 0 and explanation.heat.max() == 1
    assert explanation.answer == "It is a cat."
    assert explanation.image.size == (90, 60)


@pytest.mark.parametrize("seen", [0, 7, 24])
def test_only_what_carried_information_is_hot(vlm, monkeypatch, seen):
    """All patches but one hold nothing, and a cross-attention without value bias hands nothing on from them."""
    vision = vlm.model.model.vision
    for name, parameter in vision.qformer.named_parameters():
        if "crossattention" in name and name.endswith("value.bias"):
            monkeypatch.setattr(parameter, "data", torch.zeros_like(parameter))

    def blank(module, arguments, features):
        kept = torch.zeros_like(features)
        kept[:, 1 + seen] = features[:, 1 + seen]
        return kept

    hook = vision.vit.register_forward_hook(blank)
    try:
        heat = vlm.explain(disc(), "What is this?", "It is a cat.").heat
    finally:
        hook.remove()
    assert heat.flatten().argmax() == seen
    assert np.count_nonzero(heat) == 1


def test_the_answer_counts(vlm):
    one = vlm.explain(disc(), "What is this?", "It is a cat.").heat
    other = vlm.explain(disc(), "What is this?", "这是一只狗。").heat
    assert not np.allclose(one, other, atol=1e-4)


def test_likelihood_is_the_loss(vlm):
    turns = [Turn("What is this?", "It is a cat.", num_images=1)]
    row = render(turns, tokenizer=vlm.tokenizer, style="visualglm", num_query_tokens=vlm.processor.num_query_tokens)
    embeds, labels = vlm.encode(disc()), torch.tensor([row.labels], device=vlm.device)
    with torch.no_grad():
        likelihood = answer_log_likelihood(vlm.model, row.input_ids, row.labels, embeds)
        ids = torch.tensor([row.input_ids], device=vlm.device)
        logits = vlm.model(input_ids=ids, image_embeds=embeds).logits[:, :-1]
    loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(likelihood, -loss)


def test_without_an_answer_the_models_own_is_explained(vlm):
    assert vlm.explain(disc(), "What is this?").answer == vlm.chat(disc(), "What is this?").text


def test_any_picture_of_a_conversation_can_be_explained(vlm):
    first, second = disc("red"), disc("blue", (60, 90))
    reply = vlm.chat(first, "What is this?", max_new_tokens=4)
    ask = ("And this?", "It is a cat.", reply.history)
    heats = [vlm.explain([first, second], *ask, picture=place).heat for place in (0, 1)]
    assert not np.allclose(*heats, atol=1e-4)
    last = vlm.explain([first, second], *ask)
    np.testing.assert_array_equal(last.heat, heats[1])
    assert last.image.size == (60, 90)
    follow_up = vlm.explain(first, "Where is it?", "It is on the left.", reply.history)
    assert follow_up.heat.max() == 1


def test_the_model_is_left_as_it_was(vlm):
    before = vlm.chat(disc(), "What is this?").text
    usual = vlm.model.model.vision.qformer.config._attn_implementation
    vlm.explain(disc(), "What is this?", "It is a cat.")
    assert vlm.model.model.vision.qformer.config._attn_implementation == usual != "eager"
    assert all(parameter.grad is None for parameter in vlm.model.parameters())
    assert vlm.chat(disc(), "What is this?").text == before


@pytest.mark.parametrize(
    "images, history, picture, message",
    [
        (None, None, -1, "at least one; got 0"),
        ([disc()], "two", -1, "got 1, and the history has 2"),
        ([disc()], None, 1, "number 1 to explain"),
        ([disc()], None, -2, "number -2 to explain"),
    ],
)
def test_refusals(vlm, images, history, picture, message):
    if history == "two":
        history = vlm.chat([disc(), disc()], "Compare.", max_new_tokens=2).history
    with pytest.raises(PromptError, match=message):
        vlm.explain(images, "What is this?", "A cat.", history, picture=picture)


def test_a_text_only_model_has_nothing_to_explain(vlm):
    text_config = dict(vlm.model.config.text_config.to_dict(), num_hidden_layers=1)
    model = VisGLMForConditionalGeneration(VisGLMConfig(text_config=text_config))
    with pytest.raises(PromptError, match="text-only"):
        VisGLM(model, vlm.processor).explain(disc(), "What is this?", "A cat.")


def test_weights_without_gradients_are_refused_in_words(vlm):
    hook = vlm.model.lm_head.register_forward_hook(lambda module, arguments, output: output.detach())
    try:
        with pytest.raises(VisGLMError, match="without `quantize`, or, where the folder itself is quantized, from the"):
            vlm.explain(disc(), "What is this?", "A cat.")
    finally:
        hook.remove()


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.filterwarnings("ignore:int4 is several times slower")
def test_a_quantized_model_is_explained_too_and_so_is_its_folder(vlm, tmp_path, scheme):
    ask = (disc(), "What is this?", "It is a cat.")
    at_load = VisGLM.from_pretrained(quantize=scheme)
    heat = at_load.explain(*ask).heat
    np.testing.assert_allclose(heat, vlm.explain(*ask).heat, atol={"int8": 0.15, "int4": 0.5}[scheme])
    at_load.save_pretrained(tmp_path)
    np.testing.assert_array_equal(VisGLM.from_pretrained(tmp_path).explain(*ask).heat, heat)


def test_a_frozen_model_is_explained_too():
    """As a base is once LoRA has been trained over it."""
    ask = (disc(), "What is this?", "It is a cat.")
    vlm = VisGLM.from_pretrained()
    wanted = vlm.explain(*ask).heat
    vlm.model.requires_grad_(False)
    np.testing.assert_array_equal(vlm.explain(*ask).heat, wanted)
    assert not any(parameter.requires_grad for parameter in vlm.model.parameters())


def test_overlay_is_hot_where_the_heat_is():
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 1
    picture = Image.new("RGB", (80, 40), "white")
    overlay = np.asarray(Explanation(heat, picture, "").overlay(strength=1.0)).astype(int)
    assert overlay.shape == (40, 80, 3)
    assert np.abs(overlay[0, -1] - PALETTE[-1]).max() < 30
    assert np.abs(overlay[-1, 0] - (255 * 0.65 + PALETTE[0] * 0.35)).max() <= 1
    larger = Explanation(heat, picture, "").overlay(Image.new("L", (160, 80)))
    assert larger.size == (160, 80) and larger.mode == "RGB"
    assert np.asarray(Explanation(heat, picture, "").overlay(strength=0.0)).min() == 255


@pytest.mark.parametrize("size", [(16000, 1000), (4000, 4000), (1, 5000), (1025, 512)])
def test_overlays_are_as_large_as_can_be_shown_and_take_memory_for_that(size):
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 1
    explanation = Explanation(heat, Image.new("RGB", size, "white"), "")
    tracemalloc.start()  # NumPy tells it of its arrays; Pillow's images are bounded by what they are made of
    try:
        overlay = explanation.overlay()
        peak = tracemalloc.get_traced_memory()[1]
        explanation._repr_html_()
        assert tracemalloc.get_traced_memory()[1] < 120 * 2**20
    finally:
        tracemalloc.stop()
    assert max(overlay.size) == OVERLAY_SIZE and min(overlay.size) == max(1, round(min(size) * 1024 / max(size)))
    assert peak < 120 * 2**20
    pixels = np.asarray(overlay).astype(int)
    warmth = pixels[..., 0] - pixels[..., 2]
    assert warmth.max() > 50 > -10 > warmth.min() or min(size) == 1  # one column lies between hot and cold


def test_notebooks_show_it():
    shown = Explanation(np.ones((2, 2), np.float32), disc(), "<script>alert(1)</script>")._repr_html_()
    assert "data:image/png;base64," in shown
    assert "<script>" not in shown and "&lt;script&gt;" in shown
