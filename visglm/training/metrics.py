"""How close answers are to reference answers, in Chinese and English, with bootstrap intervals.

English is compared by word, Chinese by character, mixed text by both, whatever case, width and punctuation.

A new metric is a function from answers to numbers that add up over answers, a function from their sums to the value,
and a row of `METRICS`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import require
from ..prompt import CHINESE

NUM_RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles: 95 % of the resamples lie between

WORD = re.compile(rf"{CHINESE}|(?:(?!{CHINESE})\w)+(?:['’](?!{CHINESE})\w+)*")
ARTICLES = {"a", "an", "the"}
# Short answers that mean something else inside a longer one ("not", "没有"): they count where they open it.
OPENING = {"yes", "no", "有", "没有", "是", "不是", "对", "不对"}

# VQA's numerals. https://github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py
ENGLISH_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_OF = {word: str(number) for number, word in enumerate(ENGLISH_NUMBERS)} | {"none": "0"}
CHINESE_DIGITS = {digit: number for number, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
CHINESE_NUMBER = re.compile("([一二三四五六七八九]?)十([一二三四五六七八九]?)|[零〇一二两三四五六七八九]")
MEASURE_WORD = re.compile("(?<=[0-9])[个只条张辆本件位名头匹朵棵块]")
MIN_ANSWERS = 3  # people who must have answered before VQA accuracy means anything

BLEU_TOKENIZERS = {"en": "13a", "zh": "zh"}  # sacrebleu's
MAX_GRAM = 4  # of BLEU and CIDEr
CIDER_SIGMA = 6.0  # words by which lengths may differ


class Answer(NamedTuple):
    """An answer and what it should have been.

    Args:
        prediction: what the model said.
        references: right answers, at least one.
        language: of the question: "en" or "zh".
    """

    prediction: str
    references: tuple[str, ...]
    language: str


class Metric(NamedTuple):
    """A row of `METRICS`.

    Args:
        title: for tables.
        measure: answers → `[num_answers, k]`, numbers that add up over answers; nan where it says nothing.
        combine: their sums `[k]` → the value, in percent.
    """

    title: str
    measure: Callable[[Sequence[Answer]], np.ndarray]
    combine: Callable[[np.ndarray], float | None]


# --- words ---


def words(text: str) -> list[str]:
    """Words of a text, and its Chinese characters each as one: lower case, half width, without punctuation."""
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


def content(text: str) -> list[str]:
    """Its words without articles; the text itself where no word is left."""
    return [word for word in words(text) if word not in ARTICLES] or [text.strip()]


def vqa_words(text: str) -> list[str]:
    """A short answer as VQA compares it: numbers as digits, no articles and apostrophes; in Chinese no measure word
    behind a number and no closing 的 or 了."""
    kept = [NUMBER_OF.get(word, word).replace("'", "").replace("’", "") for word in content(text)]
    if not re.search(CHINESE, text):
        return kept
    joined = CHINESE_NUMBER.sub(_number, "".join(kept))
    return [MEASURE_WORD.sub("", joined).rstrip("的了") or joined]


def _number(match: re.Match[str]) -> str:
    if "十" not in match[0]:
        return str(CHINESE_DIGITS[match[0]])
    return str(10 * CHINESE_DIGITS.get(match[1], 1) + CHINESE_DIGITS.get(match[2], 0))


# --- one answer, one reference: 0 to 1 ---


def exact_match(prediction: str, reference: str) -> float:
    return float(content(prediction) == content(reference))


def contains(prediction: str, reference: str) -> float:
    """Whether the words of the reference stand in the answer, in a row; yes and no must open it."""
    said, wanted = content(prediction), content(reference)
    last = 0 if "".join(wanted) in OPENING else len(said) - len(wanted)
    return float(any(said[start : start + len(wanted)] == wanted for start in range(last + 1)))


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of the shares of words that both have. Rajpurkar et al. 2016, SQuAD."""
    said, wanted = content(prediction), content(reference)
    return f1(sum((Counter(said) & Counter(wanted)).values()), len(said), len(wanted))


def rouge_l(prediction: str, reference: str) -> float:
    """F1 of the longest common subsequence of words. Lin 2004, ROUGE."""
    said, wanted = words(prediction), words(reference)
    lengths = [0] * (len(wanted) + 1)
    for word in said:
        diagonal = 0
        for place, other in enumerate(wanted, 1):
            longest = diagonal + 1 if word == other else max(lengths[place], lengths[place - 1])
            diagonal, lengths[place] = lengths[place], longest
    return f1(lengths[-1], len(said), len(wanted))


def f1(num_common: int, num_said: int, num_wanted: int) -> float:
    return 2 * num_common / (num_said + num_wanted) if num_common else 0.0


def vqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """A third for everyone who gave this answer, up to 1; nan with fewer than three. Antol et al. 2015, VQA."""
    if len(references) < MIN_ANSWERS:
        return np.nan
    said = vqa_words(prediction)
    return min(sum(vqa_words(reference) == said for reference in references) / 3, 1.0)


# --- all answers ---


def best(score: Callable[[str, str], float]) -> Callable[[Sequence[Answer]], np.ndarray]:
    """The measure that scores each answer by the reference that suits it best."""
    return lambda answers: np.array([[max(score(a.prediction, r) for r in a.references)] for a in answers])


def measure_vqa(answers: Sequence[Answer]) -> np.ndarray:
    return np.array([[vqa_accuracy(answer.prediction, answer.references)] for answer in answers])


def measure_bleu(answers: Sequence[Answer]) -> np.ndarray:
    """Matches and totals by length of n-gram, then the words said and wanted."""
    bleu = require("evaluate", "sacrebleu").BLEU
    tokenizers = {language: bleu(tokenize=name, effective_order=True) for language, name in BLEU_TOKENIZERS.items()}
    rows = []
    for answer in answers:
        score = tokenizers[answer.language].sentence_score(answer.prediction, list(answer.references))
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows, dtype=float)


def combine_bleu(sums: np.ndarray) -> float:
    counts = [int(number) for number in sums]
    bleu = require("evaluate", "sacrebleu").BLEU
    correct, total = counts[:MAX_GRAM], counts[MAX_GRAM : 2 * MAX_GRAM]
    return bleu.compute_bleu(correct, total, counts[-2], counts[-1], smooth_method="exp").score


def measure_cider(answers: Sequence[Answer]) -> np.ndarray:
    """CIDEr-D, rare n-grams weighing more: how rare is counted over the references of the same language.

    Vedantam et al. 2015; as in coco-caption, but on words as `words` splits them, without a stemmer.
    """
    scores = np.zeros((len(answers), 1))
    for language in {answer.language for answer in answers}:
        places = [place for place, answer in enumerate(answers) if answer.language == language]
        references = [[grams(text) for text in answers[place].references] for place in places]
        seen_in = Counter(gram for texts in references for gram in set().union(*texts))
        weigh = _Weights(seen_in, len(places))
        for place, texts in zip(places, references, strict=True):
            said = weigh(grams(answers[place].prediction))
            scores[place] = 10 * np.mean([said.similarity(weigh(text)) for text in texts])
    return scores


def grams(text: str) -> Counter[tuple[str, ...]]:
    """How often the text has each n-gram of up to four words."""
    said = words(text)
    return Counter(
        tuple(said[start : start + size]) for size in range(1, MAX_GRAM + 1) for start in range(len(said) - size + 1)
    )


class _Weights:
    """Counts of n-grams → counts times inverse document frequency."""

    def __init__(self, seen_in: Mapping[tuple[str, ...], int], num_documents: int):
        self.seen_in, self.log_documents = seen_in, np.log(num_documents)

    def __call__(self, counts: Counter[tuple[str, ...]]) -> _Weighed:
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_GRAM)]
        for gram, count in counts.items():
            rarity = self.log_documents - np.log(max(1, self.seen_in.get(gram, 0)))
            weights[len(gram) - 1][gram] = count * rarity
        return _Weighed(weights, sum(count for gram, count in counts.items() if len(gram) == 1))


class _Weighed(NamedTuple):
    weights: list[dict[tuple[str, ...], float]]  # by length of the n-gram
    length: int  # in words

    def similarity(self, reference: _Weighed) -> float:
        total = 0.0
        for ours, theirs in zip(self.weights, reference.weights, strict=True):
            norm = np.sqrt(sum(w * w for w in ours.values()) * sum(w * w for w in theirs.values()))
            if norm > 0:
                total += sum(min(w, theirs[gram]) * theirs[gram] for gram, w in ours.items() if gram in theirs) / norm
        return total / MAX_GRAM * np.exp(-((self.length - reference.length) ** 2) / (2 * CIDER_SIGMA**2))


def percent(sums: np.ndarray) -> float | None:
    """The mean of a single number, its sum and count given."""
    return 100 * sums[0] / sums[1] if sums[1] else None


METRICS: Mapping[str, Metric] = {
    "exact_match": Metric("exact match", best(exact_match), percent),
    "containment": Metric("containment", best(contains), percent),
    "token_f1": Metric("token F1", best(token_f1), percent),
    "rouge_l": Metric("ROUGE-L", best(rouge_l), percent),
    "bleu": Metric("BLEU", measure_bleu, combine_bleu),
    "cider": Metric("CIDEr", measure_cider, percent),
    "vqa_accuracy": Metric("VQA accuracy", measure_vqa, percent),
}


class Scores:
    """What each answer scored, and the values of any part of them.

    Args:
        answers: to be measured, all at once: CIDEr weighs words by all references.
        clusters: `[num_answers]`, the row each comes from; answers of one conversation are drawn together.
        seed: of the resamples.
    """

    def __init__(self, answers: Sequence[Answer], clusters: Sequence[int], seed: int = 0):
        self.clusters = np.asarray(clusters)
        self.seed = seed
        self.measured = {name: metric.measure(answers) for name, metric in METRICS.items()}

    def of_answer(self, place: int) -> dict[str, float]:
        """The scores of one answer, 0 to 1 (CIDEr to 10), as far as a metric scores single answers."""
        return {
            name: round(float(rows[place, 0]), 4)
            for name, rows in self.measured.items()
            if rows.shape[1] == 1 and not np.isnan(rows[place, 0])
        }

    def values(self, chosen: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Every metric over the chosen answers, `{"value", "low", "high"}` in percent; None where none is scored."""
        chosen = np.asarray(chosen)
        _, cluster = np.unique(self.clusters[chosen], return_inverse=True)
        num_clusters = int(cluster.max()) + 1
        sums = {
            name: _sum_by(cluster, num_clusters, _with_counts(rows[chosen])) for name, rows in self.measured.items()
        }
        resampled: dict[str, list[float | None]] = {name: [] for name in METRICS}
        random = np.random.default_rng(self.seed)
        for _ in range(NUM_RESAMPLES):
            drawn = np.bincount(random.integers(num_clusters, size=num_clusters), minlength=num_clusters)
            for name, metric in METRICS.items():
                resampled[name].append(metric.combine(drawn @ sums[name]))
        return {name: _interval(metric.combine(sums[name].sum(0)), resampled[name]) for name, metric in METRICS.items()}


def with_interval(value: Mapping[str, float] | None) -> str:
    """A value of `Scores.values` as people read it."""
    return "–" if value is None else f"{value['value']:.1f} ({value['low']:.1f}–{value['high']:.1f})"


def _with_counts(rows: np.ndarray) -> np.ndarray:
    """Single scores get a column that counts them; what is nan is neither added nor counted."""
    if rows.shape[1] > 1:
        return rows
    known = ~np.isnan(rows)
    return np.concatenate([np.where(known, rows, 0), known], 1)


def _sum_by(cluster: np.ndarray, num_clusters: int, rows: np.ndarray) -> np.ndarray:
    sums = np.zeros((num_clusters, rows.shape[1]))
    np.add.at(sums, cluster, rows)
    return sums


def _interval(value: float | None, resampled: Sequence[float | None]) -> dict[str, float] | None:
    if value is None:
        return None
    low, high = np.percentile([other for other in resampled if other is not None], INTERVAL)
    return {"value": round(float(value), 2), "low": round(float(low), 2), "high": round(float(high), 2)}
