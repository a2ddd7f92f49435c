"""Evaluation: what the model is asked, what counts as its answer, and what is told about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visglm import VisGLM
from visglm.errors import DataError, ImageError, VisGLMError
from visglm.pictures import load_image
from visglm.prompt import Turn
from visglm.reply import History, Reply, Timings, Usage
from visglm.training import Evaluation, evaluate

pytest.importorskip("sacrebleu")


class Parrot:
    """Answers from a table, in the shape of `VisGLM.batch`, and keeps what it was asked."""

    def __init__(self, **answers: str):
        self.answers = answers
        self.asked: list[tuple[int, str, list[tuple[str, str | None]]]] = []
        self.sizes: list[int] = []

    def __call__(self, requests: Any, **settings: Any) -> list[Reply | VisGLMError]:
        assert settings["on_error"] == "return"
        self.sizes.append(len(requests))
        return [self.answer(*request) for request in requests]

    def answer(self, images: Any, question: str, history: History | None) -> Reply | VisGLMError:
        past = History.of(history)
        self.asked.append((len(images), question, [(turn.question, turn.answer) for turn in past.turns]))
        try:
            pictures = tuple(load_image(image) for image in images)
        except ImageError as error:
            return error
        text = self.answers.get(question, "no idea")
        turns = (*past.turns, Turn(question, text, len(pictures)))
        return Reply(text, History(turns, None, "en"), Usage(1, 1), Timings(0, 0, 0), "stop", pictures)


def row(*said: str, images: tuple = (), **extras: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(said)]
    return {"images": list(images), "messages": messages, **extras}


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (300, 200), "red").save(tmp_path / "red.png")
    return "red.png"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rows), "utf-8")
    return path


def run(data: Any, answerer: Any, **settings: Any) -> Evaluation:
    return evaluate(data, answerer, progress=False, **settings)


def test_every_turn_is_asked_with_the_true_answers_before_it(tmp_path: Path, picture: str) -> None:
    parrot = Parrot(**{"What is it?": "a dog", "Where?": "left"})
    data = write(tmp_path / "data.jsonl", [row("<image>What is it?", "a cat", "Where?", "left", images=(picture,))])
    evaluation = run(data, parrot)
    assert parrot.asked == [(1, "What is it?", []), (0, "Where?", [("What is it?", "a cat")])]
    assert [item["prediction"] for item in evaluation.predictions] == ["a dog", "left"]
    assert [item["scores"]["exact_match"] for item in evaluation.predictions] == [0, 1]
    assert evaluation.predictions[1]["history"] == [["What is it?", "a cat"]]


def test_an_unanswered_last_question_is_not_asked() -> None:
    parrot = Parrot()
    run([row("One?", "1", "Two?")], parrot)
    assert [question for _, question, _ in parrot.asked] == ["One?"]


def test_references_take_the_place_of_the_last_answer_only() -> None:
    people = ["two", "2", "two", "three"]
    parrot = Parrot(**{"What?": "cats", "How many?": "2"})
    evaluation = run([row("What?", "cats", "How many?", "3", references=people)], parrot)
    assert [item["references"] for item in evaluation.predictions] == [["cats"], people]
    assert evaluation.metrics["all"]["vqa_accuracy"]["value"] == 100
    assert evaluation.metrics["all"]["exact_match"]["value"] == 100


def test_broken_down_by_language_and_type() -> None:
    data = [
        row("What?", "cat", type="name"),
        row("是什么？", "猫", type="name"),
        row("How many?", "3", type="count"),
        row("Why?", "because"),
    ]
    metrics = run(data, Parrot(**{"What?": "cat", "How many?": "4", "Why?": "because"})).metrics
    exact = {
        (key, name): (values["num_answers"], values["exact_match"]["value"])
        for key in ("language", "type")
        for name, values in metrics[key].items()
    }
    assert exact == {
        ("language", "en"): (3, pytest.approx(66.67)),
        ("language", "zh"): (1, 0),
        ("type", "name"): (2, 50),
        ("type", "count"): (1, 0),
    }
    assert metrics["all"]["num_answers"] == metrics["num_rows"] == 4


def test_broken_rows_and_pictures_are_counted_and_told(tmp_path: Path, picture: str) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    rows = [
        row("<image>A?", "a", images=(picture,)),
        row("<image>B?", "b", "C?", "c", images=("broken.png",)),
        {"what": "ever"},
        row("D?", "d", references="d"),
        row("E?", "e"),
    ]
    evaluation = run(write(tmp_path / "data.jsonl", rows), Parrot(**{"A?": "a", "E?": "e"}))
    errors = [item for item in evaluation.predictions if "error" in item]
    assert sorted(Path(item["where"]).name for item in errors) == ["data.jsonl:2"] * 2 + [
        "data.jsonl:3",
        "data.jsonl:4",
    ]
    assert evaluation.metrics["num_rows"] == 5 and evaluation.metrics["num_errors"] == 4
    assert evaluation.metrics["all"]["num_answers"] == 2
    assert evaluation.metrics["all"]["exact_match"]["value"] == 100
    assert "data.jsonl:3" in "".join(evaluation.sections())


def test_when_nothing_can_be_answered_that_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Not one of 1 question could be answered(.|\n)*nowhere.png"):
        run([row("A?", "a", images=(str(tmp_path / "nowhere.png"),))], Parrot())


def test_streams_are_read_once_and_captions_get_the_question() -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"image": Image.new("RGB", (8, 8)), "caption": f"picture {number}"} for number in range(3)]
    parrot = Parrot(**{"What is shown?": "picture 1"})
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    evaluation = run(stream, parrot, question="What is shown?")
    assert parrot.asked == [(1, "What is shown?", [])] * 3
    assert [item["scores"]["exact_match"] for item in evaluation.predictions] == [0, 1, 0]


def test_rows_go_through_in_bounded_numbers() -> None:
    parrot = Parrot()
    run([row(f"Number {number}?", "x") for number in range(70)], parrot, batch_size=2)
    assert parrot.sizes == [32, 32, 6]


def test_saved_files_hold_everything(tmp_path: Path, picture: str) -> None:
    rows = [
        row("<image>是什么？", "一只猫", images=(picture,)),
        row("<image>What <b>?", "cat", images=(picture,)),
        row("Right?", "right"),
    ]
    evaluation = run(
        write(tmp_path / "data.jsonl", rows), Parrot(**{"是什么？": "一只狗", "What <b>?": "<dog>", "Right?": "right"})
    )
    evaluation.save(tmp_path / "out")
    assert json.loads((tmp_path / "out/metrics.json").read_text("utf-8")) == evaluation.metrics
    lines = (tmp_path / "out/predictions.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == evaluation.predictions
    assert [evaluation.predictions[place]["prediction"] for place, _ in evaluation.worst] == ["<dog>", "一只狗"]
    text = (tmp_path / "out/worst.html").read_text("utf-8")
    assert "exact match 0<br>" in text  # percent, as above
    assert text.count("data:image/png;base64,") == 2 and "&lt;dog&gt;" in text and "<dog>" not in text
    assert "一只狗" in evaluation._repr_html_()


def test_text_is_a_table_of_the_metrics_that_say_something() -> None:
    text = str(run([row("A?", "a", type="letter")], Parrot(**{"A?": "a"})))
    header, everything, language, kind = text.splitlines()
    assert "exact match" in header and "VQA" not in header
    assert [line.split()[:2] for line in (everything, language, kind)] == [["all", "1"], ["en", "1"], ["letter", "1"]]
    assert everything.split()[2:4] == ["100.0", "±0.0"]
    assert len({len(line) for line in text.splitlines()}) == 1


def test_the_models_own_answers_are_all_right(tmp_path: Path, picture: str) -> None:
    """Truth taken from the model itself: asked anew, in batches and from a file, it says the same."""
    vlm = VisGLM.from_pretrained()
    path = tmp_path / picture
    first = vlm.chat(path, "What is this?", max_new_tokens=5)
    second = vlm.chat(None, "它是什么颜色？", first.history, max_new_tokens=5)
    other = vlm.chat(None, "你好", max_new_tokens=5)
    assert first.text and second.text and other.text
    rows = [
        row("What is this?", first.text, "它是什么颜色？", second.text, images=(picture,)),
        row("你好", other.text),
    ]
    evaluation = vlm.evaluate(write(tmp_path / "data.jsonl", rows), max_new_tokens=5, progress=False)
    assert [item["prediction"] for item in evaluation.predictions] == [first.text, other.text, second.text]
    assert evaluation.metrics["all"]["exact_match"]["value"] == 100 and not evaluation.worst
