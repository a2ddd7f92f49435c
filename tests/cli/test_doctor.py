"""`visglm doctor`: what it looks at, and what a failed check does to the exit status."""

from __future__ import annotations

from importlib import metadata

import torch

from tests.tiny import GOLDEN_HF, GOLDEN_SAT
from visglm.cli import doctor, main
from visglm.cli.doctor import FAILED, check_devices, check_packages, check_python
from visglm.selftest import Finding


def test_a_report_without_failures_is_status_0(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", (check_python, check_packages, check_devices))
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    assert torch.__version__.partition("+")[0] in captured.out
    assert torch.backends.cpu.get_cpu_capability() in captured.out
    assert "FAIL" not in captured.out
    assert captured.err == ""


def test_a_failed_check_shows_and_is_the_status(monkeypatch, capsys):
    checks = (lambda: iter([Finding("logits", "far away", False), Finding("answer", "It is a cat.")]), check_python)
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert main(["doctor"]) == FAILED
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split(maxsplit=2) == ["FAIL", "logits", "far away"]
    assert "1 check failed: logits" in captured.err


def test_the_embedded_model_is_tested_in_float32(vlm, monkeypatch):
    seen = []
    monkeypatch.setattr(doctor, "self_test", lambda vlm: seen.append(vlm.model.dtype) or [Finding("answer", "right")])
    assert list(doctor.check_answer()) == [Finding("answer", "right")]
    assert seen == [torch.float32]


def test_missing_packages_are_named_with_the_way_to_get_them(monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name in ("timm", "peft") else "1.0")
    findings = {finding.subject: finding for finding in check_packages()}
    assert not findings["timm"].good and "pip install timm" in findings["timm"].found
    assert findings["torch"] == Finding("torch", "1.0")
    assert findings["extra finetune"] == Finding(
        "extra finetune", "lacks peft; to have it: pip install 'visglm[finetune]'"
    )
    assert findings["extra demo"].found == "installed"
    assert "extra dev" not in findings


def test_a_folder_that_is_not_installed_is_said_to_be_one(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    [finding] = check_packages()
    assert finding.good and "pip install -e ." in finding.found


def test_a_checkpoint_is_checked(tmp_path, capsys):
    assert main(["doctor", str(GOLDEN_HF)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("hf-legacy", "sha256", "all finite", "the same with and without cache"))
    assert main(["doctor", str(GOLDEN_SAT)]) == 3
    assert "ice_text.model is not in" in capsys.readouterr().out
