"""A run goes on with what it was started with, or says what is different."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.taught import golden
from visglm import VisGLM
from visglm.errors import ConfigError
from visglm.training.saving import checkpoints

from .samples import captions, write_lines

STARTED: dict[str, Any] = {
    "max_steps": 2, "batch_size": 2, "num_workers": 0, "held_out": 0.0, "report_to": "none", "rank": 4,
    "accumulation": 1, "num_samples": 0, "replay": 0.0,
}  # fmt: skip
GOES_ON = {"max_steps": 3, "resume": True}


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return golden()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Data, and a run of two steps by each method."""
    folder = tmp_path_factory.mktemp("runs")
    data = captions(folder, 6)
    for method in METHODS:
        golden().finetune(data, method=method, output_dir=folder / method, **STARTED)
    return folder


METHODS = ("lora", "ptuning", "full")
# What was changed, the methods that heed it, and what is said.
CHANGED = [
    ({"rank": 8}, ("lora",), "rank was 4, is 8"),
    ({"alpha": 64.0}, ("lora",), "alpha was 32.0, is 64.0"),
    ({"targets": "query_key_value"}, ("lora",), "targets was None, is 'query_key_value'"),
    ({"layers": "0"}, ("lora",), "layers was None, is '0'"),
    ({"towers": "text,qformer"}, ("lora",), "towers was 'text', is 'text, qformer'"),
    ({"towers": "text"}, ("full",), "towers was 'vision, qformer, text', is 'text'"),
    ({"prefix_tokens": 3}, ("ptuning",), "prefix_tokens was 16, is 3"),
    ({"learning_rate": 1e-6}, ("lora", "ptuning", "full"), r"learning rate of text was .*, is 1e-06"),
    ({"weight_decay": 0.5}, ("lora", "ptuning", "full"), "weight_decay was 0.01, is 0.5"),
    ({"seed": 7}, ("lora", "ptuning", "full"), "seed was 0, is 7"),
    ({"batch_size": 3}, ("lora", "ptuning", "full"), "examples per step was 2, is 3"),
    ({"held_out": 0.5}, ("lora", "ptuning", "full"), "answers was 6, is 3"),
    ({"replay": 0.5}, ("lora", "ptuning", "full"), "replay was 0.0, is 0.5"),
]


@pytest.mark.parametrize(
    "method, changed, told", [(method, changed, told) for changed, methods, told in CHANGED for method in methods]
)
def test_what_a_run_cannot_go_on_with_is_told_before_it_does(vlm, folder, method, changed, told):
    """Of these some would be ignored, some would end in torch's words, and some would make it another run."""
    with pytest.raises(ConfigError, match=f"cannot go on from .*{told}"):
        vlm.finetune(folder / "train.jsonl", method=method, output_dir=folder / method, **STARTED | GOES_ON | changed)
    assert not vlm.adapters.names
    assert [checkpoint.name for checkpoint in checkpoints(folder / method)] == ["checkpoint-2"]


@pytest.mark.parametrize("method, ignored", [("ptuning", {"rank": 8, "layers": "0"}), ("full", {"prefix_tokens": 3})])
def test_what_a_method_does_not_heed_may_change(folder, tmp_path, method, ignored):
    run = shutil.copytree(folder / method, tmp_path / "run")
    changed = ignored | {"every": 1, "keep": 2, "patience": 2, "num_workers": 1}
    golden().finetune(folder / "train.jsonl", method=method, output_dir=run, **STARTED | GOES_ON | changed)
    assert checkpoints(run)[-1].name == "checkpoint-3"


def test_other_data_are_told(vlm, folder):
    """By steps a run finds its place in the data, and in others there is no such place."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    more = write_lines(folder / "more.jsonl", rows * 2)
    with pytest.raises(ConfigError, match="cannot go on from .*answers was 6, is 12"):
        vlm.finetune(more, method="lora", output_dir=folder / "lora", **STARTED | GOES_ON)


@pytest.mark.parametrize("method", METHODS)
def test_as_many_other_answers_are_told(vlm, folder, method):
    """A run would go on as if nothing was, and its report would speak of rows that it has hardly seen."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    others = write_lines(folder / "others.jsonl", [row | {"caption": f"Not {row['caption']}"} for row in rows])
    with pytest.raises(ConfigError, match="cannot go on from .*checksum of what the rows say was '.*', is '"):
        vlm.finetune(others, method=method, output_dir=folder / method, **STARTED | GOES_ON)


def test_a_run_goes_on_where_its_rows_lie_elsewhere(folder, tmp_path):
    """Machines have their data where they have room: by its words a row is known, not by the paths of its pictures."""
    run = shutil.copytree(folder / "lora", tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    moved = [row | {"image": str(folder / row["image"])} for row in rows]
    golden().finetune(moved, method="lora", output_dir=run, **STARTED | GOES_ON)
    assert checkpoints(run)[-1].name == "checkpoint-3"


@pytest.mark.parametrize(
    "wrong", [{"method": "qlora"}, {"targets": "nothing"}, {"layers": "99"}, {"method": "ptuning", "towers": "vision"}]
)
def test_settings_that_cannot_be_leave_no_folder(vlm, folder, tmp_path, wrong, monkeypatch):
    """They are told before the model is asked anything, and before there is something to clean up."""
    monkeypatch.setattr("visglm.training.plan.answer_briefly", None)
    with pytest.raises(ConfigError):
        vlm.finetune(folder / "train.jsonl", output_dir=tmp_path / "run", **STARTED | {"num_samples": 2} | wrong)
    assert not list(tmp_path.iterdir())
