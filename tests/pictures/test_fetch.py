"""Downloads: nothing but public addresses, nothing beyond the limits. Every server here is on this machine."""

from __future__ import annotations

import gzip
import socket
import ssl
import time
import tracemalloc
import zlib

import pytest

from tests.web import serve
from visglm.errors import FetchError
from visglm.pictures import fetch as fetch_module
from visglm.pictures.fetch import check_url, fetch, is_public_address

LIMITS = {"max_bytes": 1000, "timeout": 5.0, "max_redirects": 3}


@pytest.fixture
def web():
    with serve() as web:
        yield web


@pytest.fixture
def allow_loopback(monkeypatch):
    monkeypatch.setattr(
        fetch_module, "is_public_address", lambda address: address == "127.0.0.1" or is_public_address(address)
    )


@pytest.fixture
def names(monkeypatch):
    """A name service of the test's own: `names["host"] = [addresses]`; `names.lookups` lists what was asked."""

    class Names(dict):
        lookups = []

    names = Names()

    def getaddrinfo(host, port, *args, **kwargs):
        names.lookups.append(host)
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in names[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    names.lookups = []
    return names


# ---- addresses -----------------------------------------------------------------------------------------------

PRIVATE = """
    127.0.0.1 127.255.255.254 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 100.64.0.1 100.100.100.200 169.254.169.254
    168.63.129.16 192.0.0.192 198.18.0.1 192.0.2.1 203.0.113.9 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255
    ::1 :: fe80::1 fe80::1%1 fec0::1 fc00::1 fd00:ec2::254 ff02::1 2001:db8::1 100::1
    ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe
    2002:7f00:1:: 2002:a9fe:a9fe:: 2001:0:7f00:1:: 3fff::1
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_private_addresses_are_not_public(address):
    assert not is_public_address(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "151.101.1.69", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_are_public(address):
    assert is_public_address(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "[::1]", "[::ffff:127.0.0.1]"],
)
def test_a_local_server_sees_nothing_however_its_address_is_written(web, host):
    web.page("/secret", b"secret")
    with pytest.raises(FetchError, match="private|failed"):
        fetch(web.url("/secret", host), **LIMITS)
    assert web.connections == 0


def test_a_name_is_refused_if_any_of_its_addresses_is_private(web, names):
    names["pictures.test"] = ["1.1.1.1", "127.0.0.1"]
    with pytest.raises(FetchError, match="private"):
        fetch(web.url("/", "pictures.test"), **LIMITS)
    assert web.connections == 0


def test_the_refusal_does_not_tell_the_address(names):
    names["intranet.test"] = ["10.1.2.3"]
    with pytest.raises(FetchError) as caught:
        fetch("http://intranet.test/", **LIMITS)
    assert "10.1.2.3" not in str(caught.value)


def test_the_address_that_was_checked_is_the_one_connected_to(web, names, allow_loopback):
    names["pictures.test"] = ["127.0.0.1"]
    web.page("/a", b"picture")
    assert fetch(web.url("/a", "pictures.test"), **LIMITS) == b"picture"
    assert names.lookups == ["pictures.test"]  # a second look-up could answer differently
    assert web.hosts == [f"pictures.test:{web.port}"]


def test_the_next_address_is_tried_if_one_does_not_answer(web, names, allow_loopback, monkeypatch):
    names["pictures.test"] = ["127.0.0.1", "127.0.0.1"]
    web.page("/a", b"picture")
    connect = socket.socket.connect
    failures = iter([ConnectionRefusedError()])

    def connect_at_second_try(sock, address):
        for failure in failures:
            raise failure
        connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect", connect_at_second_try)
    assert fetch(web.url("/a", "pictures.test"), **LIMITS) == b"picture"


def test_tls_verifies_the_name_on_the_checked_connection(web, names, allow_loopback, monkeypatch):
    names["pictures.test"] = ["127.0.0.1"]
    web.page("/a", b"picture")
    verified = []

    class Context:
        def wrap_socket(self, sock, server_hostname):
            verified.append((sock.getpeername(), server_hostname))
            return sock  # the server of this test does not speak TLS

    real_context = ssl.create_default_context()
    assert real_context.check_hostname and real_context.verify_mode == ssl.CERT_REQUIRED
    url = web.url("/a", "pictures.test").replace("http:", "https:")
    with pytest.raises(FetchError, match="download failed"):
        fetch(url, **LIMITS)
    monkeypatch.setattr(ssl, "create_default_context", Context)
    assert fetch(url, **LIMITS) == b"picture"
    assert verified == [(("127.0.0.1", web.port), "pictures.test")]


# ---- redirects -----------------------------------------------------------------------------------------------


def test_redirects_are_followed_up_to_the_limit(web, allow_loopback):
    web.page("/1", status=302, Location="/2")
    web.page("/2", status=307, Location=web.url("/3"))
    web.page("/3", status=301, Location="4?size=big")
    web.page("/4?size=big", b"picture")
    assert fetch(web.url("/1"), **LIMITS) == b"picture"
    web.requests.clear()
    with pytest.raises(FetchError, match="more than 2 times"):
        fetch(web.url("/1"), **{**LIMITS, "max_redirects": 2})
    assert web.requests == ["/1", "/2", "/3"]


def test_a_redirect_to_a_private_address_is_refused_at_that_hop(web, monkeypatch):
    web.page("/start", status=302, Location=web.url("/secret"))
    web.page("/secret", b"secret")
    first = iter([True])
    monkeypatch.setattr(
        fetch_module, "is_public_address", lambda address: next(first, False) or is_public_address(address)
    )
    with pytest.raises(FetchError, match="private"):
        fetch(web.url("/start"), **LIMITS)
    assert web.requests == ["/start"]
    assert web.connections == 1


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("file:///etc/passwd", "only http"),
        ("ftp://127.0.0.1/a", "only http"),
        ("//169.254.169.254/latest/meta-data", "private"),
        ("http://user@127.0.0.1/a", "user name"),
        ("http://127.0.0.1\\@example.com/a", "backslashes"),
    ],
)
def test_redirects_get_the_same_checks(web, allow_loopback, location, reason):
    web.page("/start", status=302, Location=location)
    with pytest.raises(FetchError, match=reason):
        fetch(web.url("/start"), **LIMITS)
    assert web.requests == ["/start"]


# ---- limits --------------------------------------------------------------------------------------------------


def test_a_body_of_exactly_the_limit_is_accepted(web, allow_loopback):
    assert len(fetch(web.page("/a", b"x" * 1000), **LIMITS)) == 1000
    with pytest.raises(FetchError, match="over 1,000 bytes"):
        fetch(web.page("/b", b"x" * 1001), **LIMITS)


def test_an_announced_size_is_refused_before_reading(web, allow_loopback, monkeypatch):
    monkeypatch.setattr("http.client.HTTPResponse.read", lambda *args: pytest.fail("the body was read"))
    with pytest.raises(FetchError, match="over 1,000 bytes"):
        fetch(web.page("/a", b"", Content_Length="1001"), **LIMITS)


def test_no_more_is_read_than_was_announced(web, allow_loopback):
    assert fetch(web.page("/a", b"x" * 10**6, Content_Length="10"), **LIMITS) == b"x" * 10


def test_an_endless_body_is_refused_while_reading(web, allow_loopback):
    sent = []

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        while len(sent) < 10_000:  # 640 MB
            sent.append(handler.wfile.write(b"x" * 2**16))

    web.pages["/endless"] = endless
    with pytest.raises(FetchError, match="over 1,000 bytes"):
        fetch(web.url("/endless"), **LIMITS)
    time.sleep(0.1)
    assert len(sent) < 1_000  # some are still in the buffers of the system


@pytest.mark.parametrize("start", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nX-Slow: "])
def test_dribbling_servers_are_cut_off_at_the_deadline(web, allow_loopback, start):
    def dribble(handler):
        handler.wfile.write(start)
        for _ in range(100):
            time.sleep(0.05)
            handler.wfile.write(b"x")

    web.pages["/slow"] = dribble
    begin = time.monotonic()
    with pytest.raises(FetchError, match="longer than 0.3 seconds"):
        fetch(web.url("/slow"), **{**LIMITS, "timeout": 0.3})
    assert time.monotonic() - begin < 2


def test_the_deadline_holds_for_all_redirects_together(web, allow_loopback):
    def slow_redirect(handler):
        time.sleep(0.2)
        handler.send_response(302)
        handler.send_header("Location", "/slow")
        handler.end_headers()

    web.pages["/slow"] = slow_redirect
    with pytest.raises(FetchError, match="longer than 0.3 seconds"):
        fetch(web.url("/slow"), **LIMITS | {"timeout": 0.3, "max_redirects": 20})
    assert len(web.requests) <= 3


def packed(data: bytes) -> bytes:
    return gzip.compress(data)


def test_a_packed_body_is_unpacked_and_a_bomb_is_not(web, allow_loopback):
    assert fetch(web.page("/a", packed(b"picture"), Content_Encoding="gzip"), **LIMITS) == b"picture"
    assert fetch(web.page("/b", zlib.compress(b"picture"), Content_Encoding="deflate"), **LIMITS) == b"picture"
    bomb = packed(bytes(2**26))
    tracemalloc.start()
    with pytest.raises(FetchError, match="over 5,000,000 bytes"):
        fetch(web.page("/c", bomb, Content_Encoding="gzip"), **LIMITS | {"max_bytes": 5_000_000})
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    with pytest.raises(FetchError, match="damaged"):
        fetch(web.page("/d", b"picture", Content_Encoding="gzip"), **LIMITS)
    with pytest.raises(FetchError, match="not asked for"):
        fetch(web.page("/e", b"picture", Content_Encoding="br"), **LIMITS)


# ---- URLs and answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "only http"),
        ("ftp://example.com/a.png", "only http"),
        ("gopher://example.com/", "only http"),
        ("http://user:password@example.com/", "user name"),
        ("http://example.com@127.0.0.1/", "user name"),
        ("http://@127.0.0.1/", "user name"),
        ("http://example.com\\@127.0.0.1/", "backslashes"),
        ("http://example.com/a b", "spaces"),
        ("http://exa\tmple.com/", "control characters"),
        ("http://example.com/\r\nHost: other", "control characters"),
        ("http://", "not a valid URL"),
        ("http:///path", "not a valid URL"),
        ("http://[::1", "not a valid URL"),
        ("http://example.com:0/", "not a valid URL"),
        ("http://example.com:99999/", "not a valid URL"),
        ("http://example.com:port/", "not a valid URL"),
    ],
)
def test_doubtful_urls_are_refused_before_the_name_is_looked_up(names, url, reason):
    with pytest.raises(FetchError, match=reason):
        fetch(url, **LIMITS)
    assert names.lookups == []


def test_check_url_splits_a_good_url():
    parts = check_url("https://Example.com:8080/a.png?b=1#c")
    assert (parts.scheme, parts.hostname, parts.port, parts.path) == ("https", "example.com", 8080, "/a.png")


def test_paths_beyond_ascii_are_encoded_once(web, allow_loopback):
    web.page("/%E7%8C%AB%20cat.png?q=%E7%8C%AB", b"picture")
    assert fetch(web.url("/猫%20cat.png?q=猫#ignored"), **LIMITS) == b"picture"


def test_digits_of_other_scripts_do_not_hide_an_address(web):
    with pytest.raises(FetchError):
        fetch(web.url("/", "１２７.0.0.1"), **LIMITS)
    assert web.connections == 0


@pytest.mark.parametrize("status", [204, 302, 404, 500])
def test_other_answers_are_errors(web, allow_loopback, status):
    with pytest.raises(FetchError, match=f"status {status}"):
        fetch(web.page("/a", b"", status), **LIMITS)


def test_failures_say_why(names, web, allow_loopback):
    with pytest.raises(FetchError, match="Name or service not known"):
        fetch("http://no-such-host.test/", **LIMITS)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        names["closed.test"] = ["127.0.0.1"]
        with pytest.raises(FetchError, match="refused"):
            fetch(f"http://closed.test:{unused.getsockname()[1]}/", **LIMITS)
    web.pages["/garbage"] = lambda handler: handler.wfile.write(b"\xff\xfe not http")
    names["pictures.test"] = ["127.0.0.1"]
    with pytest.raises(FetchError, match="BadStatusLine"):
        fetch(web.url("/garbage", "pictures.test"), **LIMITS)
