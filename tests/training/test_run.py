"""Whole runs on the embedded model: three doors, checkpoints, resume, what makes a run stop, the report."""

from __future__ import annotations

import errno
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from visglm import VisGLM
from visglm.cli import main
from visglm.errors import ConfigError, DataError, TrainingError
from visglm.recipe import FinetuneArguments, read_recipe
from visglm.training import saving
from visglm.training.saving import checkpoints, complete, is_complete

from .samples import captions, picture, write_lines

FAST: dict[str, Any] = {
    "max_steps": 4, "every": 2, "batch_size": 2, "num_workers": 0, "held_out": 0.2, "report_to": "none",
    "rank": 4, "accumulation": 1,
    "learning_rate": 5e-3, "num_samples": 2, "replay": 0.0,
}  # fmt: skip


SHIPPED = sorted(Path(__file__).parents[2].glob("finetune/*.yaml"))
LAUNCHED = [path for path in SHIPPED if ".accelerate" in path.name]
RECIPES = [path for path in SHIPPED if path not in LAUNCHED]


def losses(report: Any) -> list[tuple[int, float]]:
    return [(row["step"], row.get("loss", row.get("eval_loss"))) for row in report.history]


def flags(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), str(value))]


def test_a_run_from_captions_to_a_model_that_answers(tmp_path, capsys):
    vlm = VisGLM.from_pretrained()
    base = vlm.chat(picture(1), "Describe this image.", max_new_tokens=8).text
    report = vlm.finetune(captions(tmp_path, 12), output_dir=tmp_path / "out", **FAST | {"replay": 0.2})
    told = capsys.readouterr().err.partition("training:")[0]
    assert f"{report.data['tokens_to_learn']} tokens to learn in 10 answers" in told
    assert "activations 0.0" in told and "GB are free" in told
    assert report.data["answers"] == 10 and report.data["answers_held_out"] == 2
    assert [step for step, _ in losses(report)] == [1, 2, 2, 3, 4, 4]
    assert losses(report)[-1][1] < losses(report)[0][1]
    answer = vlm.chat(picture(1), "Describe this image.", max_new_tokens=8).text
    again = VisGLM.from_pretrained(tmp_path / "out")
    assert again.chat(picture(1), "Describe this image.", max_new_tokens=8).text == answer
    with vlm.adapter_disabled():
        assert vlm.chat(picture(1), "Describe this image.", max_new_tokens=8).text == base
    assert {"report.html", "report.json", "README.md"} <= {path.name for path in (tmp_path / "out").iterdir()}
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert "held-out" in page and "data:image/png;base64" in page and report.command in page.replace("&#x27;", "'")
    stored = json.loads((tmp_path / "out/report.json").read_text("utf-8"))
    assert stored["samples"][0]["before"] is not None and stored["samples"][0]["after"] is not None
    assert set(stored["metrics"]) == {"before", "after"}
    for title in ("exact match", "token F1", "ROUGE-L", "BLEU", "CIDEr"):
        assert f"<td>{title}</td>" in page
    after = stored["metrics"]["after"]
    assert after["token_f1"]["low"] <= after["token_f1"]["value"] <= after["token_f1"]["high"]
    assert "train.jsonl:" in page and "<details>" in page and "<td>measured, with Python" in page
    assert after["vqa_accuracy"] is None and "VQA" not in page
    assert "from_pretrained" in (tmp_path / "out/README.md").read_text("utf-8")


def test_a_run_that_is_told_to_stop_keeps_what_it_learnt(tmp_path):
    vlm = VisGLM.from_pretrained()
    say_stop = iter([False, False, True])
    settings = {**FAST, "held_out": 0.0, "max_steps": 100}
    report = vlm.finetune(captions(tmp_path, 8), output_dir=tmp_path / "out", stop=lambda: next(say_stop), **settings)
    assert [step for step, _ in losses(report)] == [1, 2, 3]
    assert (tmp_path / "out/checkpoint-3").is_dir()
    answer = vlm.chat(picture(1), "Describe this image.", max_new_tokens=8).text
    assert (
        VisGLM.from_pretrained(tmp_path / "out").chat(picture(1), "Describe this image.", max_new_tokens=8).text
        == answer
    )


def test_three_doors_lead_to_the_same_run(tmp_path, capsys):
    path = captions(tmp_path, 8)
    settings = {**FAST, "max_steps": 2}
    assert main(["finetune", str(path), *flags(settings), "--output-dir", str(tmp_path / "flags")]) == 0
    assert "report.html" in capsys.readouterr().out
    recipe = tmp_path / "recipe.yaml"
    lines = {**settings, "data": "train.jsonl", "output_dir": str(tmp_path / "elsewhere")}
    recipe.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    assert main(["finetune", "--config", str(recipe), "--output-dir", str(tmp_path / "recipe")]) == 0
    report = VisGLM.from_pretrained().finetune(path, output_dir=tmp_path / "method", **settings)
    assert "--model" not in report.command  # the embedded one
    histories = [json.loads((tmp_path / door / "report.json").read_text())["history"] for door in ("flags", "recipe")]
    for history in histories:
        assert [row.get("loss") for row in history] == [row.get("loss") for row in report.history]


def test_the_command_names_the_model_it_began_with(tmp_path):
    VisGLM.from_pretrained().save_pretrained(tmp_path / "base")
    vlm = VisGLM.from_pretrained(tmp_path / "base")
    report = vlm.finetune(captions(tmp_path, 8), output_dir=tmp_path / "out", **FAST | {"max_steps": 1})
    assert report.command.endswith(f"--model {tmp_path.resolve() / 'base'}")


@pytest.mark.parametrize("replay, num_workers", [(0.0, 0), (0.3, 1)])  # 5 and 7 steps an epoch: it stops in the second
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, replay, num_workers):
    path = captions(tmp_path, 12)
    settings = {**FAST, "max_steps": 10, "dropout": 0.3, "replay": replay, "num_workers": num_workers}
    whole = VisGLM.from_pretrained().finetune(path, output_dir=tmp_path / "whole", **settings)

    class Interrupted(Exception):
        pass

    def interrupt(*arguments: Any) -> None:
        original(*arguments)
        if (tmp_path / "part/checkpoint-8").exists():
            raise Interrupted

    original = saving.publish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visglm.training.trainer.publish", interrupt)
        with pytest.raises(Interrupted):
            VisGLM.from_pretrained().finetune(path, output_dir=tmp_path / "part", **settings)
    assert [folder.name for folder in checkpoints(tmp_path / "part")][-1] == "checkpoint-8"
    resumed = VisGLM.from_pretrained().finetune(path, output_dir=tmp_path / "part", **settings, resume=True)
    expected, found = dict(losses(whole)), dict(losses(resumed))
    assert found.keys() == expected.keys()
    for step, value in expected.items():
        assert found[step] == pytest.approx(value, abs=1e-6)


def test_processes_that_read_data_have_ended_before_memory_is_freed(tmp_path, monkeypatch):
    """In cycles their queues would go first, and each process would be waited for five seconds."""
    left = []
    collector = SimpleNamespace(collect=lambda: left.append(multiprocessing.active_children()))
    monkeypatch.setattr("visglm.training.run.gc", collector)
    rows = [{"image": picture(0), "caption": "It is a disc."}]
    settings = {"replay": 0.0, "num_workers": 1, "num_samples": 0, "report_to": "none"}  # it ends when all is learnt
    VisGLM.from_pretrained().finetune(rows, output_dir=tmp_path / "out", **settings)
    assert left == [[]]


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing_but_time(tmp_path):
    path = captions(tmp_path, 12)
    settings = {**FAST, "max_steps": 30, "every": 1, "output_dir": tmp_path / "out"}
    command = [sys.executable, "-m", "visglm", "finetune", str(path), *flags(settings), "--resume"]
    for seconds in (0.0, 0.2, 0.5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, deadline = checkpoints(tmp_path / "out")[-1:], time.time() + 300
        while process.poll() is None and time.time() < deadline and checkpoints(tmp_path / "out")[-1:] == before:
            time.sleep(0.02)
        time.sleep(seconds)
        assert process.poll() is None, "it ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert checkpoints(tmp_path / "out"), "no complete checkpoint is left"
        (tmp_path / "out/checkpoint-99").mkdir(exist_ok=True)  # half a checkpoint, as a copy would leave it
    subprocess.run(command, check=True)
    whole = VisGLM.from_pretrained().finetune(path, **{**settings, "output_dir": tmp_path / "whole"})
    resumed = json.loads((tmp_path / "out/report.json").read_text())["history"]
    for row, other in zip(whole.history, resumed, strict=True):
        assert row.get("loss", 0) == pytest.approx(other.get("loss", 0), abs=1e-6)


def test_half_a_checkpoint_is_not_taken_for_one(tmp_path):
    for number in (2, 4):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"whole")
        complete(folder)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    (tmp_path / "checkpoint-4/weights").write_bytes(b"half")
    assert not is_complete(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-2/complete.json").unlink()
    assert checkpoints(tmp_path) == []


def test_a_full_disk_is_told_and_the_old_checkpoint_stays(tmp_path):
    path = captions(tmp_path, 12)
    original = torch.save

    def full(thing: Any, file: Any, *arguments: Any, **options: Any) -> None:
        if "checkpoint-4" in str(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(thing, file, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(TrainingError, match=r"No space left.*checkpoint-2, is intact.*resume"):
            VisGLM.from_pretrained().finetune(path, output_dir=tmp_path / "out", **FAST)
    assert [folder.name for folder in checkpoints(tmp_path / "out")] == ["checkpoint-2"]
    assert not (tmp_path / "out/partial").exists()


@pytest.mark.skipif(os.name != "posix", reason="there is no such limit elsewhere")
def test_a_file_that_the_system_ends_early_is_told_too(tmp_path):
    """What torch says then has neither "disk" nor "write" in it: it is asked to write, and nothing stands in for it."""
    import resource

    settings = {**FAST, "rank": 16}
    path, limits = captions(tmp_path, 12), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # The adapter is smaller, what the optimizer remembers of it larger.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
        with pytest.raises(TrainingError, match=r"cannot be written to .*no earlier checkpoint.*resume"):
            VisGLM.from_pretrained().finetune(path, output_dir=tmp_path / "out", **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out/partial").exists() and not checkpoints(tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_asked(tmp_path, capsys):
    path = captions(tmp_path, 8)
    (tmp_path / "file").write_text("mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VisGLM, "batch", lambda *arguments, **options: pytest.fail("the model was asked"))
        assert main(["finetune", str(path), "--output-dir", str(tmp_path / "file"), *flags(FAST)]) == 1
        assert main(["finetune", str(path), "--output-dir", str(tmp_path / "file/out"), *flags(FAST)]) == 1
    told = capsys.readouterr().err
    assert told.count("cannot be written") == 2 and "choose another" in told and "Traceback" not in told
    assert (tmp_path / "file").read_text() == "mine"


def test_a_report_that_finds_no_room_says_that_the_result_is_whole(tmp_path):
    path, out, original = captions(tmp_path, 8), tmp_path / "out", Path.open

    def full(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name.startswith(".report.html"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(ConfigError, match=r"report\.html cannot be written \(No space left.*is whole"):
            VisGLM.from_pretrained().finetune(path, output_dir=out, **FAST)
    assert VisGLM.from_pretrained(out).chat(picture(1), "What?", max_new_tokens=2).text


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys):
    from visglm.training.trainer import VisGLMTrainer

    words = ["finetune", str(captions(tmp_path, 8)), "--output-dir", str(tmp_path / "out"), *flags(FAST)]
    original, num_calls = VisGLMTrainer.check_rows, 0

    def interrupted(self: Any, *arguments: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls in (1, 5):
            raise KeyboardInterrupt
        original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VisGLMTrainer, "check_rows", interrupted)
        assert main(words) == 130
        assert "--resume" not in capsys.readouterr().err  # there is nothing yet to go on from
        assert main(words) == 130
    told = capsys.readouterr().err
    assert "checkpoint-2 is whole" in told and "--resume" in told and "interrupted" in told
    assert main([*words, "--resume"]) == 0


def test_another_run_is_not_overwritten(tmp_path):
    path = captions(tmp_path, 8)
    folder = tmp_path / "out/checkpoint-2"
    folder.mkdir(parents=True)
    complete(folder)
    with pytest.raises(ConfigError, match="resume"):
        VisGLM.from_pretrained().finetune(path, output_dir=tmp_path / "out", **FAST)


@pytest.mark.parametrize(
    "value, cause", [(float("nan"), "learning rate"), (float("inf"), "learning rate"), (0.0, "heart")]
)
def test_a_loss_that_means_nothing_stops_the_run_and_names_the_rows(tmp_path, value, cause):
    from visglm.model import VisGLMForConditionalGeneration

    vlm, path = VisGLM.from_pretrained(), captions(tmp_path, 12)
    answer = vlm.chat(picture(1), "What?", max_new_tokens=4).text
    original = VisGLMForConditionalGeneration.forward
    num_calls = 0

    @functools.wraps(original)  # generate() looks at the signature
    def spoilt(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal num_calls
        output = original(self, *arguments, **options)
        if options.get("labels") is not None:
            num_calls += 1
            if num_calls == 3:
                output.loss = output.loss * 0 + value
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VisGLMForConditionalGeneration, "forward", spoilt)
        with pytest.raises(TrainingError, match=rf"(?s)at step 1\. .*{cause}.*train\.jsonl:\d+"):
            vlm.finetune(path, output_dir=tmp_path / "out", **FAST)
    assert vlm.chat(picture(1), "What?", max_new_tokens=4).text == answer


def test_held_out_rows_are_never_the_training_file(tmp_path):
    path = captions(tmp_path, 8)
    with pytest.raises(ConfigError, match="eval_data is the file to train on"):
        VisGLM.from_pretrained().finetune(path, output_dir=tmp_path / "out", eval_data=str(path), **FAST)


def test_too_many_bad_rows_stop_before_training(tmp_path):
    path = write_lines(tmp_path / "bad.jsonl", [{"image": "no.png", "caption": "A cat."}] * 3)
    with pytest.raises(DataError, match=r"(?s)3 of 3 rows.*no\.png"):
        VisGLM.from_pretrained().finetune(path, output_dir=tmp_path / "out", **FAST)


def test_what_does_not_fit_is_refused_before_training(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visglm.training.run.available_memory", lambda device: 1000)
        with pytest.raises(TrainingError, match="GiB are free"):
            VisGLM.from_pretrained().finetune(captions(tmp_path, 8), output_dir=tmp_path / "out", **FAST)


def test_the_longest_example_is_tried_as_training_will_see_it(tmp_path, monkeypatch):
    seen = []

    def attempt(model, *rest):
        seen.append({module.gradient_checkpointing for module in model.model.text.layers})
        raise TrainingError("enough")

    monkeypatch.setattr("visglm.training.run.try_longest", attempt)
    vlm = VisGLM.from_pretrained()
    with pytest.raises(TrainingError, match="enough"):
        vlm.finetune(captions(tmp_path, 8), output_dir=tmp_path / "out", gradient_checkpointing=True, **FAST)
    assert seen == [{True}]


def test_streams_need_an_end_and_then_train(tmp_path, monkeypatch):
    import datasets

    rows = [{"image": picture(number), "caption": f"Disc {number}."} for number in range(80)]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    monkeypatch.setattr("visglm.training.plan.NUM_STREAM_HELD_OUT", 2)
    vlm = VisGLM.from_pretrained()
    with pytest.raises(ConfigError, match="max_steps"):
        vlm.finetune(stream, output_dir=tmp_path / "a", **{**FAST, "max_steps": None})
    report = vlm.finetune(stream, output_dir=tmp_path / "b", **FAST)
    assert losses(report)[-1][0] == 4


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"lerning_rate": 1e-3}, "did you mean 'learning_rate'"),
        ({"learning_rate": 5}, "learning_rate must be between"),
        ({"batch_size": 0}, "batch_size must be between"),
        ({"epochs": 0}, "epochs must be between"),
        ({"held_out": 0.9}, "held_out must be between"),
        ({"precision": "int3"}, "precision must be one of"),
        ({"replay_data": "a.jsonl"}, "replay_data needs replay"),
        ({"method": "magic"}, "no method 'magic'"),
        ({"towers": "eyes"}, "towers are"),
        ({"prompt": " "}, "prompt must be a question"),
    ],
)
def test_wrong_settings_are_told(tmp_path, settings, problem):
    with pytest.raises(ConfigError, match=problem):
        VisGLM.from_pretrained().finetune([], output_dir=tmp_path / "out", **settings)


def test_recipes_reject_what_is_no_setting(tmp_path):
    (tmp_path / "a.yaml").write_text("method: lora\nlerning_rate: 1\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: .*did you mean"):
        read_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_are_valid(path):
    recipe = {name: value for name, value in read_recipe(path).items() if name not in ("data", "model")}
    assert FinetuneArguments(**recipe).method == path.stem.split("-")[0]


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: path.name)
def test_shipped_configurations_of_accelerate_mean_what_they_say(path):
    """Read as `accelerate launch` reads them: a key or a kind that it does not know is an error."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}[path.name.split(".")[0]]
    assert (config.distributed_type.value, config.mixed_precision, config.num_machines) == (kind, "bf16", 1)
    if kind == "DEEPSPEED":
        assert f"zero{config.deepspeed_config['zero_stage']}" in path.name
