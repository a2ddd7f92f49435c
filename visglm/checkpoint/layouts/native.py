"""The native layout, as `save_pretrained` writes it: configuration, safetensors, tokenizer and processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from ...errors import ConfigError
from ...processor import VisGLMProcessor
from ...untrusted import told
from ..files import TensorInfo, WeightFiles, find_weights
from ..processing import read_processor
from ..settings import read_config
from ..source import Source

WEIGHTS = ("model", ".safetensors")


class NativeSource(Source):
    """A folder in the native layout."""

    format = "visglm"

    def __init__(self, path: Path, tokenizer: Path | None = None):
        if tokenizer is not None:
            raise ConfigError(
                f"tokenizer={str(tokenizer)!r} is for checkpoints that come without, and {path} has one. Leave it out."
            )
        with told(path, "the checkpoint"):
            super().__init__(path, read_config(path))
            files = find_weights(path, *WEIGHTS)
        self._files = WeightFiles([path / "".join(WEIGHTS)]) if files is None else files  # says that it is missing
        self.problems += self._files.problems

    def keys(self) -> Mapping[str, TensorInfo]:
        return self._files.infos

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return self._files.tensors()

    def processor(self) -> VisGLMProcessor:
        with told(self.path, "the processor"):
            return read_processor(self.path, self.config)

    def is_lost(self, name: str) -> bool:
        return self._files.is_lost(name)
