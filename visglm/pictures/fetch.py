"""An http(s) URL → the bytes behind it, from public addresses only and within limits.

Whoever can name a URL must not reach what only this machine can: the host name is looked up once, every
address found has to be public, and the connection goes to one of exactly these; each redirect starts over.
Proxies of the environment are not used, since they would look the name up themselves.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ..errors import ImageError
from .limits import check_num_bytes

CONNECTIONS: dict[str, type[http.client.HTTPConnection]] = {
    "http": http.client.HTTPConnection,
    "https": http.client.HTTPSConnection,
}
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK_SIZE = 2**16
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
# What Python's `is_global` lets through, in some versions at least.
NOT_PUBLIC = (
    ipaddress.ip_network("168.63.129.16/32"),  # metadata service of Azure
    ipaddress.ip_network("192.0.0.0/24"),  # protocol assignments, and the metadata service of Oracle
    ipaddress.ip_network("2002::/16"),  # 6to4, which could lead back to a private IPv4 address
    ipaddress.ip_network("3fff::/20"),  # documentation
)


def fetch(url: str, max_bytes: int, timeout: float, max_redirects: int, hosts: Collection[str] | None = None) -> bytes:
    """Download one file.

    Args:
        url: an http or https URL.
        max_bytes: largest size of the body, in bytes; more is refused while reading.
        timeout: longest time for everything but looking up the host name, in seconds.
        max_redirects: how many redirects are followed.
        hosts: names, in lower case, of the only hosts that are asked, redirects included; None for every public one.

    Raises:
        ImageError: the URL was refused, or the download failed; the message says which, not the URL.
    """
    deadline = time.monotonic() + timeout
    try:
        for _ in range(max_redirects + 1):
            parts = check_url(url)
            if hosts is not None and parts.hostname not in hosts:
                raise ImageError("its host is not among those that pictures may be fetched from.")
            body, location = _get(parts, max_bytes, deadline)
            if time.monotonic() >= deadline:
                raise TimeoutError  # the connection was cut, so that the body merely seems to end here
            if location is None:
                return body
            url = urljoin(url, location)
    except ImageError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise ImageError(f"the download took longer than {timeout:g} seconds.") from None
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ImageError(f"the download failed ({reason}). Is the host reachable from here?") from None
    raise ImageError(f"it redirects more than {max_redirects} times. Give the final URL.")


def check_url(url: str) -> SplitResult:
    """Split a URL whose parts every parser agrees on; raise ImageError for any other."""
    problem = "it is not a valid URL."
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme not in CONNECTIONS:
            problem = "only http:// and https:// URLs are fetched. Of a local file give the path, or put ./ in front."
        elif re.search(r"[\x00-\x20\x7f\\]", url):
            problem = "a URL cannot hold spaces, control characters or backslashes. Percent-encode them."
        elif "@" in parts.netloc:
            problem = "URLs with a user name are not fetched."
        elif parts.hostname and parts.port != 0:
            return parts
    raise ImageError(problem)


def read_all(read: Callable[[int], bytes], max_bytes: int) -> bytes:
    """Read to the end, never holding more than the limit and one chunk; raise ImageError beyond it."""
    chunks: list[bytes] = []
    num_bytes = 0
    while chunk := read(CHUNK_SIZE):
        if not isinstance(chunk, bytes):
            raise ImageError('it yields text, not bytes. Open it with mode "rb".')
        num_bytes += len(chunk)
        check_num_bytes(num_bytes, max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def is_public_address(address: str) -> bool:
    """Whether a host on the open internet may live at this IPv4 or IPv6 address."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    if isinstance(ip, ipaddress.IPv6Address) and ip not in GLOBAL_IPV6:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in NOT_PUBLIC)


def _get(parts: SplitResult, max_bytes: int, deadline: float) -> tuple[bytes, str | None]:
    """One request → its body and None, or nothing and where it redirects to."""
    target = quote((parts.path or "/") + (parts.query and f"?{parts.query}"), safe="/?%:@!$&'()*+,;=~[]")
    with _connection(parts, deadline) as connection:
        connection.request("GET", target, headers={"User-Agent": "visglm"})
        response = connection.getresponse()
        location = response.getheader("Location")
        if response.status in REDIRECTS and location:
            return b"", location
        if response.status != 200:
            raise ImageError(f"the server answered with status {response.status}.")
        check_num_bytes(response.length or 0, max_bytes)
        return read_all(response.read, max_bytes), None


@contextmanager
def _connection(parts: SplitResult, deadline: float) -> Iterator[http.client.HTTPConnection]:
    """A connection to a checked address, cut at the deadline however slowly the server dribbles."""
    connection_class = CONNECTIONS[parts.scheme]
    host = (parts.hostname or "").encode("idna").decode("ascii")
    port = parts.port or connection_class.default_port
    connection = connection_class(host, port)
    connection.auto_open = 0  # or else it would look the name up itself after a lost connection
    sock = _connect(host, port, deadline)
    twin = sock.dup()  # still reaches the connection once TLS has taken `sock` over
    alarm = threading.Timer(deadline - time.monotonic(), _hang_up, [twin])
    alarm.daemon = True
    alarm.start()
    try:
        if parts.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        connection.sock = sock
        yield connection
    finally:
        alarm.cancel()
        for resource in (connection, sock, twin):
            resource.close()


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):  # it ended by itself a moment ago
        sock.shutdown(socket.SHUT_RDWR)


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    """Look the name up once and connect to what was found, unless any of it is not public."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not all(is_public_address(str(address[0])) for *_, address in found):
        raise ImageError("its host has a private, local or reserved address. Only public hosts are fetched from.")
    problem = OSError()
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            problem = error
    raise problem
