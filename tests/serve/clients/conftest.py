"""The one server, for all clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.process import Running


@pytest.fixture(scope="package")
def url(server: Running) -> Iterator[str]:
    yield f"http://127.0.0.1:{server.port}"
    assert "failed" not in server.log and "Traceback" not in server.log, server.log
