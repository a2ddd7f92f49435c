"""One embedded model for all, and a client that asks it without a key."""

from __future__ import annotations

import pytest

from tests.serve.knocking import client_of, service_for
from visglm import VisGLM


@pytest.fixture(scope="package")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained(device="cpu")


@pytest.fixture(scope="package")
def client(vlm):
    with client_of(service_for(vlm)) as client:
        yield client
