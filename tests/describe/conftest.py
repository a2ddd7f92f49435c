from __future__ import annotations

import pytest

from visglm import VisGLM


@pytest.fixture(scope="package")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained(device="cpu")


@pytest.fixture
def loaded(vlm, monkeypatch) -> VisGLM:
    monkeypatch.setattr("visglm.cli.describe.load_model", lambda arguments: vlm)
    return vlm
