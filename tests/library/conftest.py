"""What is written in pictures is read where the extra `ocr` is installed; here nothing depends on that, but what is
marked so."""

from __future__ import annotations

import pytest

from visglm.library import ocr


@pytest.fixture(autouse=True)
def without_ocr(monkeypatch, request):
    if request.node.get_closest_marker("ocr") is None:
        monkeypatch.setattr(ocr, "can_read", lambda: False)
