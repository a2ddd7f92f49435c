"""The embedded model, with torch and without."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from visglm import VisGLM
from visglm.checkpoint import EMBEDDED_MODEL
from visglm.light import VisGLM as LightVisGLM


@pytest.fixture(scope="package")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained(device="cpu")


@pytest.fixture(scope="package")
def light() -> LightVisGLM:
    return LightVisGLM.from_pretrained()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the embedded model, to do harm to."""
    return shutil.copytree(EMBEDDED_MODEL, tmp_path / "tiny")
