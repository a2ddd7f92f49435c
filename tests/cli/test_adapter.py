"""`--adapter`: what fine-tuning made, named beside the model that it lies over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.adapters.taught import ROWS, teach
from tests.tiny import GOLDEN_HF
from visglm import VisGLM
from visglm.cli import main

PICTURE = ROWS[0]["image"]
SHORT = ["--max-new-tokens", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """An adapter `adapter`, its base `base`, and `moved`, where that base lies now."""
    folder = tmp_path_factory.mktemp("taught")
    VisGLM.from_pretrained(GOLDEN_HF, device="cpu").save_pretrained(folder / "base")
    teach(VisGLM.from_pretrained(folder / "base", device="cpu"), folder / "adapter", max_steps=8)
    (folder / "base").rename(folder / "moved")
    return folder


@pytest.fixture(scope="module")
def answer(taught) -> str:
    vlm = VisGLM.from_pretrained(taught / "adapter", base=taught / "moved", device="cpu")
    said = vlm.chat(PICTURE, "What is this?", max_new_tokens=4).text
    assert said.strip()
    with vlm.adapter_disabled():
        assert vlm.chat(PICTURE, "What is this?", max_new_tokens=4).text != said
    return said


def test_chat_answers_with_what_was_learnt(taught, answer, capsys):
    models = ["--adapter", str(taught / "adapter"), "--model", str(taught / "moved")]
    assert main(["chat", PICTURE, "-q", "What is this?", *models, *SHORT]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{answer}\n"
    assert f"Loading {taught / 'adapter'} over {taught / 'moved'} …" in captured.err


def test_describe_and_its_results_name_the_adapter(taught, answer, tmp_path, capsys):
    models = ["--adapter", str(taught / "adapter"), "--model", str(taught / "moved")]
    asked = ["--question", "What is this?", *models, *SHORT]
    assert main(["describe", PICTURE, *asked]) == 0
    assert capsys.readouterr().out == f"{answer}\n"
    pytest.importorskip("filelock")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(Path(PICTURE).read_bytes())
    assert main(["describe", str(tmp_path / "pictures"), str(tmp_path / "answers"), *asked]) == 0
    facts = json.loads((tmp_path / "answers" / "describe.json").read_text("utf-8"))
    assert facts["model"] == str(taught / "adapter")


def test_evaluate_scores_the_adapter(taught, answer, tmp_path, capsys):
    pytest.importorskip("sacrebleu")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": PICTURE, "caption": answer}) + "\n", "utf-8")
    models = ["--adapter", str(taught / "adapter"), "--model", str(taught / "moved")]
    asked = ["--prompt", "What is this?", "--allow-outside", *models, *SHORT]
    assert main(["evaluate", str(tmp_path / "rows.jsonl"), *asked]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["all", "1", "100.0"]


def test_without_a_model_the_base_is_the_one_that_the_adapter_names(tmp_path, capsys):
    teach(VisGLM.from_pretrained(device="cpu"), tmp_path / "adapter")
    expected = VisGLM.from_pretrained(tmp_path / "adapter", device="cpu").chat(PICTURE, "What?", max_new_tokens=4).text
    assert main(["chat", PICTURE, "-q", "What?", "--adapter", str(tmp_path / "adapter"), *SHORT]) == 0
    assert capsys.readouterr().out == f"{expected}\n"


@pytest.mark.parametrize("command", [["chat", PICTURE, "-q", "What?"], ["describe", PICTURE], ["evaluate", "rows"]])
@pytest.mark.parametrize(
    "models, message",
    [
        (["--adapter", "moved"], "moved holds no adapter. If it is a whole model, give it as --model"),
        (["--adapter", "adapter", "--model", "moved", "--base", "moved"], "leave out --base"),
        (["--adapter", "adapter", "--model", "adapter"], "is an adapter's folder itself"),
        (["--adapter", "nowhere"], "nowhere"),
    ],
    ids=["a whole model", "two bases", "an adapter as the base", "nothing there"],
)
def test_what_is_no_adapter_is_told(taught, monkeypatch, capsys, command, models, message):
    monkeypatch.chdir(taught)
    assert main([*command, *models, *SHORT]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("models", [["--adapter", "run"], ["--adapter", "run", "--model", "moved"], ["--model", "run"]])
def test_what_a_run_that_was_cut_short_left_is_named(taught, tmp_path, monkeypatch, capsys, models):
    """`finetune` wrote that folder, so "name the folder that `finetune` wrote" would lead nowhere."""
    monkeypatch.chdir(tmp_path)
    for step in ("8", "16"):
        shutil.copytree(taught / "adapter", tmp_path / "run" / f"checkpoint-{step}")
    (tmp_path / "run" / "partial").mkdir()
    assert main(["chat", PICTURE, "-q", "What is this?", *models, *SHORT]) == 1
    told = capsys.readouterr().err
    assert "cut short" in told and "--resume" in told and f"name {Path('run', 'checkpoint-16')}." in told


def test_export_tells_the_same(taught, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(taught)
    assert main(["export", "moved", str(tmp_path / "out"), "--adapter", "moved"]) == 1
    assert "moved holds no adapter" in capsys.readouterr().err


def test_light_is_another_model(taught, capsys):
    assert main(["chat", "-q", "Hello", "--light", "--adapter", str(taught / "adapter")]) == 1
    assert "--adapter" in capsys.readouterr().err
