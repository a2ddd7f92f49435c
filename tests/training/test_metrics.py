"""Every metric against the package that defines it, or against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from visglm.training.metrics import (
    METRICS,
    Answer,
    Scores,
    contains,
    exact_match,
    rouge_l,
    token_f1,
    vqa_accuracy,
    vqa_words,
    words,
)

ENGLISH = [
    Answer("A cat sits on the mat.", ("The cat is sitting on the mat.", "There is a cat on a mat."), "en"),
    Answer("Two dogs run.", ("Two dogs are running in the park.", "A pair of dogs plays."), "en"),
    Answer("It is a red apple on a table", ("A red apple lies on the wooden table.",), "en"),
    Answer("", ("An empty street at night.",), "en"),
]
CHINESE = [
    Answer("图中有一只猫。", ("图中有一只猫坐在垫子上。", "一只猫在垫子上。"), "zh"),
    Answer("左边是苹果，右边是狗。", ("左边是苹果，右边是猫。",), "zh"),
    Answer("这是汽车", ("图中有两只狗。",), "zh"),
]


def test_words_are_words_in_english_and_characters_in_chinese() -> None:
    assert words("Don't buy iPhone手机 ＡＢ-3, ok?") == ["don't", "buy", "iphone", "手", "机", "ab", "3", "ok"]


@pytest.mark.parametrize(
    "prediction, reference, expected",
    [
        ("A cat.", "cat", 1),
        ("cats", "cat", 0),
        ("这是猫。", "这是猫", 1),
        ("这是猫", "猫", 0),
        ("！", "？", 0),
        ("", "the", 0),
    ],
)
def test_exact_match(prediction: str, reference: str, expected: float) -> None:
    assert exact_match(prediction, reference) == expected


@pytest.mark.parametrize(
    "prediction, reference, expected",
    [
        ("It is a hot dog.", "hot dog", 1),
        ("It is a dog, a hot one.", "hot dog", 0),
        ("caterpillar", "cat", 0),
        ("这是红苹果。", "苹果", 1),
        ("No, there is no cat.", "no", 1),
        ("There is no cat.", "no", 0),
        ("没有，图中没有猫。", "有", 0),
        ("有，图中有猫。", "有", 1),
        ("", "cat", 0),
    ],
)
def test_containment(prediction: str, reference: str, expected: float) -> None:
    assert contains(prediction, reference) == expected


@pytest.mark.parametrize(
    "prediction, reference, expected",
    [
        ("a big cat", "the cat", 2 / 3),  # precision 1/2, recall 1
        ("cat cat dog", "cat bird", 2 / 5),  # one cat in common, of three and two
        ("红苹果", "青苹果", 2 / 3),
        ("dog", "cat", 0),
        ("", "cat", 0),
    ],
)
def test_token_f1(prediction: str, reference: str, expected: float) -> None:
    assert token_f1(prediction, reference) == pytest.approx(expected)


# rouge-score 0.1.2: RougeScorer(["rougeL"], tokenizer=…).score_multi(references, prediction)["rougeL"].fmeasure
@pytest.mark.parametrize(
    "answers, expected", [(ENGLISH, [0.615385, 0.4, 0.625, 0]), (CHINESE, [0.705882, 0.888889, 0])]
)
def test_rouge_l_is_that_of_rouge_score(answers: list[Answer], expected: list[float]) -> None:
    assert METRICS["rouge_l"].measure(answers)[:, 0] == pytest.approx(expected, abs=1e-6)


def test_rouge_l_keeps_the_order() -> None:
    assert rouge_l("b a", "a b") == pytest.approx(0.5)


# pycocoevalcap 1.2: Cider().compute_score over the same words, its scores per row.
@pytest.mark.parametrize(
    "answers, expected",
    [(ENGLISH, [2.34555, 1.098617, 2.703109, 0]), (CHINESE, [3.482569, 8.864596, 0])],
)
def test_cider_is_that_of_coco_caption(answers: list[Answer], expected: list[float]) -> None:
    assert METRICS["cider"].measure(answers)[:, 0] == pytest.approx(expected, abs=1e-6)


def test_cider_of_a_language_does_not_depend_on_the_other() -> None:
    both = METRICS["cider"].measure(ENGLISH + CHINESE)
    assert both[: len(ENGLISH)] == pytest.approx(METRICS["cider"].measure(ENGLISH))


@pytest.mark.parametrize("answers, tokenizer", [(ENGLISH, "13a"), (CHINESE, "zh")])
def test_bleu_is_sacrebleus_of_the_corpus(answers: list[Answer], tokenizer: str) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    streams = [[answer.references[index % len(answer.references)] for answer in answers] for index in range(2)]
    expected = sacrebleu.corpus_bleu([answer.prediction for answer in answers], streams, tokenize=tokenizer).score
    metric = METRICS["bleu"]
    assert metric.combine(metric.measure(answers).sum(0)) == pytest.approx(expected) and expected > 5


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Two dogs!", ["2", "dogs"]),
        ("don't", ["dont"]),
        ("dont", ["dont"]),
        ("三个", ["3"]),
        ("十二只", ["12"]),
        ("二十", ["20"]),
        ("两", ["2"]),
        ("红色的", ["红色"]),
        ("的", ["的"]),
        ("3 只。", ["3"]),
    ],
)
def test_vqa_words(text: str, expected: list[str]) -> None:
    assert vqa_words(text) == expected


def test_vqa_accuracy_is_a_third_for_everyone_who_agrees() -> None:
    people = ["two", "2", "Two.", "2", "three", "3", "several", "a few", "four", "4"]
    assert vqa_accuracy("The 2", people) == 1
    assert vqa_accuracy("3", people) == pytest.approx(2 / 3)
    assert vqa_accuracy("several", people) == pytest.approx(1 / 3)
    assert vqa_accuracy("five", people) == 0
    assert math.isnan(vqa_accuracy("two", ["two", "two"]))


def test_values_are_means_in_percent() -> None:
    answers = [Answer("cat", ("cat",), "en"), Answer("a dog", ("cat", "dog"), "en"), Answer("a bird", ("cat",), "en")]
    values = Scores(answers, [0, 1, 2]).values([0, 1, 2])
    assert values["exact_match"]["value"] == pytest.approx(66.67)
    assert values["vqa_accuracy"] is None
    assert Scores(answers, [0, 1, 2]).values([2])["exact_match"]["value"] == 0


def test_vqa_accuracy_is_a_mean_over_the_questions_that_several_people_answered() -> None:
    answers = [
        Answer("cat", ("cat",) * 3, "en"),
        Answer("cat", ("dog",), "en"),
        Answer("dog", ("dog", "cat", "x"), "en"),
    ]
    assert Scores(answers, [0, 1, 2]).values([0, 1, 2])["vqa_accuracy"]["value"] == pytest.approx(
        100 * (1 + 1 / 3) / 2, abs=0.01
    )


def test_interval_is_that_of_a_share() -> None:
    """400 questions, half of them right: 1.96 · sqrt(0.25 / 400) is 4.9 points."""
    answers = [Answer("cat", (("cat", "dog")[index % 2],), "en") for index in range(400)]
    exact = Scores(answers, range(400)).values(np.arange(400))["exact_match"]
    assert exact["value"] == 50
    assert exact["low"] == pytest.approx(45.1, abs=1) and exact["high"] == pytest.approx(54.9, abs=1)


def test_interval_draws_whole_conversations() -> None:
    """A hundred questions in ten conversations, all right or all wrong: as uncertain as ten questions."""
    answers = [Answer("cat", (("cat", "dog")[index // 10 % 2],), "en") for index in range(100)]
    apart = Scores(answers, range(100)).values(range(100))["exact_match"]
    together = Scores(answers, [index // 10 for index in range(100)]).values(range(100))["exact_match"]
    assert together["high"] - together["low"] > 2 * (apart["high"] - apart["low"])


def test_same_seed_same_intervals() -> None:
    answers = ENGLISH + CHINESE
    first, again, other = (Scores(answers, range(7), seed=seed).values(range(7)) for seed in (1, 1, 2))
    assert first == again != other


def test_scores_of_one_answer() -> None:
    scores = Scores(ENGLISH, range(4)).of_answer(0)
    assert scores["cider"] == pytest.approx(2.3456, abs=1e-4) and set(scores) == {
        "exact_match", "containment", "token_f1", "rouge_l", "cider",
    }  # fmt: skip
