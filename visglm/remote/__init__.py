"""A model that `visglm serve` has elsewhere, asked as `VisGLM` is."""

from __future__ import annotations

from .connection import VARIABLE
from .messages import RemoteHistory
from .model import RemoteVisGLM
from .streams import RemoteStream

__all__ = ["VARIABLE", "RemoteHistory", "RemoteStream", "RemoteVisGLM"]
