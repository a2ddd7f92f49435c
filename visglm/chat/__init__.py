"""`VisGLM`: load once, then ask about pictures: one answer, a stream of text, or many at a time."""

from __future__ import annotations

from .vlm import VisGLM

__all__ = ["VisGLM"]
