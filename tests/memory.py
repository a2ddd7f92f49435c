"""How much memory something takes at its height."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_memory(action: Callable[[], Any]) -> int:
    """How far memory rose above the start while the action ran, in bytes; Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before and is kept must not hide what is asked for now
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS

    def kib(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1])

    start = kib("VmRSS")
    action()
    return (kib("VmHWM") - start) * 1024
