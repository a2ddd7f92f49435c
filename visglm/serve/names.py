"""What `model` may say: the base and its adapters by name, and who may use the network while it is one of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
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


class Switch:
    """Lets requests use the network, first come first served, those of one adapter together.

    The network is one of its adapters at a time: who wants another one waits until the answers before have ended, and
    whoever comes later waits behind. Not for several threads: all of it happens in the event loop.
    """

    def __init__(self, vlm: VisGLM):
        self._vlm = vlm
        self._inside = 0
        self._line: deque[tuple[str | None, asyncio.Future[None]]] = deque()
        self._change: asyncio.Future[None] | None = None

    @asynccontextmanager
    async def using(self, adapter: str | None) -> AsyncIterator[None]:
        """The network is the base with `adapter` inside the `with`."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((adapter, place))
        self._go_on()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._inside -= 1  # was let in at this very moment
            self._go_on()
            raise
        try:
            yield
        finally:
            self._inside -= 1
            self._go_on()

    def _go_on(self) -> None:
        while self._line and self._change is None:
            adapter, place = self._line[0]
            if place.done():  # left
                self._line.popleft()
            elif adapter == self._vlm.adapters.active:
                self._line.popleft()
                self._inside += 1
                place.set_result(None)
            elif self._inside:
                return
            else:
                self._change = asyncio.ensure_future(asyncio.to_thread(self._vlm.use_adapter, adapter))
                self._change.add_done_callback(self._changed)

    def _changed(self, change: asyncio.Future[None]) -> None:
        self._change = None
        error = None if change.cancelled() else change.exception()
        if (change.cancelled() or error) and self._line:
            _, place = self._line.popleft()
            if not place.done():
                place.set_exception(error or RuntimeError("the change of adapters was cancelled"))
        self._go_on()
