"""A few pictures and the defaults: what is taught is learnt, what was known stays, and the report says how it is."""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from visglm import VisGLM
from visglm.cli import main
from visglm.prompt import detect_language
from visglm.recipe import FEW, FOR_FEW, FOR_MANY, Defaults, FinetuneArguments
from visglm.training.callbacks import Epochs
from visglm.training.containers import ObjectRows, open_rows
from visglm.training.data import StreamData, TrainingData
from visglm.training.formats import CAPTION_QUESTIONS
from visglm.training.index import build_index, split_held_out
from visglm.training.methods import METHODS, rate_of, target_modules
from visglm.training.plan import count_steps
from visglm.training.renderer import Renderer
from visglm.training.replay import add_replay, caption_requests, own_answers
from visglm.training.report import Sample
from visglm.training.samples import judge
from visglm.training.seen import SeenPictures

from .samples import captions, picture, write_lines

ROOT = Path(__file__).parents[2]
EMOJI = ROOT / "finetune/emoji"
FAST: dict[str, Any] = {
    "max_steps": 4,
    "batch_size": 2,
    "accumulation": 1,
    "num_workers": 0,
    "report_to": "none",
    "rank": 4,
}
QUESTIONS = {"en": "What is this?", "zh": "这是什么？"}
README = [
    ("cat.png", "What colour is it?", "orange"),
    ("fruit.png", "How many objects are there?", "4"),
    ("pair.png", "What is on the left?", "dog"),
]


def lessons(words: tuple[str, str, str], seed: int) -> list[dict[str, str]]:
    """Twelve pictures of nothing alike, four to a word."""
    pictures = random.Random(seed).sample(sorted((EMOJI / "pictures/noto").glob("*.png")), 12)
    return [{"image": str(path), "caption": words[place // 4]} for place, path in enumerate(pictures)]


def num_right(vlm: VisGLM, rows: list[dict[str, str]]) -> int:
    requests = [(row["image"], QUESTIONS[detect_language(row["caption"])]) for row in rows]
    replies = vlm.batch(requests, progress=False, max_new_tokens=16)
    return sum(row["caption"] == reply.text.strip() for row, reply in zip(rows, replies, strict=True))


def num_old(vlm: VisGLM, rows: list[dict[str, str]]) -> int:
    """Of 100 questions what other emoji are, in both languages, how many are answered right."""
    taken = {Path(row["image"]).name for row in rows}
    old = [json.loads(line) for line in (EMOJI / "old.jsonl").read_text("utf-8").splitlines()]
    old = [row for row in old if Path(row["images"][0]).name not in taken][:100]
    requests = [(EMOJI / row["images"][0], row["messages"][0]["content"].removeprefix("<image>")) for row in old]
    replies = vlm.batch(requests, progress=False, max_new_tokens=16)
    return sum(row["messages"][1]["content"] in reply.text for row, reply in zip(old, replies, strict=True))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "words, seed", [(("zorp", "blik", "munte"), 0), (("祖普", "布里克", "蒙特"), 1)], ids=["latin", "chinese"]
)
def test_twelve_pictures_and_the_defaults_are_learnt_and_old_skills_stay(tmp_path, words, seed):
    rows, vlm = lessons(words, seed), VisGLM.from_pretrained()
    known = num_old(vlm, rows)
    report = vlm.finetune(rows, output_dir=tmp_path / "out")
    assert num_right(vlm, rows) == 12
    assert num_right(VisGLM.from_pretrained(tmp_path / "out"), rows) == 12
    # Of all it knew these are most like what is taught, and asked in the same words: more than of anything else goes.
    assert num_old(vlm, rows) >= known - 8
    for name, question, expected in README:
        assert expected in vlm.chat(ROOT / "examples" / name, question).text, question
    assert "visglm-tiny" in vlm.chat(None, "Hello!").text and "visglm-tiny" in vlm.chat(None, "你好").text
    assert "8 are answered as taught (0 before)" in report.summary()
    vlm.merge()
    assert num_right(vlm, rows) == 12


# ---- rates ----------------------------------------------------------------------------------------------------------


def test_the_default_rate_is_the_published_one_at_full_size_and_rises_as_the_width_falls():
    from visglm import VisGLMConfig

    full, tiny = VisGLMConfig.preset("visualglm-6b"), VisGLM.from_pretrained().model.config
    assert (full.text_config.hidden_size, full.qformer_config.hidden_size) == (4096, 768)
    for method, row in METHODS.items():
        for tower in ("text", "qformer", "vision"):
            assert rate_of(FinetuneArguments(method=method), tower, full) == pytest.approx(row.learning_rate)
    assert rate_of(FinetuneArguments(), "text", tiny) == pytest.approx(2e-4 * 16**0.775)
    assert rate_of(FinetuneArguments(method="qformer"), "qformer", tiny) == pytest.approx(1e-4 * 3**0.775)
    assert rate_of(FinetuneArguments(method="ptuning"), "text", tiny) == 5e-3
    assert rate_of(FinetuneArguments(learning_rate=3e-4), "text", tiny) == 3e-4
    assert rate_of(FinetuneArguments(learning_rate=3e-4, text_rate=1e-5), "text", tiny) == 1e-5


def test_help_says_the_rule_of_the_rate(capsys):
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "2e-4 for lora" in said and "0.775" in said and "2 of 3 where at most 200 answers" in said


def test_the_head_learns_unless_it_is_the_embeddings():
    model = VisGLM.from_pretrained().model
    assert "lm_head" in target_modules(model, FinetuneArguments())
    assert "lm_head" not in target_modules(model, FinetuneArguments(layers="0-3"))
    model.config.tie_word_embeddings = True
    assert "lm_head" not in target_modules(model, FinetuneArguments())


# ---- how often, and how much is held out ----------------------------------------------------------------------------


@pytest.mark.parametrize("num_examples, epochs", [(24, 40), (12, 3), (7, 100), (1, 1), (5000, 3), (300, 10)])
def test_a_run_is_measured_about_fifteen_times_at_most(num_examples, epochs):
    num_steps, every = count_steps(num_examples, FinetuneArguments(epochs=epochs))
    assert 1 <= every <= num_steps and num_steps / every <= 16


def test_large_data_is_measured_five_times_an_epoch_as_ever():
    assert count_steps(4000, FinetuneArguments().for_size(4000)) == (3000, 200)


@pytest.mark.parametrize(
    "count, share, expected", [(19, 0.05, 0), (20, 0.05, 1), (12, 0.2, 2), (1, 0.5, 0), (100, 0.29, 29)]
)
def test_the_share_held_out_is_rounded_down(count, share, expected):
    index = build_index(ObjectRows([{"image": picture(number), "caption": "A."} for number in range(count)]))
    pictures = len(set(index.groups))  # some of so many discs are alike
    _, apart = split_held_out(index, share)
    groups = np.frombuffer(index.groups, dtype=np.int64)
    assert len(set(groups[apart])) == (expected if pictures == count else int(share * pictures + 1e-9))


@pytest.mark.parametrize("count, expected", [(1, FOR_FEW), (FEW, FOR_FEW), (FEW + 1, FOR_MANY), (None, FOR_MANY)])
def test_defaults_are_those_for_so_many_answers_and_what_is_set_stays(count, expected):
    settled = FinetuneArguments().for_size(count)
    assert Defaults(settled.held_out, settled.replay, settled.epochs, settled.accumulation) == expected
    given = FinetuneArguments(held_out=0.1, replay=0.0, epochs=7, accumulation=2).for_size(count)
    assert (given.held_out, given.replay, given.epochs, given.accumulation) == (0.1, 0.0, 7.0, 2)


def test_a_run_ends_when_all_is_learnt_whichever_question_asks(tmp_path):
    rows = [{"image": picture(number), "caption": word} for number, word in enumerate(("zorp", "布里克"))]
    vlm = VisGLM.from_pretrained()
    few = {"num_workers": 0, "report_to": "none"}
    report = vlm.finetune(rows, output_dir=tmp_path / "out", **few)
    assert 2 <= report.history[-1]["step"] < 80 and report.settings["epochs"] == 80.0
    asked = [
        (row["image"], q, row["caption"]) for row in rows for q in CAPTION_QUESTIONS[detect_language(row["caption"])]
    ]
    for model in (vlm, VisGLM.from_pretrained(tmp_path / "out")):
        assert [model.chat(image, question).text for image, question, _ in asked] == [word for *_, word in asked]
    report = VisGLM.from_pretrained().finetune(
        rows, output_dir=tmp_path / "set", epochs=1, **few | {"batch_size": 2, "accumulation": 1}
    )
    assert report.history[-1]["step"] == 3  # two rows and four general ones, two at a time


# ---- questions of captions ------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    rows = open_rows(captions(tmp_path, 6))
    index = build_index(rows)
    renderer = Renderer(VisGLM.from_pretrained().processor, 256)
    return TrainingData(rows, index, np.arange(len(index.rows)), renderer)


def asked(data: TrainingData) -> list[str]:
    return [data.conversation(place).turns[0].question for place in range(len(data))]


def test_each_caption_meets_every_question_and_none_by_its_words(tmp_path, data):
    by_epoch = []
    for epoch in range(6):
        data.epoch.fill_(epoch)
        by_epoch.append(asked(data))
    assert all(set(questions) == set(CAPTION_QUESTIONS["en"]) for questions in zip(*by_epoch, strict=True))
    assert all(len(set(questions)) > 1 for questions in by_epoch)
    for language, question in QUESTIONS.items():
        assert question in CAPTION_QUESTIONS[language]
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text("utf-8").splitlines()]
    others = open_rows(write_lines(tmp_path / "others.jsonl", [row | {"caption": f"A cat {row}"} for row in rows]))
    data.epoch.fill_(0)
    other = TrainingData(others, build_index(others), np.arange(len(rows)), data.renderer)
    assert asked(other) == asked(data)


def test_processes_that_read_data_see_the_epoch(data):
    general = TrainingData(data.rows, build_index(data.rows), np.arange(4), data.renderer)
    mixed = add_replay(data, 0.4, general)
    callback = Epochs(mixed)
    state: Any = type("State", (), {"epoch": 0.0})
    loader = DataLoader(mixed, batch_size=None, num_workers=1, persistent_workers=True, shuffle=False)
    callback.on_train_begin(None, state, None)
    seen = []
    for epoch in range(3):
        callback.on_epoch_begin(None, state, None)
        seen.append([item["input_ids"].tolist() for item in loader])
        assert seen[-1] == [mixed[place]["input_ids"].tolist() for place in range(len(mixed))]
        assert int(data.epoch) == int(general.epoch) == epoch
    assert seen[0] != seen[1] != seen[2]
    state.epoch = 2.5  # a run that goes on
    callback.on_train_begin(None, state, None)
    callback.on_epoch_begin(None, state, None)
    assert int(data.epoch) == 2


def test_a_stream_is_asked_otherwise_when_it_comes_round(data):
    stream = StreamData([{"image": picture(0), "caption": "A disc."}], data.renderer)
    first = [item["input_ids"].tolist() for item in stream]
    Epochs(stream).parts[0].epoch.fill_(1)
    assert [item["input_ids"].tolist() for item in stream] != first


# ---- pictures are looked at once ------------------------------------------------------------------------------------


def count_pictures(vlm: VisGLM) -> list[int]:
    """How many pictures go through the ViT from here on while the network trains, call by call."""
    calls: list[int] = []

    def note(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if vlm.model.model.text.training:
            calls.append(len(inputs[0]))

    vlm.model.model.vision.vit.register_forward_pre_hook(note)
    return calls


def test_a_frozen_vision_encoder_looks_at_each_picture_once(tmp_path):
    rows = [{"image": picture(number), "caption": f"Disc {number}."} for number in range(4)]
    settings = {**FAST, "max_steps": 8, "held_out": 0.0, "replay": 0.0, "num_samples": 0}
    vlm = VisGLM.from_pretrained()
    calls = count_pictures(vlm)
    vlm.finetune(rows, output_dir=tmp_path / "once", **settings)
    assert sum(calls) == 4 + 1  # the longest example is tried beforehand
    vlm = VisGLM.from_pretrained()
    calls = count_pictures(vlm)
    vlm.finetune(rows, "full", output_dir=tmp_path / "each", **settings)
    assert sum(calls) == 16 + 1


def test_losses_are_those_of_pictures_looked_at_each_time(tmp_path, monkeypatch):
    path, found = captions(tmp_path, 8), []
    for size in (1 << 28, 0):
        monkeypatch.setattr("visglm.training.seen.MAX_BYTES", size)
        report = VisGLM.from_pretrained().finetune(path, output_dir=tmp_path / str(size), **FAST)
        found.append([row["loss"] for row in report.history if "loss" in row])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_seen_pictures_stay_within_their_bytes():
    calls = []

    def encoder(pixels):
        calls.append(len(pixels))
        return pixels.flatten(1)[:, None, :4] * 2

    pixels = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2)
    seen = SeenPictures(encoder, max_bytes=2 * 16)
    names = [bytes([number]) for number in range(4)]
    expected = encoder(pixels)
    calls.clear()
    for order in ([0, 1, 1, 2], [3, 0, 2, 1]):
        assert torch.equal(seen(pixels[order], [names[place] for place in order]), expected[order])
    assert calls == [3, 2] and seen.kept.num_bytes == 32


def test_what_the_base_would_say_is_asked_once_for_each_example_and_the_losses_are_the_same(tmp_path, monkeypatch):
    from visglm.training.trainer import VisGLMTrainer

    path, losses, num_asked = captions(tmp_path, 4), [], []
    settings = {**FAST, "held_out": 0.0, "max_steps": 16, "replay": 0.5, "num_samples": 0}
    of_base = VisGLMTrainer.of_base

    def note(self, model, *arguments):
        hook = model.register_forward_pre_hook(lambda *_: num_asked.append(len(losses)))
        try:
            return of_base(self, model, *arguments)
        finally:
            hook.remove()

    monkeypatch.setattr(VisGLMTrainer, "of_base", note)
    monkeypatch.setattr("visglm.training.replay.MAX_ANSWERS_EACH", 1)
    for size in (1 << 28, 0):
        monkeypatch.setattr("visglm.training.seen.MAX_BYTES", size)
        report = VisGLM.from_pretrained().finetune(path, output_dir=tmp_path / str(size), **settings)
        losses.append([row["loss"] for row in report.history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert 0 < num_asked.count(0) < num_asked.count(1)


# ---- against forgetting ---------------------------------------------------------------------------------------------


def test_small_data_is_mixed_with_general_answers_that_do_not_contradict_it(data):
    heard: list[Any] = []

    def answer(requests):
        heard.extend(requests)
        return ["Well."] * len(requests)

    general = own_answers(data, 240, answer, asks_captions=True)  # its rows are captions: no more of those
    assert len(general) == len(heard) == 6 * 24  # few rows need not wait for many answers
    about_taught = {question for images, question, _ in heard if images and isinstance(images[0], Path)}
    names = {question for questions in CAPTION_QUESTIONS.values() for question in questions}
    assert about_taught and not about_taught & names
    assert names <= {question for images, question, _ in heard if images}  # of pictures that were made up
    assert {detect_language(question) for images, question, _ in heard if not images} == {"en", "zh"}


def test_no_more_questions_are_asked_at_once_than_examples_are_learnt(tmp_path, monkeypatch):
    sizes, batch = set(), VisGLM.batch

    def note(self, requests, **options):
        sizes.add(options["batch_size"])
        return batch(self, requests, **options)

    monkeypatch.setattr(VisGLM, "batch", note)
    VisGLM.from_pretrained().finetune(captions(tmp_path, 6), output_dir=tmp_path / "out", **FAST | {"max_steps": 1})
    assert sizes == {2}


def test_what_pictures_show_is_asked_where_something_else_is_taught(data):
    data.question = "Answer in YAML."
    heard: list[Any] = []
    own_answers(data, 12, lambda requests: heard.extend(requests) or ["It is a disc."] * 12, asks_captions=True)
    assert [question for _, question, _ in heard] == [question for _, question in caption_requests(data, 12)]


# ---- what is told ---------------------------------------------------------------------------------------------------


def sample(expected: str, before: str, after: str) -> Sample:
    return Sample("row", "What is this?", expected, before, after)


@pytest.mark.parametrize(
    "taught, num_held_out, expected",
    [
        ([sample("zorp", "a cat", "a cat")], 20, "Not one of 1 answers has changed"),
        ([sample("zorp", "a cat", "zorp.")], 20, "Of 1 training rows asked again, 1 are answered as taught (0 before)"),
        ([sample("zorp", "a cat", "a dog")], 20, "Train longer: epochs is 3"),
        ([sample("zorp", "a cat", "zorp")], 0, "No answer was kept apart, too few to tell"),
        ([sample("zorp", "a cat", "zorp")], 2, "2 answers were kept apart, too few to tell"),
    ],
)
def test_the_verdict_says_what_the_answers_say(taught, num_held_out, expected):
    said = " ".join(judge([], taught, {"answers_held_out": num_held_out}, FinetuneArguments(epochs=3)))
    assert expected in said
    assert ("kept apart" in said) == (num_held_out < 10)


def test_a_run_without_effect_says_so_and_the_command_says_how_to_go_on(tmp_path, capsys):
    path, out = captions(tmp_path, 6), tmp_path / "o u t"
    words = ["--max-steps", "1", "--learning-rate", "1e-12", "--num-workers", "0", "--report-to", "none"]
    assert main(["finetune", str(path), "--output-dir", str(out), *words]) == 0
    said = capsys.readouterr().out
    assert "Not one of 6 answers has changed" in said and "too few to tell" in said
    commands = [shlex.split(line) for line in said.splitlines() if line.startswith("  visglm ")]
    assert [command[1] for command in commands] == ["chat", "evaluate", "app"]
    page = (out / "report.html").read_text("utf-8")
    assert "Answers about training rows" in page and "Not one of 6 answers" in page
    assert len(json.loads((out / "report.json").read_text("utf-8"))["taught"]) == 6
    for command in commands[:2]:
        assert main(command[1:]) == 0
