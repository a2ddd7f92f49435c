"""The player's heat maps are torch's."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.light.talks import EXAMPLES
from visglm.errors import ConfigError, PromptError, VisGLMError
from visglm.light import VisGLM as LightVisGLM

CAT, PAIR = EXAMPLES / "cat.png", EXAMPLES / "pair.png"
TOLERANCE = 1e-4  # of heat, whose largest is 1


@pytest.mark.parametrize(
    "images, prompt, answer, settings",
    [
        (CAT, "What is it?", None, {}),
        (CAT, "这是什么？", "图中有一只狗。", {"language": "zh"}),
        ([CAT, PAIR], "有几只猫？", None, {}),
        ([CAT, PAIR], "有几只猫？", None, {"picture": 0}),
        (PAIR, "Which one is left?", "A", {"picture": -1}),
    ],
)
def test_the_heat_is_torchs(vlm, light, images, prompt, answer, settings):
    one, other = (model.explain(images, prompt, answer, **settings) for model in (vlm, light))
    assert one.answer == other.answer and other.heat.dtype == np.float32
    np.testing.assert_allclose(other.heat, one.heat, atol=TOLERANCE, rtol=0)
    assert other.overlay().size == one.overlay().size


def test_a_conversations_heat_is_torchs(vlm, light):
    pairs = [("这是什么？", "一只猫。"), ("它在哪里？", "在左边。")]
    history = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    one, other = (model.explain(CAT, "What colour is it?", history=history) for model in (vlm, light))
    np.testing.assert_allclose(other.heat, one.heat, atol=TOLERANCE, rtol=0)
    for model in (vlm, light):
        first = model.chat([CAT], "What is it?")
        one, other = other, model.explain([CAT, PAIR], "And this?", history=first.history, picture=0)
    np.testing.assert_allclose(other.heat, one.heat, atol=TOLERANCE, rtol=0)


def test_another_picture_has_another_heat(light):
    """What is compared above is not the same map each time."""
    picture = Image.new("RGB", (90, 60), "white")
    ImageDraw.Draw(picture).ellipse((10, 10, 45, 50), "red")
    maps = [light.explain(image, "What is it?", "It is red.").heat for image in (picture, CAT)]
    assert np.abs(maps[0] - maps[1]).max() > 0.1


@pytest.mark.parametrize(
    "images, settings, error",
    [([], {}, PromptError), (CAT, {"picture": 1}, PromptError), (CAT, {"picture": "0"}, ConfigError)],
)
def test_errors_are_the_same(vlm, light, images, settings, error):
    messages = []
    for model in (vlm, light):
        with pytest.raises(error) as caught:
            model.explain(images, "What is it?", **settings)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_model_without_the_graph_says_so(monkeypatch):
    alone = LightVisGLM.from_pretrained()
    alone.encode(CAT)
    monkeypatch.delitem(alone.manifest.graphs, "heat")
    with pytest.raises(VisGLMError, match="Export it without `quantize`"):
        alone.explain(CAT, "What is it?")
