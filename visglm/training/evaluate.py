"""Ask a model the questions of a data set, and compare its answers with the right ones.

Rows are those of training. Every answer of a conversation is asked for with the true ones before it as history. Beside
`messages` a row may carry "references", a list of right answers to its last question in place of the one there, and
"type", the kind of question, by which the results are broken down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..errors import DataError, VisGLMError, counted, require, shorten, writing
from ..prompt import detect_language
from ..reply import History, Reply, thumbnail_url
from .containers import as_row, is_stream, open_rows, undecoded
from .folder import HERE, Folder
from .formats import Conversation, read_extras, read_row
from .metrics import METRICS, Answer, Scores, contains, token_f1, with_interval
from .page import Html, escape, heading, page, paragraph, pictures, table

NUM_WORST = 40  # answers shown with their pictures
NUM_ERRORS = 20  # errors shown; all of them are among the predictions
CHUNK = 16  # batches of rows whose conversations go on together

# Answers many requests `(images, question, history)`, an error in place of a reply that there cannot be: VisGLM.batch.
Answerer = Callable[..., Sequence[Any]]


@dataclass
class Dialogue:
    """A row while it is asked.

    Args:
        number: of the row. where: tells file and line, slowly. located: its pictures, paths made whole.
        conversation: what it holds. references: right answers to its last question. kind: of question, or None.
        history: the true conversation so far. images: the pictures in it. error: what ended it early.
    """

    number: int
    where: Callable[[int], str]
    located: Sequence[Any]
    conversation: Conversation
    references: tuple[str, ...]
    kind: str | None
    history: History | None = None
    images: tuple[Image.Image, ...] = ()
    error: VisGLMError | None = None

    @property
    def num_asked(self) -> int:
        """Turns with a true answer; only the last may lack it."""
        return sum(turn.answer is not None for turn in self.conversation.turns)

    def request(self, place: int) -> tuple[list[Any], str, History | None]:
        """What is asked in turn `place`."""
        turns = self.conversation.turns
        first = sum(turn.num_images for turn in turns[:place])
        images = self.located[first : first + turns[place].num_images]
        return list(images), turns[place].question, self.history

    def go_on(self, place: int, reply: Reply | VisGLMError) -> None:
        """From the true answer, whatever the model said."""
        if isinstance(reply, VisGLMError):
            self.error = reply
            return
        truth = replace(reply.history.turns[-1], answer=self.conversation.turns[place].answer)
        self.history = replace(reply.history, turns=(*reply.history.turns[:-1], truth))
        self.images += reply.images

    def prediction(self, place: int) -> dict[str, Any]:
        """What is noted down of turn `place`, whatever the answer."""
        turns = self.conversation.turns
        has_references = bool(self.references) and place == self.num_asked - 1
        return {
            "row": self.number,
            "turn": place + 1,
            "language": detect_language(turns[place].question),
            "type": self.kind,
            "images": [name_of(image) for image in self.conversation.images],
            "history": [[turn.question, turn.answer] for turn in turns[:place]],
            "question": turns[place].question,
            "references": list(self.references) if has_references else [turns[place].answer],
        }


@dataclass(frozen=True)
class Evaluation:
    """What came out. `str()` is a table; a notebook shows the page.

    Args:
        metrics: counts, then {"all": …, "language": {"en": …}, "type": {…}}, each with the number of answers and, by
            metric, {"value", "low", "high"} in percent: the value and its 95 % bootstrap interval. CIDEr's is above 100
            at times. A metric that says nothing about these rows is None.
        predictions: one a question: row (from 0), turn, language, type, images, history, question, references,
            prediction, and scores; where and error in their place if there was no answer.
        worst: places in `predictions` and the pictures shown, as data URLs; the worst first.
    """

    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]
    worst: list[tuple[int, tuple[str, ...]]] = field(repr=False)

    def save(self, folder: str | Path) -> None:
        """Write `metrics.json`, `predictions.jsonl` and `worst.html`.

        Raises:
            ConfigError: they cannot be written.
        """
        folder = Path(folder)
        lines = (json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in self.predictions)
        texts = {
            "metrics.json": json.dumps(self.metrics, ensure_ascii=False, indent=1) + "\n",
            "predictions.jsonl": "".join(lines),
            "worst.html": page("Evaluation", *self.sections()),
        }
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                (folder / name).write_text(text, "utf-8")

    def groups(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Names of the rows of the table, and their values."""
        yield "all", self.metrics["all"]
        for breakdown in ("language", "type"):
            yield from self.metrics[breakdown].items()

    def __str__(self) -> str:
        shown = [name for name in METRICS if self.metrics["all"][name] is not None]
        lines = [["", "answers", *(METRICS[name].title for name in shown)]]
        for group, values in self.groups():
            lines.append([group, str(values["num_answers"]), *(_plus_minus(values[name]) for name in shown)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = (map(str.rjust, line[1:], widths[1:]) for line in lines)
        return "\n".join(
            "  ".join((line[0].ljust(widths[0]), *cells)) for line, cells in zip(lines, padded, strict=True)
        )

    def sections(self) -> Iterator[Html]:
        """The parts of the page."""
        yield paragraph(self.summary())
        shown = [name for name in METRICS if self.metrics["all"][name] is not None]
        rows = [
            [group, values["num_answers"], *(with_interval(values[name]) for name in shown)]
            for group, values in self.groups()
        ]
        yield table(["", "answers", *(METRICS[name].title for name in shown)], rows)
        errors = [prediction for prediction in self.predictions if "error" in prediction]
        if errors:
            yield heading("Not answered")
            yield table(["where", "error"], [[error["where"], error["error"]] for error in errors[:NUM_ERRORS]])
        if self.worst:
            yield heading("Worst answers")
            yield table(["pictures", "question", "answer", "right", "scores"], map(self._worst_row, self.worst))

    def _worst_row(self, item: tuple[int, tuple[str, ...]]) -> list[Any]:
        place, urls = item
        row = self.predictions[place]
        asked = "\n".join([*(f"{question}\n→ {answer}" for question, answer in row["history"]), row["question"]])
        scores = "\n".join(f"{METRICS[name].title} {100 * value:.0f}" for name, value in row["scores"].items())
        shown = Html(pictures(urls) + escape(f"\nrow {row['row']}"))
        return [shown, asked, row["prediction"], "\n".join(row["references"]), scores]

    def summary(self) -> str:
        """How many questions were answered, in a sentence."""
        counts = self.metrics
        text = f"{counted(counts['num_answers'], 'question')} of {counted(counts['num_rows'], 'row')} answered"
        failed = f", {counts['num_errors']} not: see below" if counts["num_errors"] else ""
        return f"{text}{failed}. Values are percentages with the interval in which 95 % of the resamples lie."

    def _repr_html_(self) -> str:
        return "\n".join(self.sections())


def evaluate(
    data: Any,
    answer: Answerer,
    *,
    question: str | None = None,
    batch_size: int = 8,
    max_new_tokens: int | None = None,
    seed: int = 0,
    progress: bool = True,
    allow_outside: bool = False,
) -> Evaluation:
    """Ask every question of `data`, and score the likeliest answers.

    A row that cannot be read, or whose picture is broken, is counted and noted down, and does not end the run.

    Args:
        data: as for fine-tuning: a file, a folder, shards, a list of rows or a `datasets` object, streaming or not.
        answer: takes requests and the settings of `VisGLM.batch`, which it usually is.
        question: asked of captions that come without one.
        batch_size: questions that share a pass through the model.
        max_new_tokens: longest answer, in tokens; None for what the context leaves, at most 512.
        seed: of the resamples behind the intervals.
        progress: show a progress bar on stderr.
        allow_outside: whether rows of a file may name pictures outside of its folder.

    Raises:
        DataError: there is no data of the kind, or not one question could be answered.
        MissingDependencyError: the extra "evaluate" is not installed.
    """
    require("evaluate", "sacrebleu")  # rather now than after all the questions
    settings = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "on_error": "return", "progress": False}
    predictions: list[dict[str, Any]] = []
    worst: list[tuple[tuple[float, float], int, tuple[str, ...]]] = []
    rows = undecoded(data) if is_stream(data) else open_rows(data, allow_outside)
    dialogues = read_dialogues(rows, question)
    total = None if is_stream(data) else len(rows)
    with tqdm(total=total, unit="row", disable=not progress) as bar:
        while chunk := list(islice(dialogues, CHUNK * batch_size)):
            readable = [item for item in chunk if isinstance(item, Dialogue)]
            unreadable = [item for item in chunk if not isinstance(item, Dialogue)]
            predictions += unreadable
            for prediction, images in ask(readable, answer, settings):
                if "prediction" in prediction:
                    badness = rate(prediction)
                    if badness < (1.0, 1.0) and (len(worst) < NUM_WORST or badness < worst[-1][0]):
                        shown = tuple(thumbnail_url(image) for image in images)
                        worst = sorted([*worst, (badness, len(predictions), shown)], key=lambda item: item[:2])
                        del worst[NUM_WORST:]
                predictions.append(prediction)
            bar.update(len(chunk))
    return score(predictions, [(place, shown) for _, place, shown in worst], seed)


def read_dialogues(rows: Any, question: str | None) -> Iterator[Dialogue | dict[str, Any]]:
    """The rows, ready to be asked; of one that cannot be read, what is noted down."""
    for number, (row, folder, where) in enumerate(read_raw(rows)):
        try:
            if isinstance(row, VisGLMError):
                raise row
            conversation = read_row(row, question, number)
            located = [folder.locate(image) for image in conversation.images]
            yield Dialogue(number, where, located, conversation, *read_extras(row))
        except VisGLMError as error:
            yield {"row": number, "where": where(number), "error": str(error)}


def read_raw(rows: Any) -> Iterator[tuple[Any, Folder, Callable[[int], str]]]:
    """Every row or what is wrong with it, the folder that its paths start from, and what tells where it stands."""
    if is_stream(rows):
        yield from ((as_row(row), HERE, lambda number: f"row {number}") for row in rows)
        return
    for number in range(len(rows)):
        try:
            row = rows[number]
        except VisGLMError as error:
            row = error
        yield row, rows.folder, rows.where


def name_of(image: Any) -> str:
    """A picture in a few words: its path, or what kind of thing it is."""
    return shorten(str(image)) if isinstance(image, str | Path) else f"({type(image).__name__})"


def ask(
    dialogues: Sequence[Dialogue], answer: Answerer, settings: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], tuple[Image.Image, ...]]]:
    """Turn by turn, all dialogues at once, so that pictures are encoded once: predictions with the pictures so far."""
    for place in range(max((dialogue.num_asked for dialogue in dialogues), default=0)):
        asked = [dialogue for dialogue in dialogues if place < dialogue.num_asked]
        alive = [dialogue for dialogue in asked if dialogue.error is None]
        replies = answer([dialogue.request(place) for dialogue in alive], **settings) if alive else ()
        texts = {}
        for dialogue, reply in zip(alive, replies, strict=True):
            dialogue.go_on(place, reply)
            texts[dialogue.number] = str(reply)
        for dialogue in asked:
            outcome = {"prediction": texts.get(dialogue.number)}
            if dialogue.error:
                outcome = {"where": dialogue.where(dialogue.number), "error": str(dialogue.error)}
            yield dialogue.prediction(place) | outcome, dialogue.images


def rate(prediction: Mapping[str, Any]) -> tuple[float, float]:
    """How good an answer is, worst first, without knowing the others."""
    text, references = prediction["prediction"], prediction["references"]
    return max(contains(text, r) for r in references), max(token_f1(text, r) for r in references)


def score(predictions: list[dict[str, Any]], worst: list[tuple[int, tuple[str, ...]]], seed: int) -> Evaluation:
    """Measure what was answered, in all and by language and type."""
    answered = [prediction for prediction in predictions if "prediction" in prediction]
    errors = [prediction for prediction in predictions if "error" in prediction]
    if not answered:
        shown = "".join(f"\n  {error['where']}: {error['error']}" for error in errors[:5])
        raise DataError(f"Not one of {counted(len(predictions), 'question')} could be answered:{shown}")
    answers = [Answer(row["prediction"], tuple(row["references"]), row["language"]) for row in answered]
    scores = Scores(answers, [row["row"] for row in answered], seed)
    for index, row in enumerate(answered):
        row["scores"] = scores.of_answer(index)

    def values(chosen: Sequence[int]) -> dict[str, Any]:
        return {"num_answers": len(chosen)} | scores.values(chosen)

    def breakdown(key: str) -> dict[str, Any]:
        names = sorted({row[key] for row in answered if row[key] is not None})
        return {name: values([i for i, row in enumerate(answered) if row[key] == name]) for name in names}

    metrics = {
        "num_rows": len({prediction["row"] for prediction in predictions}),
        "num_answers": len(answered),
        "num_errors": len(errors),
        "all": values(range(len(answered))),
        "language": breakdown("language"),
        "type": breakdown("type"),
    }
    return Evaluation(metrics, predictions, worst)


def _plus_minus(value: Mapping[str, float] | None) -> str:
    return "–" if value is None else f"{value['value']:.1f} ±{(value['high'] - value['low']) / 2:.1f}"
