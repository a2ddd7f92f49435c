"""One embedded model for all commands, and pictures to ask about."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from visglm import VisGLM


@pytest.fixture(scope="package")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained(device="cpu")


@pytest.fixture
def loaded(vlm, monkeypatch) -> VisGLM:
    """Commands get this model instead of loading it again."""
    for command in ("chat", "describe", "evaluate"):
        monkeypatch.setattr(f"visglm.cli.{command}.load_model", lambda arguments: vlm)
    return vlm


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    paths = []
    for colour in ("red", "blue", "green"):
        paths.append(tmp_path / f"{colour}.png")
        Image.new("RGB", (60, 40), colour).save(paths[-1])
    return paths
