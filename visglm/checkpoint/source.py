"""What every checkpoint looks like once it is opened, whatever its format."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig

from ..adapters import HERE, Delta, Home
from ..errors import ConfigError
from ..processor import VisGLMProcessor
from .files import TensorInfo
from .settings import read_generation


class Source(ABC):
    """A checkpoint as a lazy mapping of native names to tensors. Opening one reads no weights.

    Args:
        path: the folder.
        config: of the network, in native terms.

    Attributes:
        format: how people call the layout.
        problems: what is wrong with the files themselves, one line each.
        home: where it can be found again; `HERE`, which no other folder can name, for what is made as it is read.
    """

    format: str

    def __init__(self, path: Path, config: PreTrainedConfig):
        self.path = path
        self.config: Any = config
        self.config._name_or_path = str(path)
        self.problems: list[str] = []
        self.home = Home(HERE)

    @property
    def weights_path(self) -> Path:
        """The folder that holds the tensors."""
        return self.path

    @abstractmethod
    def keys(self) -> Mapping[str, TensorInfo]:
        """Native name → shape and dtype, without reading the weights."""

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """`(native name, tensor)`, file by file. A tensor may be a view of a file: copy it before the next."""

    @abstractmethod
    def processor(self) -> VisGLMProcessor:
        """Tokenizer and image processor.

        Raises:
            CheckpointError: a file they need is missing or is another model's.
        """

    def generation_config(self) -> GenerationConfig:
        """Settings of answers.

        Raises:
            CheckpointError: the folder's are damaged.
        """
        return read_generation(self.path, self.config)

    def delta(self) -> Delta | None:
        """What fine-tuning has put over these tensors, if it has."""
        return None

    def name_on_disk(self, name: str) -> str:
        """What the files call a native name."""
        return name

    def is_lost(self, name: str) -> bool:
        """Whether a native name that is missing may be in a file that is among the `problems`."""
        return False


def refuse_source(folder: str | Path, *places: str | Path) -> None:
    """Tell that a result would take the place of what it is made of.

    Args:
        folder: to write.
        places: folders that are read; a hub id is none.

    Raises:
        ConfigError: it is one of them.
    """
    target = os.path.realpath(Path(folder).expanduser())
    if any(os.path.isdir(place) and os.path.realpath(place) == target for place in places):
        raise ConfigError(
            f"{folder} holds what is to be read, and the result would take its place. Name another folder."
        )


def refuse_delta(source: Source) -> None:
    """Tell that fine-tuning's changes would be lost, where only the base's tensors are read.

    Raises:
        ConfigError: there are such changes.
    """
    delta = source.delta()
    if delta is None:
        return
    way_out = (
        "A P-Tuning prefix is no part of any weight: save_pretrained of the loaded model keeps both."
        if "prefix" in delta.by_kind()
        else f"Make one model of the two first: visglm merge {source.path} MERGED."
    )
    raise ConfigError(f"{source.path} holds an adapter over a base model, and would lose it. {way_out}")
