"""One server for all clients."""

from __future__ import annotations

import pytest

from tests.serve.process import Running, running


@pytest.fixture(scope="package")
def server() -> Running:
    with running() as server:
        yield server
        assert "failed" not in server.log and "Traceback" not in server.log, server.log


@pytest.fixture(scope="package")
def url(server) -> str:
    return f"http://127.0.0.1:{server.port}"
