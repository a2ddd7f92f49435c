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
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ..errors import FetchError, printable

CONNECTIONS: dict[str, type[http.client.HTTPConnection]] = {
    "http": http.client.HTTPConnection,
    "https": http.client.HTTPSConnection,
}
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK_SIZE = 2**16
USER_AGENT = "visglm"
# How an answer may be packed, though that is not asked for → the window bits of zlib.
PACKINGS: dict[str, int | None] = {"identity": None, "": None, "gzip": 31, "x-gzip": 31, "deflate": 47}
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
# What Python's `is_global` lets through, in some versions at least.
NOT_PUBLIC = (
    ipaddress.ip_network("168.63.129.16/32"),  # metadata service of Azure
    ipaddress.ip_network("192.0.0.0/24"),  # protocol assignments, and the metadata service of Oracle
    ipaddress.ip_network("2002::/16"),  # 6to4, which could lead back to a private IPv4 address
    ipaddress.ip_network("3fff::/20"),  # documentation
)


class Fetched(NamedTuple):
    """What an address gave.

    Args:
        url: the address in the end, behind all redirects.
        body: its bytes, unpacked.
        kind: its Content-Type, as the server wrote it.
    """

    url: str
    body: bytes
    kind: str


def fetch(url: str, max_bytes: int, timeout: float, max_redirects: int, hosts: Collection[str] | None = None) -> bytes:
    """Download one file.

    Args:
        url: an http or https URL.
        max_bytes: largest size of the body, in bytes; more is refused while reading.
        timeout: longest time for everything but looking up the host name, in seconds.
        max_redirects: how many redirects are followed.
        hosts: names, in lower case, of the only hosts that are asked, redirects included; None for every public one.

    Raises:
        FetchError: the URL was refused, or the download failed; the message says which, not the URL.
    """

    def check(parts: SplitResult) -> None:
        if hosts is not None and parts.hostname not in hosts:
            raise FetchError("its host is not among those that pictures may be fetched from.")

    return get(url, max_bytes, timeout, max_redirects, before=check).body


def get(
    url: str,
    max_bytes: int,
    timeout: float,
    max_redirects: int,
    *,
    before: Callable[[SplitResult], None] = lambda parts: None,
    headers: Mapping[str, str] | None = None,
    data: bytes | None = None,
    may_be_inside: bool = False,
) -> Fetched:
    """`fetch`, with all there is to say about a request.

    Args:
        before: is shown every address, those of redirects too, before it is connected to; what it raises ends it.
        headers: of the request.
        data: is sent by POST; None for GET.
        may_be_inside: the address is the operator's own word and no visitor's or page's: it may lead to this machine
            and its network. Give no redirects then.

    Raises:
        FetchError: as `fetch`.
    """
    deadline = time.monotonic() + timeout
    try:
        for _ in range(max_redirects + 1):
            parts = check_url(url)
            before(parts)
            found, location = _ask(url, parts, max_bytes, deadline, headers or {}, data, may_be_inside)
            if time.monotonic() >= deadline:
                raise TimeoutError  # the connection was cut, so that the body merely seems to end here
            if location is None:
                return found
            url = urljoin(url, location)
    except FetchError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise FetchError(f"the download took longer than {timeout:g} seconds.") from None
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise FetchError(f"the download failed ({reason}). Is the host reachable from here?") from None
    raise FetchError(f"it redirects more than {max_redirects} times. Give the final URL.")


def check_url(url: str) -> SplitResult:
    """Split a URL whose parts every parser agrees on; raise FetchError for any other."""
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
    raise FetchError(problem)


def _read(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """The body, never holding more than the limit and a chunk of it, however it is packed."""
    packing = (response.getheader("Content-Encoding") or "identity").strip().lower()
    if packing not in PACKINGS:  # none was asked for
        raise FetchError(f"the server packs its answer as {printable(packing[:20])!r}, which was not asked for.")
    window = PACKINGS[packing]
    unpacker = None if window is None else zlib.decompressobj(window)
    if unpacker is None:
        check_size(response.length or 0, max_bytes)
    chunks: list[bytes] = []
    num_bytes = num_packed = 0
    while chunk := response.read(CHUNK_SIZE):
        num_packed += len(chunk)
        check_size(num_packed, max_bytes)
        try:
            plain = chunk if unpacker is None else unpacker.decompress(chunk, max_bytes + 1 - num_bytes)
        except zlib.error:
            raise FetchError("its packed content is damaged.") from None
        num_bytes += len(plain)
        check_size(num_bytes, max_bytes)
        chunks.append(plain)
    return b"".join(chunks)


def check_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise FetchError(f"it is over {max_bytes:,} bytes. Save it smaller, or allow more.")


def is_public_address(address: str) -> bool:
    """Whether a host on the open internet may live at this IPv4 or IPv6 address."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    if isinstance(ip, ipaddress.IPv6Address) and ip not in GLOBAL_IPV6:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in NOT_PUBLIC)


def _ask(
    url: str, parts: SplitResult, max_bytes: int, deadline: float, headers: Mapping[str, str], data: bytes | None,
    may_be_inside: bool,
) -> tuple[Fetched, str | None]:  # fmt: skip
    """One request → what came and None, or nothing and where it redirects to."""
    target = quote((parts.path or "/") + (parts.query and f"?{parts.query}"), safe="/?%:@!$&'()*+,;=~[]")
    with _connection(parts, deadline, may_be_inside) as connection:
        method = "GET" if data is None else "POST"
        connection.request(method, target, body=data, headers={"User-Agent": USER_AGENT, **headers})
        response = connection.getresponse()
        location = response.getheader("Location")
        if response.status in REDIRECTS and location:
            return Fetched(url, b"", ""), location
        if response.status != 200:
            raise FetchError(f"the server answered with status {response.status}.")
        return Fetched(url, _read(response, max_bytes), response.getheader("Content-Type") or ""), None


@contextmanager
def _connection(parts: SplitResult, deadline: float, may_be_inside: bool) -> Iterator[http.client.HTTPConnection]:
    """A connection to a checked address, cut at the deadline however slowly the server dribbles."""
    connection_class = CONNECTIONS[parts.scheme]
    host = (parts.hostname or "").encode("idna").decode("ascii")
    port = parts.port or connection_class.default_port
    connection = connection_class(host, port)
    connection.auto_open = 0  # or else it would look the name up itself after a lost connection
    sock = _connect(host, port, deadline, may_be_inside)
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


def _connect(host: str, port: int, deadline: float, may_be_inside: bool) -> socket.socket:
    """Look the name up once and connect to what was found, unless any of it is not public."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not may_be_inside and not all(is_public_address(str(address[0])) for *_, address in found):
        raise FetchError("its host has a private, local or reserved address. Only public hosts are fetched from.")
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
