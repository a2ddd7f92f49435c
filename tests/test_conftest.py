"""The network guard of conftest.py: this machine is within reach, everything else is not."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest

from tests.web import serve


def test_loopback_is_within_reach() -> None:
    with serve() as web:
        url = web.page("/here", b"hello")
        for host in ("127.0.0.1", "localhost"):
            assert urllib.request.urlopen(url.replace("127.0.0.1", host), timeout=5).read() == b"hello"


# 192.0.2.0/24 and 2001:db8::/32 are reserved for documentation: nobody answers there, guard or not.
@pytest.mark.parametrize("family, host", [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")])
@pytest.mark.parametrize("call", ["connect", "connect_ex"])
def test_other_machines_are_not(family: socket.AddressFamily, host: str, call: str) -> None:
    with socket.socket(family) as sock, pytest.raises(OSError, match="tests run offline"):
        getattr(sock, call)((host, 80))


def test_no_datagram_leaves() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(OSError, match="tests run offline"):
        sock.sendto(b"hello", ("192.0.2.1", 53))


def test_no_name_is_looked_up() -> None:
    with pytest.raises(urllib.error.URLError, match="tests run offline"):
        urllib.request.urlopen("http://visglm.invalid/", timeout=5)
