"""`Adapters`: the one owner of what is attached to a network, and of where its base can be found again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import CheckpointError, ConfigError
from ..quant import use_products
from .delta import HERE, Delta, Home
from .fingerprint import fingerprint_of
from .names import base_tensors, lora_layers
from .parts import KINDS, Lora, Part, Prefix, Whole

DEFAULT_NAME = "default"  # of the adapter that a model was loaded with, or was just taught

MERGED_IN_ORDER = (Prefix, Lora, Whole)  # what may refuse comes first
# Makes the part that a method trains, in the network and on. Arguments: network, key.
Make = Callable[[PreTrainedModel, str], Part]


@dataclass
class Attached:
    """An adapter that is part of a network: how it was trained, and what it is made of."""

    method: str
    parts: list[Part] = field(default_factory=list)


class Adapters:
    """What is attached to a network, and over which base.

    Nothing is done by halves: what fails leaves network and adapters as they were.

    Args:
        network: that the adapters change. It stays the model it is; they are put into it in place.
        home: where the base was read from; None where no folder or hub id holds it.

    Raises:
        ConfigError: somebody else has put adapters into this network.
    """

    def __init__(self, network: PreTrainedModel, home: Home | None = None):
        if lora_layers(network):
            raise ConfigError(
                "PEFT has wrapped layers of this network already. Merge them into it (merge_and_unload), or load the "
                "adapter's folder with VisGLM.from_pretrained or load_adapter."
            )
        self.network = network
        self.active: str | None = None
        self._attached: dict[str, Attached] = {}
        self._home = home
        self._numbers = fingerprint_of(base_tensors(network)) if home is not None else ""  # as they came from there
        self._num_keys = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that are attached."""
        return tuple(self._attached)

    def has(self, kind: str) -> bool:
        """Whether the adapter in use has a part of this kind, a key of `KINDS`."""
        return any(part.kind == kind for part in self._parts(self.active))

    # --- the base ---

    def base(self) -> dict[str, Tensor]:
        """The base's tensors by name, whatever is in use over them: what a checkpoint of it holds."""
        tensors = base_tensors(self.network)
        for attached in self._attached.values():
            for part in attached.parts:
                if isinstance(part, Whole):
                    tensors |= part.base
        return tensors

    @property
    def home(self) -> Home | None:
        """Where the base can be found again; None once its numbers are no longer those that are found there."""
        if self._home is None or self._numbers != fingerprint_of(self.base()):
            return None
        return self._home

    @home.setter
    def home(self, home: Home | None) -> None:
        self._home = home
        self._numbers = fingerprint_of(self.base()) if home is not None else ""

    def fingerprint(self) -> str:
        """Of the base: as its files have it, or as it is in memory where no file does."""
        home = self.home
        return home.fingerprint if home is not None and home.fingerprint else fingerprint_of(self.base())

    # --- attaching and switching ---

    def attach(self, delta: Delta, name: str = DEFAULT_NAME, where: str | Path = "this adapter") -> None:
        """Put an adapter into the network, and use it.

        Args:
            where: it came from, for errors.

        Raises:
            CheckpointError: it does not fit this network, or belongs to another base; nothing was changed.
            ConfigError: there is one of that name already.
        """
        if not isinstance(name, str) or not name:
            raise ConfigError(f"an adapter's name is a string that is not empty; got {name!r}.")
        if name in self._attached:
            raise ConfigError(f"there is an adapter {name!r} already; choose another name.")
        problems = delta.problems(self.network)
        if not problems and delta.base.fingerprint not in (None, self.fingerprint()):
            problems = [f"it was trained over another base of the same shapes ({_called(delta.base)})"]
        if problems:
            raise CheckpointError(where, problems, "Nothing was changed. Load it over the model it was trained on.")
        key, parts, active = self._next_key(), [], self.active
        self.activate(None)  # PEFT switches on what it injects
        try:
            for kind, tensors in delta.by_kind().items():
                parts.append(KINDS[kind].attach(self.network, key, tensors, delta.alphas))
        except BaseException:
            for part in parts:
                part.remove()
            self.activate(active)
            raise
        self._attached[name] = Attached(delta.method, parts)
        self.activate(name)

    @torch.no_grad()
    def activate(self, name: str | None) -> None:
        """Use one adapter, or with None the base as it is.

        Raises:
            ConfigError: there is none of that name.
        """
        if name is not None and name not in self._attached:
            raise ConfigError(f"there is no adapter {name!r}; there are: {', '.join(self._attached) or 'none'}.")
        if name == self.active:
            return
        for part in self._parts(self.active):
            part.off()
        self.active = None
        for part in self._parts(name):
            part.on()
        self.active = name

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base as it is, inside a `with`."""
        name = self.active
        self.activate(None)
        try:
            yield
        finally:
            self.activate(name)

    def remove(self, name: str) -> None:
        """Take an adapter out of the network.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self._attached:
            raise ConfigError(f"there is no adapter {name!r}; there are: {', '.join(self._attached) or 'none'}.")
        if name == self.active:
            self.activate(None)
        for part in self._attached.pop(name).parts:
            part.remove()

    @torch.no_grad()
    def merge(self) -> None:
        """Make the adapter in use part of the base, and forget the others.

        Raises:
            ConfigError: no adapter is in use, or it cannot be merged; nothing was changed.
        """
        if self.active is None:
            raise ConfigError("no adapter is in use, so there is nothing to merge.")
        for part in sorted(self._parts(self.active), key=lambda part: MERGED_IN_ORDER.index(type(part))):
            part.merge()
        del self._attached[self.active]
        self.active = None
        for name in self.names:
            self.remove(name)

    # --- training ---

    def learn(self, method: str, make: Make) -> None:
        """Attach a new adapter that is to be trained, in use and in float32; nothing else learns.

        Raises:
            ConfigError: there is an adapter already, or `make` finds nothing to train.
        """
        if self._attached:
            raise ConfigError(
                f"this model has an adapter ({', '.join(self.names)}). Call merge() first, or load the base model."
            )
        self.network.requires_grad_(False)
        part = make(self.network, self._next_key())
        self._attached[DEFAULT_NAME] = Attached(method, [part])
        self.active = DEFAULT_NAME
        part.learn()
        use_products(self.network, False)

    @property
    def learning(self) -> Part:
        """The part that is being trained."""
        return self._attached[DEFAULT_NAME].parts[0]

    def forget_base(self) -> None:
        """Give up what `withdraw` would bring back: in sharded training there is no room for it, and no way back."""
        self.learning.forget_base()

    def settle(self, keeps_base: bool) -> None:
        """After training: nothing learns any more, and the network answers with what it learnt, in its own dtype.

        Args:
            keeps_base: the result stays an adapter that can be switched off; else it is the base from now on.
        """
        with torch.no_grad():
            self.learning.rest()
        if not keeps_base:
            self.merge()
        self._answer_again()

    def withdraw(self) -> None:
        """After a run that failed: as it was before."""
        if not self.learning.can_go_back:
            return
        with torch.no_grad():
            self.learning.rest()
        self.remove(DEFAULT_NAME)
        self._answer_again()

    def _answer_again(self) -> None:
        self.network.requires_grad_(False)
        self.network.eval()
        use_products(self.network, True)

    # --- saving ---

    def delta(self, base: Home, state_dict: Mapping[str, Tensor] | None = None) -> Delta:
        """The adapter in use, to be written.

        Args:
            base: where its base is.
            state_dict: the network's tensors, where it holds only a part of them itself (sharded training).

        Raises:
            ConfigError: none is in use.
        """
        if self.active is None:
            raise ConfigError("no adapter is in use, so there is none to save.")
        attached = self._attached[self.active]
        tensors: dict[str, Tensor] = {}
        alphas: dict[str, float] = {}
        for part in attached.parts:
            if isinstance(part, Lora):
                alphas |= part.alphas
            if state_dict is None:
                tensors |= part.tensors()
            else:
                tensors |= {name: state_dict[live] for name, live in part.live_names().items()}
        return Delta(attached.method, tensors, base, alphas, getattr(self.network.config, "quantization", None))

    def _parts(self, name: str | None) -> list[Part]:
        return self._attached[name].parts if name is not None else []

    def _next_key(self) -> str:
        """By which PEFT tells adapters apart: free of what a user may write, dots and names of modules."""
        self._num_keys += 1
        return f"adapter{self._num_keys}"


def _called(base: Home) -> str:
    return "the one beside it" if base.name == HERE else base.name
