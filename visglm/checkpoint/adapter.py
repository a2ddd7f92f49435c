"""An adapter's folder as a checkpoint: a base, and what fine-tuning changed in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor
from transformers import GenerationConfig

from ..adapters import Delta
from ..processor import VisGLMProcessor
from ..untrusted import told
from .files import TensorInfo
from .processing import read_processor
from .source import Source


class AdapterSource(Source):
    """A base with a delta over it; its tensors are those of the base.

    Args:
        path: the adapter's folder.
    """

    def __init__(self, path: Path, delta: Delta, base: Source):
        super().__init__(base.path, base.config)
        self.path, self.base = path, base
        self.home, self.problems = base.home, base.problems
        self.format = f"adapter ({delta.method}) over {base.format}"
        self._delta = delta

    @property
    def weights_path(self) -> Path:
        return self.base.weights_path

    def keys(self) -> Mapping[str, TensorInfo]:
        return self.base.keys()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return self.base.tensors()

    def delta(self) -> Delta:
        return self._delta

    def processor(self) -> VisGLMProcessor:
        has_own = (self.path / "processor_config.json").is_file()  # PEFT alone writes none
        if not has_own:
            return self.base.processor()
        with told(self.path, "the processor"):
            return read_processor(self.path, self.config)

    def generation_config(self) -> GenerationConfig:
        return self.base.generation_config()

    def name_on_disk(self, name: str) -> str:
        return self.base.name_on_disk(name)

    def is_lost(self, name: str) -> bool:
        return self.base.is_lost(name)
