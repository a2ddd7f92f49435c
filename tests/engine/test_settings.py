"""What one request may ask for: shortest and best of several, stops, biases, probabilities, one of a list."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image, ImageDraw

from visglm import VisGLM
from visglm.engine import Writer
from visglm.errors import ConfigError
from visglm.sampling import OTHERS, Sampling


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    picture = Image.new("RGB", (90, 60), "white")
    ImageDraw.Draw(picture).ellipse((10, 10, 80, 50), "red")
    return picture


QUESTION = "Describe this picture."


# --- stops ----------------------------------------------------------------------------------------------------------


def test_an_answer_ends_before_a_stop(vlm, picture):
    whole = vlm.chat(picture, QUESTION).text
    for stop in {whole[3:6], whole[-3:-1], whole[4]}:
        reply = vlm.chat(picture, QUESTION, stop=["never said", stop])
        assert reply.text == whole[: whole.index(stop)].strip()
        assert reply.finish_reason == "stop"
        assert reply.history.turns[-1].answer == reply.text
        assert len(reply.ids) <= len(vlm.chat(picture, QUESTION).ids)


def test_a_stop_is_never_half_shown(vlm, picture):
    whole = vlm.chat(picture, QUESTION).text
    stop = whole[len(whole) // 2 :][:6]
    pieces = list(vlm.stream_chat(picture, QUESTION, stop=stop))
    assert "".join(pieces) == whole[: whole.index(stop)].strip()
    almost = stop[:-1] + "☂"
    assert "".join(vlm.stream_chat(picture, QUESTION, stop=almost)) == whole  # what was held back comes after all


@pytest.mark.parametrize("style", ["visualglm", "chatglm2"])
def test_stops_lie_across_tokens_and_match_as_people_read_them(vlm, style):
    ids = vlm.tokenizer.encode("名称: 狗, 好的。and so on", add_special_tokens=False)
    for stop, wanted in (("狗, 好", True), ("：" if style == "visualglm" else ":", True), ("so  on", False)):
        writer, shown = Writer(vlm.tokenizer, style, [stop]), ""
        for token in ids:
            writer.push(token)
            assert writer.ready.startswith(shown)
            shown = writer.ready
            if writer.has_stopped:
                break
        assert writer.has_stopped is wanted
        whole = Writer(vlm.tokenizer, style)
        for token in ids:
            whole.push(token)
        assert whole.finish().startswith(writer.finish()) and stop not in writer.finish()


# --- lengths, biases, probabilities ---------------------------------------------------------------------------------


def test_the_shortest_answer_is_kept(vlm, picture):
    usual = vlm.chat(picture, "What is this?")
    longer = vlm.chat(picture, "What is this?", min_new_tokens=len(usual.ids) + 4)
    assert len(longer.ids) >= len(usual.ids) + 4
    assert longer.ids[: len(usual.ids) - 1] == usual.ids[:-1]
    assert vlm.chat(picture, "What is this?", min_new_tokens=2) == usual


def test_limits_that_a_checkpoint_brings_are_kept(vlm, picture, monkeypatch):
    usual = vlm.chat(picture, QUESTION, max_new_tokens=12)
    monkeypatch.setattr(vlm.model.generation_config, "min_new_tokens", len(usual.ids) + 3)
    longer = vlm.chat(picture, QUESTION)
    assert len(longer.ids) >= len(usual.ids) + 3
    monkeypatch.setattr(vlm.model.generation_config, "no_repeat_ngram_size", 1)
    unlike = vlm.chat(picture, QUESTION)
    assert len(set(longer.ids)) < len(longer.ids) and len(set(unlike.ids)) == len(unlike.ids)


def test_a_bias_rules_out_and_in(vlm, picture):
    usual = vlm.chat(picture, QUESTION)
    without = vlm.chat(picture, QUESTION, logit_bias={usual.ids[0]: -100})
    assert usual.ids[0] not in without.ids
    token = 1234
    always = vlm.chat(picture, QUESTION, logit_bias={token: 100}, max_new_tokens=3)
    assert always.ids == (token,) * 3
    size = vlm.model.config.text_config.vocab_size
    with pytest.raises(ConfigError, match=f"token 999999; this vocabulary has {size}"):
        vlm.chat(picture, QUESTION, logit_bias={999999: 1.0})


def test_min_p_keeps_what_is_likely_enough(vlm, picture):
    usual = vlm.chat(picture, QUESTION, max_new_tokens=8)
    drawn = vlm.chat(picture, QUESTION, max_new_tokens=8, temperature=1.0, seed=1, min_p=1.0)
    assert drawn.ids == usual.ids


def test_log_probabilities_and_alternatives(vlm, picture):
    reply = vlm.chat(picture, QUESTION, logprobs=3)
    assert len(reply.logprobs) == len(reply.alternatives) == len(reply.ids) == reply.usage.completion_tokens
    for token, logprob, others in zip(reply.ids, reply.logprobs, reply.alternatives, strict=True):
        assert others[0] == (token, logprob)
        assert [value for _, value in others] == sorted((value for _, value in others), reverse=True)
    assert vlm.tokenizer.decode(list(reply.ids), skip_special_tokens=True).strip() == reply.text
    drawn = vlm.chat(picture, QUESTION, temperature=3.0, seed=3, max_new_tokens=4, repetition_penalty=2.0)
    ids = vlm._compose(picture, QUESTION, None, "auto", Sampling()).rendered.input_ids
    with torch.no_grad():
        logits = vlm.model(torch.tensor([ids]), image_embeds=drawn.history.image_embeds).logits[0, -1]
    logits[vlm.tokenizer.image_token_id] = -math.inf
    assert drawn.logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[drawn.ids[0]]), abs=1e-4)


# --- several, and one of a list -------------------------------------------------------------------------------------


def test_several_answers_are_those_of_seeds_that_follow(vlm, picture):
    settings = {"temperature": 2.0, "max_new_tokens": 8}
    reply = vlm.chat(picture, QUESTION, seed=5, n=3, **settings)
    singles = [vlm.chat(picture, QUESTION, seed=seed, **settings) for seed in (5, 6, 7)]
    assert [reply.text, *(other.text for other in reply.others)] == [single.text for single in singles]
    assert len({single.text for single in singles}) > 1
    [batched] = vlm.batch([(picture, QUESTION)], seed=5, n=3, progress=False, **settings)
    assert batched == reply


CHOICES = ["A cat.", "It is a red disc", "红色", "Two birds in a tree"]


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_choices_are_scored_exactly(vlm, picture, slots):
    """Shares are those of the whole texts, end token included, as a forward pass over each gives them."""
    from visglm.prompt import Turn, render

    vlm.engine.slots, usual = slots, vlm.engine.slots
    reply = vlm.chat(picture, "What is it?", choices=CHOICES)
    vlm.engine.slots = usual
    scores = []
    for choice in CHOICES:
        row = render([Turn("What is it?", choice, num_images=1)], **vlm.processor.render_options)
        with torch.no_grad():
            logits = vlm.model(
                torch.tensor([row.input_ids]), image_embeds=reply.history.image_embeds, use_cache=False
            ).logits[0]
        logits[:, vlm.tokenizer.image_token_id] = -math.inf
        places = [place for place, label in enumerate(row.labels) if label >= 0]
        wanted = logits.log_softmax(-1)[[place - 1 for place in places], [row.labels[place] for place in places]]
        scores.append(float(wanted.sum()))
    shares = torch.tensor(scores, dtype=torch.float64).softmax(-1).tolist()
    assert list(reply.scores) == CHOICES and sum(reply.scores.values()) == pytest.approx(1)
    assert list(reply.scores.values()) == pytest.approx(shares, abs=1e-4)
    assert reply.text == max(reply.scores, key=reply.scores.get) and reply.finish_reason == "stop"
    again = vlm.chat(None, "And now?", reply.history, max_new_tokens=1)
    assert again.history.turns[0].answer == reply.text


def test_choices_in_a_batch(vlm, picture):
    single = vlm.chat(picture, "What is it?", choices=CHOICES)
    for reply in vlm.batch([(picture, "What is it?")] * 3, choices=CHOICES, progress=False, batch_size=2):
        assert reply == single and list(reply.scores.values()) == pytest.approx(list(single.scores.values()), abs=1e-4)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"choices": "one"}, "choices must be a list of two texts or more"),
        ({"choices": ["one"]}, "choices must be a list"),
        ({"choices": ["one", "one"]}, "all different"),
        ({"choices": ["one", ""]}, "none empty"),
        ({"choices": ["one", "two"], "temperature": 1.0}, "scored, not drawn"),
        ({"choices": ["one", "two"], "n": 2}, "scored, not drawn"),
        ({"stop": ""}, "stop must be a text or a list"),
        ({"stop": 3}, "stop must be a text or a list"),
        ({"stop": ["a"] * 200}, "stop must be"),
        ({"stop": "a" * 5000}, "more than 4096 characters"),
        ({"logit_bias": {"a": 1}}, "a token of logit_bias must be"),
        ({"logit_bias": {-1: 1}}, "a token of logit_bias must be"),
        ({"logit_bias": {1: 1000}}, r"logit_bias\[1\] must be between -100 and 100"),
        ({"logit_bias": 3}, "logit_bias"),
    ],
)
def test_wrong_settings_are_told(vlm, settings, message):
    with pytest.raises(ConfigError, match=message):
        vlm.chat(None, "Hello", **settings)
    with pytest.raises(ConfigError, match=message):
        vlm.batch([(None, "Hello")], progress=False, **settings)
    assert set(settings) & {*OTHERS}
