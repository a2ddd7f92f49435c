"""`VisGLM`: one answer, a stream, many at a time; compared with the Hugging Face layer below and with each other."""

from __future__ import annotations

import base64
import copy
import dataclasses
import gc
import io
import threading
from collections import Counter as Counts
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.tiny import GOLDEN_HF
from visglm import Reply, VisGLM, VisGLMError, VisGLMForConditionalGeneration
from visglm.cli import main
from visglm.errors import CheckpointError, ConfigError, ContextLengthError, EngineError, ImageError, PromptError
from visglm.prompt import PROMPT_STYLES, postprocess, settled
from visglm.reply import History
from visglm.sampling import RULES, Sampling


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained()


def disc(colour: str = "red", size: tuple[int, int] = (90, 60)) -> Image.Image:
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).ellipse((10, 10, size[0] - 10, size[1] - 10), colour)
    return picture


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class Counter:
    """Counts the pictures that go through a model's ViT."""

    def __init__(self, vlm: VisGLM):
        self.num_pictures = 0
        self.hook = vlm.model.model.vision.vit.register_forward_pre_hook(self.count)

    def count(self, module, arguments) -> None:
        self.num_pictures += len(arguments[0])

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *exception) -> None:
        self.hook.remove()


# ---- loading and saving ----------------------------------------------------------------------------------------


def test_the_embedded_model_is_small_and_float32_on_a_cpu(vlm):
    weights = Path(vlm.model.config._name_or_path) / "model.safetensors"
    assert weights.stat().st_size <= 45 * 10**6
    assert vlm.model.dtype == (torch.float32 if vlm.device.type == "cpu" else torch.bfloat16)
    assert not vlm.model.training


def test_a_saved_model_answers_the_same(vlm, tmp_path):
    vlm.save_pretrained(tmp_path)
    again = VisGLM.from_pretrained(tmp_path)
    assert again.chat(disc(), "What is this?").text == vlm.chat(disc(), "What is this?").text
    assert again.processor.num_query_tokens == vlm.processor.num_query_tokens


def test_dtype_and_image_size_are_taken(vlm):
    half = VisGLM.from_pretrained(dtype=torch.bfloat16, image_size=128)
    assert half.model.dtype == torch.bfloat16
    with Counter(half) as counter:
        half.chat(disc(), "What is this?", max_new_tokens=2)
    assert counter.num_pictures == 1
    assert half.processor.image_processor.size == {"height": 128, "width": 128}
    assert half.encode(disc()).shape == vlm.encode(disc()).shape


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_an_error(device):
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used"):
        VisGLM.from_pretrained(device=device)


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="config.json"):
        VisGLM.from_pretrained(tmp_path)


def test_a_missing_tensor_is_an_error(vlm, tmp_path):
    from safetensors.torch import load_file, save_file

    vlm.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lm_head.weight"):
        VisGLM.from_pretrained(tmp_path)


# ---- chat --------------------------------------------------------------------------------------------------------


def test_chat_answers_as_processor_and_generate_do(vlm):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": disc()}, {"type": "text", "text": "What is this?"}]}
    ]
    inputs = vlm.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    output = vlm.model.generate(**inputs.to(vlm.device), max_new_tokens=12, do_sample=False)
    text = vlm.processor.post_process_image_text_to_text(output[:, inputs["input_ids"].shape[1] :])[0]
    reply = vlm.chat(disc(), "What is this?", max_new_tokens=12)
    assert reply.text == text
    assert reply.usage.prompt_tokens == inputs["input_ids"].shape[1]
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


@pytest.mark.parametrize(
    "as_source",
    [
        lambda picture, folder: picture,
        lambda picture, folder: np.asarray(picture),
        lambda picture, folder: png(picture),
        lambda picture, folder: "data:image/png;base64," + base64.b64encode(png(picture)).decode(),
        lambda picture, folder: folder / "picture.png",
        lambda picture, folder: str(folder / "picture.png"),
        lambda picture, folder: [folder / "picture.png"],
    ],
    ids=["PIL", "ndarray", "bytes", "data URL", "Path", "str", "list"],
)
def test_every_kind_of_picture_gives_the_same_visual_tokens(vlm, tmp_path, as_source):
    disc().save(tmp_path / "picture.png")
    expected = vlm.chat(disc(), "What?", max_new_tokens=1).history.image_embeds
    reply = vlm.chat(as_source(disc(), tmp_path), "What?", max_new_tokens=1)
    assert torch.equal(reply.history.image_embeds, expected)
    assert reply.images[0].size == (90, 60)


def test_urls_are_refused_unless_allowed(vlm):
    with pytest.raises(ImageError, match="allow_urls=True"):
        vlm.chat("https://example.com/cat.png", "What?")
    open_to_urls = VisGLM(vlm.model, vlm.processor, allow_urls=True)
    with pytest.raises(ImageError, match="example.com"):
        open_to_urls.chat("https://example.com/cat.png", "What?")  # allowed, but the tests have no network


@pytest.fixture
def forgetful(vlm):
    """The model without a memory of pictures."""
    usual, vlm.engine.looker.num_bytes = vlm.engine.looker.num_bytes, 0
    yield vlm
    vlm.engine.looker.num_bytes = usual


def test_a_picture_is_looked_at_once(vlm):
    picture = Image.effect_noise((40, 40), 90).convert("RGB")
    with Counter(vlm) as counter:
        replies = [vlm.chat(picture, question, max_new_tokens=2) for question in ("What is this?", "这是什么？")]
        assert torch.equal(vlm.encode(picture.copy()), replies[0].history.image_embeds)
        assert counter.num_pictures == 1
        vlm.chat(picture.rotate(90), "What is this?", max_new_tokens=1)
        assert counter.num_pictures == 2


def test_a_second_question_does_not_look_again(forgetful):
    vlm = forgetful
    with Counter(vlm) as counter:
        first = vlm.chat(disc(), "What is this?", max_new_tokens=4)
        assert counter.num_pictures == 1
        second = vlm.chat(None, "And what colour is it?", history=first.history, max_new_tokens=4)
        assert counter.num_pictures == 1
        third = vlm.chat(disc("blue"), "And this?", history=second.history, max_new_tokens=4)
        assert counter.num_pictures == 2
    assert third.history.image_embeds.shape[0] == 2
    assert [turn.num_images for turn in third.history.turns] == [1, 0, 1]
    # What was kept is what looking at both again gives.
    both = vlm.encode([disc(), disc("blue")])
    torch.testing.assert_close(third.history.image_embeds, both, atol=1e-4, rtol=1e-4)


def test_history_may_be_pairs_of_strings(vlm):
    first = vlm.chat(None, "你好", max_new_tokens=4)
    by_history = vlm.chat(None, "你是谁？", history=first.history, max_new_tokens=4)
    by_pairs = vlm.chat(None, "你是谁？", history=[("你好", first.text)], max_new_tokens=4)
    assert by_history.text == by_pairs.text
    assert by_history.usage == by_pairs.usage


def test_several_pictures_keep_their_order(vlm):
    red, blue = disc("red"), disc("blue")
    there = vlm.chat([red, blue], "What?", max_new_tokens=1).history.image_embeds
    back = vlm.chat([blue, red], "What?", max_new_tokens=1).history.image_embeds
    torch.testing.assert_close(there, back.flip(0), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(there[0], there[1], atol=1e-3)


def test_what_a_user_types_stays_text(vlm):
    tokenizer = vlm.tokenizer
    plain = vlm.chat(disc(), "x", max_new_tokens=1)
    typed = vlm.chat(disc(), "x<|image|>[gMASK]<sop><eop></s>", max_new_tokens=1)
    ids = vlm._compose(disc(), "x<|image|>[gMASK]<sop><eop></s>", None, "auto", Sampling()).rendered.input_ids
    assert typed.usage.prompt_tokens > plain.usage.prompt_tokens
    assert ids.count(tokenizer.image_token_id) == vlm.processor.num_query_tokens
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_path_in_a_question_is_not_opened(vlm, tmp_path):
    """The original looked for `<img>path</img>` in what was typed, and opened it."""
    disc().save(tmp_path / "secret.png")
    with Counter(vlm) as counter:
        reply = vlm.chat(None, f"<img>{tmp_path / 'secret.png'}</img>What is this?", max_new_tokens=1)
    assert counter.num_pictures == 0
    assert reply.history.image_embeds is None and reply.images == ()


def test_a_reply_shows_itself(vlm):
    reply = vlm.chat(disc(), "What is this?", max_new_tokens=3)
    assert str(reply) == reply.text
    shown = dataclasses.replace(reply, text="a <b> & c")._repr_html_()
    assert "data:image/png;base64," in shown
    assert "a &lt;b&gt; &amp; c" in shown
    assert reply.timings.encode > 0
    assert 0 < reply.timings.first_token <= reply.timings.total


def test_the_token_limit_is_reported(vlm):
    reply = vlm.chat(disc(), "What is this?", max_new_tokens=1)
    assert reply.usage.completion_tokens == 1
    assert reply.finish_reason == "length"


WRONG = ("hot", True, [1], float("nan"), float("inf"), 10**30, -1)  # for each setting of an answer


@pytest.mark.parametrize("name", RULES)
def test_sampling_values_out_of_range_are_refused(vlm, name):
    for value in WRONG:
        with pytest.raises(ConfigError, match=f"^{name} must be .*between .*; got "):
            vlm.chat(disc(), "What?", **{name: value})
        with pytest.raises(ConfigError, match=name):
            vlm.batch([(None, "What?")], progress=False, **{name: value})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": 1e-320}, "temperature must be between 0.01 and 5, or 0, or None; got 1e-320"),
        ({"temperature": 1e-9}, "temperature must be between 0.01 and 5, or 0, or None; got 1e-09"),
        ({"max_new_tokens": 0}, "max_new_tokens must be between 1 and"),
        ({"max_new_tokens": 3.0}, "a whole number.*got 3.0"),
        ({"top_k": 1.5}, "top_k must be .* a whole number"),
        ({"seed": 2**64}, f"seed must be between 0 and {2**64 - 1}, .*; got {2**64}"),
    ],
)
def test_what_a_setting_may_be_is_said_with_what_came(vlm, settings, message):
    with pytest.raises(ConfigError, match=message):
        vlm.chat(disc(), "What?", **settings)


def test_the_ends_of_a_range_are_allowed(vlm):
    settings = {"temperature": 0.01, "top_p": 0.0, "top_k": np.int64(3), "seed": 2**64 - 1, "max_new_tokens": 3}
    assert vlm.chat(disc(), "What?", **settings).text == vlm.chat(disc(), "What?", max_new_tokens=3).text


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"dtype": "int8"}, "dtype must be one of auto, .*; got 'int8'. .* quantize: \"int8\""),
        ({"dtype": torch.int8}, "dtype"),
        ({"dtype": 16}, "dtype"),
        ({"device": 0}, "device must be text; got 0"),
        ({"name_or_path": 3}, "name_or_path must be a path, or None; got 3"),
        ({"image_size": "112"}, "image_size must be between 1 and 8192, a whole number, or None; got '112'"),
        ({"image_size": 100}, "image_size=100 is not a multiple of patch_size × reduction=32"),
        ({"image_size": 0}, "image_size"),
        ({"tokenizer": 1}, "tokenizer"),
        ({"quantize": 4}, "quantize must be text, or None; got 4"),
        ({"quantize": "int3"}, "int3"),
        ({"quantize_vision": "yes"}, "quantize_vision must be True or False"),
        ({"allow_urls": 1}, "allow_urls must be True or False; got 1"),
    ],
)
def test_what_from_pretrained_takes(settings, message):
    with pytest.raises(ConfigError, match=message):
        VisGLM.from_pretrained(**settings)
    if "name_or_path" not in settings and settings not in ({"image_size": 100}, {"quantize": "int3"}):
        with pytest.raises(ConfigError, match=message):
            VisGLM.from_parts(text=Path("nowhere"), **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"output_dir": 3}, "output_dir must be a path; got 3"),
        ({"method": None}, "method must be text; got None"),
        ({"method": "lorra"}, "lorra"),
        ({"rank": 4.5}, "rank must be between 1 and 1024, a whole number; got 4.5"),
        ({"report_to": "sky"}, "report_to must be one of"),
    ],
)
def test_what_finetune_takes(vlm, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        vlm.finetune([{"messages": []}], **settings)
    assert not list(tmp_path.iterdir()) and vlm._turns.is_free


def test_from_parts_refuses_what_it_does_not_know():
    with pytest.raises(ConfigError, match="takes no devise"):
        VisGLM.from_parts(text="nowhere", devise="cpu")


@pytest.mark.parametrize("prompt", ["", "  \n", None, 3, ["What?"]])
def test_a_question_must_be_text(vlm, prompt):
    with pytest.raises(PromptError, match="question"):
        vlm.chat(disc(), prompt)


@pytest.mark.parametrize(
    "history", [3, "text", [("one",)], [None], ["ab", "cd"], {"ab": 1}, [("a", None)], [("a", "b"), {"role": "user"}]]
)
def test_a_history_must_be_one(vlm, history):
    with pytest.raises(PromptError, match="history"):
        vlm.chat(disc(), "What?", history=history)


def test_a_history_of_messages_is_read_as_such(vlm):
    pairs = [("你好", "你好！"), ("你是谁？", "一个模型。")]
    messages = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    by_pairs = vlm.chat(disc(), "它是什么？", history=pairs, max_new_tokens=4)
    by_messages = vlm.chat(disc(), "它是什么？", history=messages, max_new_tokens=4)
    assert by_messages == by_pairs
    assert [turn.question for turn in by_messages.history.turns] == ["你好", "你是谁？", "它是什么？"]


@pytest.mark.parametrize(
    "messages, message",
    [
        ([{"role": "user", "content": "Hello"}], "Pass it as the question"),
        ([{"role": "nobody", "content": "Hello"}], "nobody"),
        (
            [
                {"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": "A cat."},
            ],
            "1 picture, which",
        ),
    ],
)
def test_messages_that_are_no_history_are_told(vlm, messages, message):
    with pytest.raises(PromptError, match=message):
        vlm.chat(None, "What?", history=messages)


def golden() -> VisGLM:
    return VisGLM.from_pretrained(GOLDEN_HF, device="cpu", dtype="float32")


def test_the_history_of_another_network_is_refused(vlm):
    history = vlm.chat(disc(), "What is this?", max_new_tokens=2).history
    message = "another network's: its pictures are 12 visual tokens of width 256, .* 32 of"
    with pytest.raises(PromptError, match=message):
        golden().chat(None, "And now?", history=history)
    twin = copy.deepcopy(vlm)
    twin.chat(None, "And now?", history=history, max_new_tokens=1)
    with torch.no_grad():
        twin.model.model.vision.projection.weight.mul_(2)
    with pytest.raises(PromptError, match="weights that looked at its pictures"):
        twin.chat(None, "And now?", history=history)
    [error] = twin.batch([(None, "And now?", history)], on_error="return", progress=False)
    assert isinstance(error, PromptError)
    words = vlm.chat(None, "Hello", max_new_tokens=2).history
    assert golden().chat(None, "And now?", history=words, max_new_tokens=1).usage.completion_tokens == 1


def test_a_history_goes_from_one_precision_to_another(vlm):
    history = vlm.chat(disc(), "What is this?", max_new_tokens=2).history
    half = VisGLM.from_pretrained(dtype="bfloat16")
    assert half.chat(None, "And now?", history=history, max_new_tokens=1).history.num_images == 1


def test_a_history_has_as_many_visual_tokens_as_pictures(vlm):
    history = vlm.chat(disc(), "What is this?", max_new_tokens=2).history
    for change in ({"image_embeds": None}, {"image_embeds": history.image_embeds[:0]}, {"turns": ()}):
        with pytest.raises(PromptError, match="has (1 picture|0 pictures), and its image_embeds"):
            vlm.chat(None, "And now?", history=dataclasses.replace(history, **change))


def test_what_does_not_fit_is_never_cut(vlm):
    with pytest.raises(ContextLengthError, match=str(vlm.context_length)):
        vlm.chat(disc(), "cat " * vlm.context_length)
    with pytest.raises(ContextLengthError):
        vlm.chat(disc(), "What?", max_new_tokens=vlm.context_length)


def test_a_seed_makes_sampling_repeatable_and_leaves_the_random_state_alone(vlm):
    settings = {"temperature": 2.0, "max_new_tokens": 8}
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = vlm.chat(disc(), "Describe it.", seed=1, **settings)
    assert torch.equal(torch.rand(1), expected)
    assert vlm.chat(disc(), "Describe it.", seed=1, **settings).text == first.text
    others = {vlm.chat(disc(), "Describe it.", seed=seed, **settings).text for seed in range(2, 8)}
    assert others != {first.text}


SAMPLED = {"temperature": 2.0, "max_new_tokens": 8}


def test_a_seed_gives_its_answer_whatever_else_draws_numbers(vlm):
    wanted = [vlm.chat(disc(), "Describe it.", seed=seed, **SAMPLED).text for seed in range(4)]
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            torch.manual_seed(0)
            torch.rand(3)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        found = [vlm.chat(disc(), "Describe it.", seed=seed, **SAMPLED).text for seed in range(4)]
        torch.manual_seed(0)
        free = {vlm.chat(disc(), "Describe it.", temperature=5.0, max_new_tokens=8).text for _ in range(4)}
    finally:
        stop.set()
        thread.join()
    assert found == wanted and len(set(wanted)) > 1
    assert len(free) > 1  # without a seed, torch's does not decide


def test_without_a_seed_the_random_state_is_left_alone(vlm):
    state = torch.random.get_rng_state()
    vlm.chat(disc(), "Describe it.", **SAMPLED)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_seed_gives_the_same_answer_alone_and_in_a_batch(vlm, requests):
    settings = {**SAMPLED, "top_p": 0.95, "top_k": 200}
    for seed in (1, 2):
        singles = [vlm.chat(*request, seed=seed, **settings).text for request in requests]
        replies = vlm.batch(requests, batch_size=4, progress=False, seed=seed, **settings)
        assert [reply.text for reply in replies] == singles


def test_tokens_are_drawn_as_often_as_they_are_likely(vlm):
    """First tokens of 600 answers against the shares that the logits give them, by Pearson's chi-square."""
    settings = {"temperature": 5.0, "top_k": 6, "top_p": 0.9}
    [ready] = [vlm._compose(None, "Describe it.", None, "auto", Sampling())]
    ids = torch.tensor([ready.rendered.input_ids], device=vlm.device)
    with torch.no_grad():
        logits = vlm.model(ids).logits[0, -1].float()
    logits[vlm.tokenizer.image_token_id] = -torch.inf
    values, tokens = (logits / 5).topk(6)
    shares = values.softmax(-1)
    kept = shares.cumsum(-1) - shares < 0.9
    shares = torch.where(kept, shares, 0) / shares[kept].sum()
    drawn: Counts = Counts()
    for seed in range(600):
        drawn[vlm.chat(None, "Describe it.", seed=seed, max_new_tokens=1, **settings).text] += 1
    wanted = Counts()
    for token, share in zip(tokens.tolist(), shares.tolist(), strict=True):
        if share:
            wanted[vlm.tokenizer.decode([token], skip_special_tokens=True).strip()] += 600 * share
    assert set(drawn) <= set(wanted)
    statistic = sum((drawn[text] - count) ** 2 / count for text, count in wanted.items())
    assert len(wanted) > 2 and statistic < 20  # six degrees of freedom leave 0.3 % above


def test_a_text_only_model_refuses_pictures(vlm):
    config = vlm.model.config.to_dict() | {"vision_config": None, "qformer_config": None}
    config.pop("architectures")
    text_only = VisGLM(VisGLMForConditionalGeneration(type(vlm.model.config)(**config)), vlm.processor)
    with pytest.raises(PromptError, match="text-only"):
        text_only.chat(disc(), "What?")
    assert isinstance(text_only.chat(None, "你好", max_new_tokens=2), Reply)


# ---- streams -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["What is this?", "描述这张图片。"])
def test_a_stream_spells_the_reply(vlm, prompt):
    stream = vlm.stream_chat(disc(), prompt)
    with pytest.raises(VisGLMError, match="ended"):
        _ = stream.reply
    pieces = list(stream)
    assert "".join(pieces) == stream.reply.text == vlm.chat(disc(), prompt).text
    assert stream.reply.history.turns[-1].answer == stream.reply.text
    assert vlm._turns.is_free


def test_a_stream_comes_piece_by_piece(vlm):
    stream = vlm.stream_chat(disc(), "描述这张图片。", temperature=3.0, seed=0, max_new_tokens=24)
    pieces = list(stream)
    assert len(pieces) > 5
    assert "".join(pieces) == stream.reply.text


def test_leaving_a_stream_stops_the_model(vlm):
    steps = []
    hook = vlm.model.lm_head.register_forward_pre_hook(lambda *arguments: steps.append(1))
    for _ in vlm.stream_chat(disc(), "描述这张图片。", temperature=5.0, seed=0, max_new_tokens=400):
        break
    hook.remove()
    assert len(steps) < 400
    assert vlm._turns.is_free
    vlm.chat(disc(), "What?", max_new_tokens=1)


def test_a_closed_stream_has_what_there_was_of_the_answer(vlm):
    stream = vlm.stream_chat(disc(), "描述这张图片。", temperature=5.0, seed=0, max_new_tokens=400)
    begun = next(stream)
    stream.close()
    assert vlm._turns.is_free
    assert list(stream) == []
    assert stream.reply.finish_reason == "cancelled"
    assert stream.reply.text.startswith(begun)
    assert stream.reply.usage.completion_tokens < 400
    assert stream.reply.history.turns[-1].answer == stream.reply.text
    vlm.chat(None, "And?", history=stream.reply.history, max_new_tokens=1)


def test_a_stream_that_was_closed_before_it_began_has_no_reply(vlm):
    stream = vlm.stream_chat(disc(), "What?")
    stream.close()
    assert list(stream) == [] and vlm._turns.is_free
    with pytest.raises(VisGLMError, match="closed before the model began"):
        _ = stream.reply


def test_closing_a_stream_that_has_ended_changes_nothing(vlm):
    stream = vlm.stream_chat(disc(), "What?", max_new_tokens=3)
    list(stream)
    whole = stream.reply
    stream.close()
    assert stream.reply is whole and whole.finish_reason != "cancelled"


@pytest.mark.parametrize("delay", ["at once", "after a piece"])
def test_a_stream_may_be_closed_while_another_thread_reads_it(vlm, delay):
    stream = vlm.stream_chat(disc(), "描述这张图片。", temperature=5.0, seed=0, max_new_tokens=400)
    has_piece, errors = threading.Event(), []

    def read() -> None:
        try:
            for _ in stream:
                has_piece.set()
        except BaseException as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    if delay == "after a piece":
        assert has_piece.wait(60)
    stream.close()
    reader.join(60)
    assert not reader.is_alive() and not errors
    assert vlm._turns.is_free


def test_a_stream_that_waits_for_its_turn_can_be_closed(vlm):
    stream = vlm.stream_chat(disc(), "What?")
    with vlm._turns.take():
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        while not vlm._turns.num_waiting:
            pass
        stream.close()
        reader.join(60)
        assert not reader.is_alive() and not vlm._turns.num_waiting


def test_streams_leave_nothing_behind(vlm):
    """Read to the end, left early, closed or never begun: no turn, and no tensor more than before."""

    def use_streams() -> None:
        list(vlm.stream_chat(disc(), "What?", max_new_tokens=3))
        for _ in vlm.stream_chat(disc(), "What?", max_new_tokens=50):
            break
        stream = vlm.stream_chat(disc(), "What?", max_new_tokens=50)
        next(stream)
        stream.close()
        vlm.stream_chat(disc(), "What?")

    def num_tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    use_streams()
    before = num_tensors()
    for _ in range(3):
        use_streams()
    assert num_tensors() == before
    assert vlm._turns.is_free


def test_an_error_while_streaming_reaches_the_reader(vlm, monkeypatch):
    forward, steps = vlm.model.lm_head.forward, []

    def fail(hidden_states):
        steps.append(1)
        return 1 / (3 - len(steps)) and forward(hidden_states)

    monkeypatch.setattr(vlm.model.lm_head, "forward", fail)
    pieces = []
    with pytest.raises(EngineError, match="ZeroDivisionError") as error:
        pieces.extend(vlm.stream_chat(disc(), "What is this?"))
    assert isinstance(error.value.__cause__, ZeroDivisionError) and len(steps) == 3
    monkeypatch.setattr(vlm.model, "forward", lambda *arguments, **settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(vlm.stream_chat(disc(), "What?"))
    monkeypatch.undo()
    assert vlm._turns.is_free and vlm.chat(None, "Hello", max_new_tokens=1)


@pytest.mark.parametrize("style", PROMPT_STYLES)
@pytest.mark.parametrize(
    "text", ["好,b:,你!", " a, b ", "它,, 是a?", "Is it: 猫, or 狗?", "没有.", "a,你,b,", ",", " "]
)
def test_settled_text_never_changes(text, style):
    shown = ""
    for end in range(len(text) + 1):
        ready = settled(text[:end], style)
        assert ready.startswith(shown)
        shown = ready
    assert postprocess(text, style).startswith(shown)


class Says:
    """Makes a model write a text, whatever it is asked."""

    def __init__(self, vlm: VisGLM, text: str):
        ids = vlm.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        self.ids = iter([*ids, vlm.model.generation_config.eos_token_id])
        self.hook = vlm.model.lm_head.register_forward_hook(self.say)

    def say(self, module, arguments, logits) -> torch.Tensor:
        wanted = next(self.ids)
        logits[:, -1] = 0.0
        logits[:, -1, wanted if isinstance(wanted, int) else wanted[0]] = 100.0
        return logits

    def __enter__(self) -> Says:
        return self

    def __exit__(self, *exception) -> None:
        self.hook.remove()


@pytest.mark.parametrize("text", ["名称: 狗", '{"名称": "狗", 颜色: 红, 3: 三}', "- 狗: 大!"])
def test_only_the_first_generation_has_its_punctuation_put_right(vlm, text, monkeypatch):
    for style, wanted in (("visualglm", postprocess(text, "visualglm")), ("chatglm2", text), ("glm4", text)):
        monkeypatch.setattr(vlm.model.config, "prompt_style", "visualglm")
        ready = vlm._compose(None, "是什么?", None, "auto", Sampling())
        monkeypatch.setattr(vlm, "_compose", lambda *arguments, ready=ready: ready)
        monkeypatch.setattr(vlm.model.config, "prompt_style", style)
        with Says(vlm, text):
            assert vlm.chat(None, "是什么?").text == wanted
        with Says(vlm, text):
            stream = vlm.stream_chat(None, "是什么?")
            assert "".join(stream) == stream.reply.text == wanted
        monkeypatch.undo()
    assert postprocess(text, "visualglm") != text


# ---- batches -----------------------------------------------------------------------------------------------------


@pytest.fixture
def requests(vlm):
    history = vlm.chat(disc("green"), "What is this?", max_new_tokens=6).history
    return [
        (disc("red"), "What is this?"),
        (None, "你好"),
        ([disc("red"), disc("blue")], "Describe the pictures, please, in as much detail as you can."),
        (None, "它是什么颜色？", history),
        (disc("blue", (30, 200)), "图中有几个物体？"),
        (disc("yellow"), "And what is this?", history),
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_a_batch_answers_as_one_by_one(vlm, requests, batch_size):
    singles = [vlm.chat(*request, max_new_tokens=12) for request in requests]
    replies = vlm.batch(requests, batch_size=batch_size, progress=False, max_new_tokens=12)
    assert [reply.text for reply in replies] == [reply.text for reply in singles]
    assert [reply.usage for reply in replies] == [reply.usage for reply in singles]
    assert [reply.finish_reason for reply in replies] == [reply.finish_reason for reply in singles]


@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_batch_encodes_its_pictures_together(forgetful, requests, batch_size, monkeypatch):
    """Few at a time, no picture twice, and each reply keeps the visual tokens of its own pictures only."""
    vlm = forgetful
    singles = [vlm.chat(*request, max_new_tokens=1) for request in requests]
    sizes, encode = [], vlm.model.get_image_features

    def watched(pixel_values):
        sizes.append(len(pixel_values))
        return encode(pixel_values)

    monkeypatch.setattr(vlm.model, "get_image_features", watched)
    replies = vlm.batch(requests, batch_size=batch_size, progress=False, max_new_tokens=1)
    # Two of the five are the same: encoded together, they are one.
    assert sizes == [4] if batch_size == 8 else sum(sizes) == 5 and max(sizes) == 2
    for reply, single in zip(replies, singles, strict=True):
        found, wanted = reply.history.image_embeds, single.history.image_embeds
        assert (found is None) == (wanted is None)
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
            assert found.untyped_storage().nbytes() == found.nbytes
    assert [reply.timings.encode > 0 for reply in replies] == [bool(reply.images) for reply in replies]


def test_many_pictures_of_one_question_are_encoded_few_at_a_time(forgetful, monkeypatch):
    vlm = forgetful
    sizes, encode = [], vlm.model.get_image_features
    monkeypatch.setattr("visglm.engine.pictures.AT_ONCE", 2)
    monkeypatch.setattr(vlm.model, "get_image_features", lambda pixels: sizes.append(len(pixels)) or encode(pixels))
    vlm.chat([disc("red"), disc("blue"), disc("green")], "What is this?", max_new_tokens=1)
    assert sizes == [2, 1]


def test_one_bad_picture_does_not_lose_the_others(vlm, requests):
    requests = [*requests[:1], (b"no picture", "What?"), (disc(), ""), "What?", *requests[1:2]]
    replies = vlm.batch(requests, on_error="return", progress=False, max_new_tokens=2)
    assert [type(reply) for reply in replies] == [Reply, ImageError, PromptError, PromptError, Reply]
    with pytest.raises(ImageError):
        vlm.batch(requests, progress=False, max_new_tokens=2)


def test_a_batch_shows_its_progress(vlm, requests, capsys):
    vlm.batch(requests[:2], max_new_tokens=1)
    assert "2/2" in capsys.readouterr().err


def test_batch_settings_are_checked(vlm):
    with pytest.raises(ConfigError, match="on_error"):
        vlm.batch([], on_error="ignore")
    for size in (0, 2.0, "2", None, True):
        with pytest.raises(ConfigError, match="batch_size must be between 1 and 65536"):
            vlm.batch([], batch_size=size)
    with pytest.raises(ConfigError, match="progress must be True or False"):
        vlm.batch([], progress=1)
    with pytest.raises(ConfigError, match="no setting 'temprature'"):
        vlm.batch([], temprature=1.0)
    assert vlm.batch([]) == []


@pytest.mark.parametrize("requests", [None, 3, "What?", {"a": 1}])
def test_a_batch_must_be_a_list(vlm, requests):
    with pytest.raises(PromptError, match="requests must be a list"):
        vlm.batch(requests)


@pytest.mark.parametrize(
    "request_", [None, 3, "What?", (), (None,), (None, "a", None, None), {"a": 1, "b": 2}, (None, 3)]
)
def test_a_request_of_another_shape_is_told(vlm, request_):
    good = (None, "Hello")
    with pytest.raises(PromptError):
        vlm.batch([request_], progress=False, max_new_tokens=1)
    first, error, last = vlm.batch([good, request_, good], on_error="return", progress=False, max_new_tokens=1)
    assert isinstance(error, PromptError) and first == last


def test_requests_may_come_from_a_generator(vlm):
    replies = vlm.batch(((None, "Hello") for _ in range(3)), batch_size=2, progress=False, max_new_tokens=1)
    assert len(replies) == 3


def test_history_of_nothing_is_empty():
    assert History.of(None) == History()


def test_a_tokenizer_for_a_model_that_has_its_own_is_refused(tmp_path):
    """Nothing would come of it, whatever lies there."""
    with pytest.raises(ConfigError, match="tokenizer='nowhere' is for checkpoints that come without"):
        VisGLM.from_pretrained(tokenizer="nowhere")
    assert main(["chat", "examples/cat.png", "--tokenizer", str(tmp_path)]) == 1
