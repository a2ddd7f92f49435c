"""What `model` may say: the base and its adapters by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..chat import VisGLM
from ..errors import ConfigError
from .errors import Refusal

TINY = "visglm-tiny"


class Names:
    """The models that are served: name → adapter of the network, None for the base alone.

    Args:
        vlm: the model. name: what it is served as, the adapter it was loaded with included; by default its folder's.
        adapters: name → folder or hub id of adapters beside it.

    Raises:
        ConfigError: two have one name.
    """

    def __init__(self, vlm: VisGLM, name: str | None = None, adapters: Mapping[str, str] | None = None):
        own = vlm.adapters.active
        folder = Path(vlm.model.config._name_or_path or TINY).name or TINY
        self.default = name or folder
        self._adapters: dict[str, str | None] = {self.default: own}
        for other, where in (adapters or {}).items():
            if other in self._adapters:
                raise ConfigError(f"two models would be called {other!r}. Give one another name.")
            vlm.load_adapter(where, other)
            self._adapters[other] = other
        vlm.use_adapter(own)

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)

    def adapter(self, name: str | None) -> str | None:
        """What is to be used where `model` says this; None stands for the first.

        Raises:
            Refusal: there is none of that name.
        """
        wanted = self.default if name is None else name
        if wanted not in self._adapters:
            raise Refusal(
                404, f"There is no such model here. There are: {', '.join(self)}.", "model_not_found", "model"
            )
        return self._adapters[wanted]
