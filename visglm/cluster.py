"""Ray: starting it on this machine or joining a cluster, and the model that its processes load each for itself."""

from __future__ import annotations

import logging
import os
import re
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, EngineError, VisGLMError, printable, require, shorten

if TYPE_CHECKING:
    from .chat import VisGLM

LOCAL = "local"
# Of a model: names of folders, which other processes may start from another one.
PATHS = ("name_or_path", "tokenizer", "base")


@dataclass(frozen=True)
class Recipe:
    """A model that is loaded elsewhere.

    Args:
        options: as the keyword arguments of `VisGLM.from_pretrained`; folders as whole paths.
    """

    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Recipe:
        return cls({name: whole(value) if name in PATHS else value for name, value in options.items()})

    def load(self) -> VisGLM:
        from .chat import VisGLM

        return VisGLM.from_pretrained(**self.options)


def whole(path: Any) -> Any:
    """A path of this machine from its root on; a hub id as it is."""
    return os.path.abspath(path) if isinstance(path, str) and os.path.exists(path) else path


@dataclass(frozen=True)
class Share:
    """What one process of several may take, as Ray counts it."""

    num_cpus: float
    num_gpus: float


@contextmanager
def joined(address: str, num_processes: int) -> Iterator[Share]:
    """Ray, inside the `with`: on this machine alone for "local", else the cluster at this address. Who talks to it
    needs its token, unless RAY_AUTH_MODE says otherwise.

    Args:
        num_processes: models that are loaded side by side, at the most.

    Raises:
        ConfigError: there is no such cluster, or this machine cannot hold so many.
        MissingDependencyError: the extra "ray" is not installed.
    """
    # Its ports are open on every interface, and whoever reaches them could run anything.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address == LOCAL and os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # it would tell lines that differ in numbers alone once, if at all
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its future default, about which it would warn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray = require("ray", "ray")
    cpus = max(1, (os.cpu_count() or 1) // num_processes)
    options: dict[str, Any] = {"include_dashboard": False, "num_cpus": cpus * num_processes + 1}  # one for Ray's own
    try:
        ray.init(
            address=address, log_to_driver=True, logging_level=logging.WARNING, **(options if address == LOCAL else {})
        )
    except Exception as error:  # each version has its own
        reason = shorten(str(error).strip() or type(error).__name__)
        raise ConfigError(
            f"there is no Ray at {printable(address)} that takes us ({reason}). "
            f"--ray {LOCAL} starts it on this machine; a cluster wants its address and RAY_AUTH_TOKEN."
        ) from None
    try:
        gpus = float(ray.cluster_resources().get("GPU", 0))
        if address == LOCAL and gpus and gpus < num_processes:
            raise ConfigError(f"each model takes a GPU, and there are {gpus:g} for {num_processes}. Take fewer.")
        yield Share(cpus if address == LOCAL else 1, 1 if gpus else 0)
    finally:
        ray.shutdown()


def own_error(error: BaseException) -> VisGLMError:
    """What failed in another process, as this one's error: ours with its words, others by their names."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, VisGLMError):
        return cause
    told = re.findall(r"^(?:visglm\.errors\.)(\w+): (.+(?:\n  - .+)*)", str(error), re.MULTILINE)
    if told:
        return EngineError(f"in another process: {printable(told[-1][1])}")
    lines = [line for line in str(error).splitlines() if line.strip()]
    return EngineError(f"a process of Ray failed: {shorten(lines[-1] if lines else type(error).__name__)}")
