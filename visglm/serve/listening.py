"""A place to listen at."""

from __future__ import annotations

import errno
import socket
import sys

from ..errors import ConfigError, printable


def bind(host: str, port: int) -> socket.socket:
    """A socket of this address; nobody is answered yet.

    Args:
        host: name or address, one of IPv6 with or without brackets.

    Raises:
        ConfigError: it cannot be had.
    """
    host = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        if sys.platform != "win32":  # where it would let two servers have one port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        return sock
    except (OSError, OverflowError, UnicodeError) as error:
        raise taken(host, port, error) from None


def listen(sock: socket.socket, backlog: int) -> None:
    """Take connections from now on.

    Args:
        backlog: connections that the system holds while nobody has taken them.

    Raises:
        ConfigError: another one listens there since.
    """
    try:
        sock.listen(backlog)
    except OSError as error:
        host, port = sock.getsockname()[:2]
        raise taken(host, port, error) from None


def taken(host: str, port: int, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return ConfigError(f"{printable(host)} port {port} cannot be listened on ({reason}). {advice_for(error)}")


def advice_for(error: Exception) -> str:
    is_of_port = isinstance(error, OverflowError | PermissionError) or getattr(error, "errno", None) == errno.EADDRINUSE
    if is_of_port:
        return "Choose another --port, or end what has it."
    return "Give as --host an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them."
