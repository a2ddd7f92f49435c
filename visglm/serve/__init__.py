"""A model over HTTP, for every client that speaks OpenAI's protocol: the FastAPI application over the engine.

All that is behind these names stands on the extra `serve`. They are loaded when they are used: the command line shows
`Limits` in its help, before anything heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .application import create_app
    from .keys import Keys
    from .limits import Limits
    from .names import Names
    from .ray import Replicas
    from .service import Service
    from .settings import Settings

# Public name → the module that has it.
_MODULES = {
    "Keys": "keys", "Limits": "limits", "Names": "names", "Replicas": "ray", "Service": "service",
    "Settings": "settings",
    "create_app": "application",
}  # fmt: skip
__all__ = ["Keys", "Limits", "Names", "Replicas", "Service", "Settings", "create_app"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'visglm.serve' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
