"""The self-test passes on what was recorded, and finds wrong weights and a wrong file."""

from __future__ import annotations

import json

import pytest
import torch

from visglm import VisGLM, selftest
from visglm.errors import CheckpointError
from visglm.selftest import PICTURE, observe, self_test


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained(device="cpu", dtype="float32")


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """What the embedded model does now, as it would be recorded before a release."""
    monkeypatch.setattr(selftest, "EXPECTED", tmp_path / "expected.json")
    selftest.record()
    return tmp_path / "expected.json"


def test_what_was_recorded_passes(vlm, recorded):
    findings = self_test(vlm, recorded)
    assert [finding.subject for finding in findings] == ["weights", "logits", "answer"]
    assert all(finding.good for finding in findings), findings


def test_what_is_recorded_is_what_chat_answers(vlm, recorded):
    wanted = json.loads(recorded.read_text("utf-8"))
    assert wanted["answer"] == vlm.chat(PICTURE, wanted["question"], max_new_tokens=24).text
    assert len(wanted["logits"]) == 8


def test_wrong_weights_are_found(recorded):
    """Two tensors exchanged, as under wrong names: the model loads, and speaks."""
    wrong = VisGLM.from_pretrained(device="cpu", dtype="float32")
    first, second = wrong.model.lm_head.weight, wrong.model.get_input_embeddings().weight
    with torch.no_grad():
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)
    findings = {finding.subject: finding.good for finding in self_test(wrong, recorded)}
    assert findings["weights"] and not findings["logits"]


def test_another_file_and_another_answer_are_found(vlm, recorded):
    wanted = json.loads(recorded.read_text("utf-8")) | {"weights_sha256": "0", "answer": "It is a dog."}
    recorded.write_text(json.dumps(wanted), encoding="utf-8")
    findings = {finding.subject: finding for finding in self_test(vlm, recorded)}
    assert [finding.good for finding in findings.values()] == [False, True, False]
    assert "expected: It is a dog." in findings["answer"].found


def test_without_a_record_there_is_no_test(vlm, tmp_path):
    assert observe(vlm)["answer"]
    with pytest.raises(CheckpointError, match="expected.json"):
        self_test(vlm, tmp_path / "expected.json")


def test_the_embedded_model_passes(vlm):
    findings = self_test(vlm)
    assert all(finding.good for finding in findings), findings
