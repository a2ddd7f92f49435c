"""The player's answers are torch's: tokens, text, log-probabilities, histories, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.light.talks import EXAMPLES, compare
from visglm.errors import ConfigError, ContextLengthError, ImageError, PromptError
from visglm.light import VisGLM as LightVisGLM

CAT, PAIR = EXAMPLES / "cat.png", EXAMPLES / "pair.png"


def test_twenty_prompts_have_the_same_answers(vlm, light):
    assert compare(vlm, light, 20) == []


@pytest.mark.slow
def test_a_thousand_prompts_have_the_same_answers(vlm, light):
    assert compare(vlm, light, 1000, seed=1) == []


def test_pictures_are_seen_the_same(vlm, light):
    pictures = [CAT, Image.new("L", (31, 200), 90), np.zeros((5, 9, 3), np.uint8)]
    torch.testing.assert_close(torch.from_numpy(light.encode(pictures)), vlm.encode(pictures), rtol=0, atol=1e-3)
    pixels = light.network.pixels([Image.open(CAT).convert("RGB")])
    wanted = vlm.processor.image_processor([CAT], return_tensors="np")["pixel_values"]
    assert np.array_equal(pixels, wanted)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.5},
        {"min_new_tokens": 9, "max_new_tokens": 12},
        {"stop": ["猫"]},
        {"logit_bias": {10: 3.0, 100: -100.0}},
        {"choices": ["图中有猫。", "图中有狗。"]},
        {"logprobs": 3},
        {"regex": "(猫|狗)[0-9]{2}"},
        {"language": "zh"},
    ],
)
def test_settings_mean_the_same(vlm, light, settings):
    one, other = (model.chat(CAT, "What is it? 这是什么？", **settings) for model in (vlm, light))
    assert (one.text, one.ids, one.finish_reason) == (other.text, other.ids, other.finish_reason)
    assert one.usage == other.usage
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-3)
    assert one.scores.keys() == other.scores.keys()
    np.testing.assert_allclose([*one.scores.values()], [*other.scores.values()], atol=1e-3)
    for found, wanted in zip(other.alternatives, one.alternatives, strict=True):
        assert [id_ for id_, _ in found] == [id_ for id_, _ in wanted]


def test_the_shares_of_a_draw_are_the_same(vlm, light):
    """What torch's settings leave of a distribution, and with what shares, is what the player draws from."""
    from visglm.engine import Chooser
    from visglm.light.choosing import Chooser as LightChooser
    from visglm.light.choosing import softmax
    from visglm.sampling import Sampling

    logits = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 3
    ids = [1, 2, 3, 2, 3, 1, 2]
    for settings in (
        {"temperature": 0.7}, {"temperature": 1.5, "top_k": 7}, {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 2.0, "min_p": 0.1}, {"temperature": 1.2, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.3},
    ):  # fmt: skip
        sampling = Sampling(**settings, seed=0)
        also = {"no_repeat_ngram_size": 2}
        wanted = logits[None].clone()
        for processor in Chooser(sampling, [4], ids, torch.device("cpu"), also)._processors:
            wanted = processor(torch.tensor([ids]), wanted)
        found = logits.numpy().copy()
        for step, value in LightChooser(sampling, [4], ids, also)._steps:
            found = step(found, ids, value)
        np.testing.assert_allclose(softmax(found), wanted[0].softmax(-1).numpy(), atol=1e-6)


def test_a_seed_repeats_an_answer(light):
    drawn = [light.chat(CAT, "What is it?", temperature=2.0, seed=seed, n=2) for seed in (3, 3, 4)]
    assert drawn[0].ids == drawn[1].ids
    assert drawn[0].others[0].ids == drawn[2].ids  # the second of seed 3 is the first of seed 4
    assert len({light.chat(CAT, "What is it?", temperature=3.0, seed=seed).ids for seed in range(8)}) > 1


def test_a_stream_is_the_answer_in_pieces(light):
    whole = light.chat(CAT, "描述这张图片。")
    stream = light.stream_chat(CAT, "描述这张图片。")
    assert "".join(stream) == whole.text == stream.reply.text
    assert stream.reply == whole
    stream = light.stream_chat(CAT, "描述这张图片。", min_new_tokens=40)
    next(stream)
    stream.close()
    assert list(stream) == [] and stream.reply.finish_reason == "cancelled"
    assert 0 < len(stream.reply.ids) < 40


def test_a_conversation_goes_on_without_looking_again(light, monkeypatch):
    first = light.chat([CAT, PAIR], "有几只猫？")
    monkeypatch.setattr(light.network, "look", lambda pixels: pytest.fail("looked again"))
    second = light.chat(None, "它在哪里？", first.history)
    assert second.history.num_images == 2 and len(second.history.turns) == 2
    assert second.history == light.chat(None, "它在哪里？", first.history).history


def test_another_models_history_is_refused(vlm, light):
    history = vlm.chat(CAT, "描述这张图片。").history
    with pytest.raises(PromptError, match="another network's"):
        light.chat(None, "它在哪里？", history)


@pytest.mark.parametrize(
    "arguments, settings, error",
    [
        ((CAT, ""), {}, PromptError),
        (("nowhere.png", "What?"), {}, ImageError),
        (("http://127.0.0.1/a.png", "What?"), {}, ImageError),
        ((CAT, "What?"), {"temperature": -1}, ConfigError),
        ((CAT, "What?"), {"logit_bias": {10**6: 1.0}}, ConfigError),
        ((CAT, "What? " * 400), {}, ContextLengthError),
        ((CAT, "What?"), {"max_new_tokens": 600}, ContextLengthError),
    ],
)
def test_errors_are_the_same(vlm, light, arguments, settings, error):
    messages = []
    for model in (vlm, light):
        with pytest.raises(error) as caught:
            model.chat(*arguments, **settings)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_blanks_are_filled_and_many_are_asked(vlm, light):
    assert light.fill("图中有[MASK]。").text == vlm.fill("图中有[MASK]。").text
    replies = light.batch([(CAT, "What is it?"), ("nowhere.png", "What?")], on_error="return")
    assert replies[0].text == vlm.chat(CAT, "What is it?").text
    assert isinstance(replies[1], ImageError)


def test_threads_may_share_a_player(light):
    from concurrent.futures import ThreadPoolExecutor

    wanted = light.chat(CAT, "描述这张图片。").ids
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: light.chat(CAT, "描述这张图片。").ids, range(8)))
    assert set(found) == {wanted}


def test_calls_take_what_torchs_take(vlm):
    """A setting that one of the two learns must reach the other."""
    import inspect

    for name in ("chat", "stream_chat", "fill"):
        one, other = (inspect.signature(getattr(kind, name)).parameters for kind in (type(vlm), LightVisGLM))
        wanted = [str(part) for part in one.values() if part.name != "adapter"]  # an exported model's is in its weights
        assert [str(part) for part in other.values()] == wanted
