from __future__ import annotations

from pathlib import Path

import pytest

from tests.families.made import MADE, Reference, load, make, make_reader
from visglm import VisGLM


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each family."""
    return {family: make(family, tmp_path_factory.mktemp(family) / family) for family in MADE}


@pytest.fixture(scope="session")
def models(folders) -> dict[str, VisGLM]:
    return {family: load(folder) for family, folder in folders.items()}


@pytest.fixture(scope="session", params=MADE)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def folder(family, folders) -> Path:
    return folders[family]


@pytest.fixture(scope="session")
def reference(family, folder) -> Reference:
    return Reference(family, folder)


@pytest.fixture(scope="session")
def vlm(family, models) -> VisGLM:
    return models[family]


@pytest.fixture(scope="session")
def reader(folders, tmp_path_factory) -> Path:
    """A checkpoint of GLM-OCR's class that has learnt three pages by heart: `made.PAGES`."""
    return make_reader(folders["glm_ocr"], tmp_path_factory.mktemp("reader"))
