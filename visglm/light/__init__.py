"""Answers without torch: `from visglm.light import VisGLM`, then as with `visglm.VisGLM`.

It plays what `visglm export` writes, with NumPy, ONNX Runtime, Pillow and sentencepiece alone.
"""

from __future__ import annotations

from ..explanation import Explanation
from ..pictures import ImageLimits
from ..reply import History, Reply
from ..stream import ReplyStream
from .chat import VisGLM

__all__ = ["Explanation", "History", "ImageLimits", "Reply", "ReplyStream", "VisGLM"]
