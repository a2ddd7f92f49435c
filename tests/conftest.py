"""What holds for every test: no network, one thread per process."""

from __future__ import annotations

import os

# Before any test module imports torch or transformers, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The networks here are tiny, and several test processes share the cores.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import errno
import gc
import ipaddress
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.serve.process import Running
    from visglm import RemoteVisGLM


def pytest_collection_finish() -> None:
    """What modules and tests are made of stays until the end: the garbage collector need not look through it.

    Thousands of collected tests and torch are a million objects, which every pass (a Trainer asks for two) looked at.
    """
    gc.collect()
    gc.freeze()


def is_address(host: object) -> bool:
    try:
        ipaddress.ip_address(str(host))
    except ValueError:
        return False
    return True


def stays_here(sock: socket.socket, address: Any) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = address[0]
    return host in ("", "localhost") or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def loopback_only(method: Callable[..., Any]) -> Callable[..., Any]:
    """The socket method, for which every address but this machine's own is out of reach."""

    def guarded(self: socket.socket, *args: Any) -> Any:
        address = args[-1]
        if not stays_here(self, address):
            raise OSError(errno.ENETUNREACH, f"tests run offline, and this one tried to reach {address}")
        return method(self, *args)

    return guarded


def look_up_offline(look_up: Callable[..., Any]) -> Callable[..., Any]:
    """`getaddrinfo`, which without a network knows addresses and this machine's own name only."""

    def guarded(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host in (None, "", "localhost") or is_address(host):
            return look_up(host, *args, **kwargs)
        raise socket.gaierror(socket.EAI_AGAIN, f"tests run offline, and this one looked up {host!r}")

    return guarded


@pytest.fixture(scope="session", autouse=True)
def unplugged() -> Iterator[None]:
    """Pull the network cable: what connects elsewhere fails as it does on a machine without network."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, loopback_only(getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", look_up_offline(socket.getaddrinfo))
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """One `visglm serve` of the embedded model, in a process of its own, for whoever asks one."""
    from tests.serve.process import running

    with running() as server:
        yield server


@pytest.fixture(scope="session")
def remote(server: Running) -> RemoteVisGLM:
    """A client of that server."""
    from tests.serve.knocking import KEY
    from visglm import RemoteVisGLM

    return RemoteVisGLM(f"http://127.0.0.1:{server.port}", KEY)
