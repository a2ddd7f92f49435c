"""What a run tells transformers' Trainer, and what it takes from its hands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.adapters.taught import golden
from visglm.recipe import FinetuneArguments
from visglm.training.saving import checkpoints
from visglm.training.schedule import training_arguments
from visglm.training.trainer import VisGLMTrainer

from .samples import captions

QUICK: dict[str, Any] = {
    "batch_size": 2, "num_workers": 0, "report_to": "none", "accumulation": 1, "num_samples": 0, "replay": 0.0,
}  # fmt: skip


def test_each_tower_learns_by_its_own_rate_and_matrices_alone_decay(tmp_path, monkeypatch):
    original, groups = VisGLMTrainer.create_optimizer, []

    def spy(self: Any, *arguments: Any) -> Any:
        optimizer = original(self, *arguments)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in optimizer.param_groups:
            groups.extend((names[id(one)], one.ndim, group["lr"], group["weight_decay"]) for one in group["params"])
        return optimizer

    monkeypatch.setattr(VisGLMTrainer, "create_optimizer", spy)
    rates = {"vision_rate": 1e-5, "qformer_rate": 2e-5, "learning_rate": 3e-5}
    settings = {**QUICK, **rates, "weight_decay": 0.2, "max_steps": 1, "held_out": 0.0}
    golden().finetune(captions(tmp_path, 4), method="full", output_dir=tmp_path / "run", **settings)
    assert {ndim > 1 for _, ndim, *_ in groups} == {True, False}
    for name, ndim, rate, decay in groups:
        vit = name.startswith("model.vision.vit.")
        assert rate == (1e-5 if vit else 2e-5 if name.startswith("model.vision.") else 3e-5), name
        assert decay == (0.2 if ndim == 2 else 0.0), name


def test_a_run_without_a_better_loss_ends_and_its_best_checkpoint_stays(tmp_path):
    """By so small a rate no weight changes: the first held-out loss is the best one."""
    settings = {**QUICK, "learning_rate": 1e-12, "max_steps": 9, "every": 1, "patience": 2, "keep": 1, "held_out": 0.5}
    report = golden().finetune(captions(tmp_path, 8), output_dir=tmp_path / "run", **settings)
    assert report.best["step"] == 1
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["checkpoint-1", "checkpoint-3"]


def test_the_rate_rises_and_falls(tmp_path):
    settings = {**QUICK, "learning_rate": 1e-3, "max_steps": 8, "warmup": 0.5, "held_out": 0.0}
    report = golden().finetune(captions(tmp_path, 8), output_dir=tmp_path / "run", **settings)
    rates = [row["learning_rate"] for row in report.history if "loss" in row]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < peak < 7 and max(rates) == pytest.approx(1e-3) and rates[-1] < 2e-4


@pytest.mark.parametrize(
    "setting, value, theirs",
    [
        ("clip", 0.3, "max_grad_norm"),
        ("accumulation", 5, "gradient_accumulation_steps"),
        ("batch_size", 7, "per_device_train_batch_size"),
        ("batch_size", 7, "per_device_eval_batch_size"),
        ("num_workers", 3, "dataloader_num_workers"),
        ("keep", 6, "save_total_limit"),
        ("seed", 11, "seed"),
        ("seed", 11, "data_seed"),
        ("weight_decay", 0.7, "weight_decay"),
    ],
)
def test_settings_arrive(tmp_path: Path, setting, value, theirs):
    settings = FinetuneArguments(output_dir=str(tmp_path), **{setting: value}).for_size(1000)
    found = training_arguments(
        settings, golden().model.config, num_steps=10, every=2, has_held_out=True, precision="float32", is_on_cpu=True
    )
    assert getattr(found, theirs) == value
