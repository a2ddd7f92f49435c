"""Pictures of a request: data URLs, and addresses of hosts that were allowed. A server inside sees nothing."""

from __future__ import annotations

import base64
import io
import socket

import pytest
from PIL import Image

from tests.serve.knocking import CHAT, EXAMPLES, asking, client_of, data_url, service_for, user
from tests.web import serve
from visglm.pictures import fetch as fetch_module
from visglm.pictures.fetch import is_public_address

CAT = (EXAMPLES / "cat.png").read_bytes()


@pytest.fixture
def web():
    with serve() as web:
        yield web


@pytest.fixture
def names(monkeypatch):
    """Names that lead where a test says, and the list of those that were looked up."""
    known, asked = {}, []

    def look_up(host, port, *args, **kwargs):
        asked.append(host)
        addresses = known.get(host)
        if addresses is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known, asked


@pytest.fixture
def loopback_is_public(monkeypatch):
    monkeypatch.setattr(
        fetch_module, "is_public_address", lambda address: address == "127.0.0.1" or is_public_address(address)
    )


def ask(vlm, url: str, hosts=(), **limits):
    with client_of(service_for(vlm, picture_hosts=hosts, limits=limits)) as client:
        return client.post(CHAT, json=asking(user("What is this?", url), max_tokens=8))


def refused(answer, word: str = "") -> str:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "invalid_image" and error["param"] == "messages" and word in error["message"]
    return error["message"]


SPELLINGS = [
    "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "[::1]", "[::ffff:127.0.0.1]",
    "127.0.0.1.", "LOCALHOST", "[::ffff:7f00:1]", "①②⑦.0.0.1", "127。0。0。1",
]  # fmt: skip


@pytest.mark.parametrize("host", SPELLINGS)
def test_a_server_inside_sees_nothing_even_where_its_name_was_allowed(vlm, web, host):
    web.page("/cat.png", CAT)
    url = web.url("/cat.png", host)
    refused(ask(vlm, url), "not fetched")
    refused(ask(vlm, url, hosts=("pictures.example",)))
    refused(ask(vlm, url, hosts=(host.strip("[]").lower(), "::1", "127.0.0.1")))
    assert web.connections == 0


@pytest.mark.parametrize(
    "url",
    ["http://pictures.example@127.0.0.1:{port}/", "http://127.0.0.1:{port}\\@pictures.example/",
     "http://pictures.example:{port}@127.0.0.1/", "http:///127.0.0.1:{port}/", "//127.0.0.1:{port}/cat.png",
     "http:127.0.0.1:{port}/", "http://127.0.0.1:{port}#@pictures.example/", "http://pictures.example.:{port}/",
     "http://pictures.example%00.evil:{port}/", "HTTP://127.0.0.1:{port}/", " http://127.0.0.1:{port}/",
     "http://pictures.example\r\nHost: x@127.0.0.1:{port}/", "gopher://127.0.0.1:{port}/", "ftp://127.0.0.1:{port}/"],
)  # fmt: skip
def test_odd_spellings_lead_nowhere(vlm, web, names, url):
    known, _ = names
    known |= {"pictures.example": ["127.0.0.1"], "pictures.example.": ["127.0.0.1"], "127.0.0.1": ["127.0.0.1"]}
    refused(ask(vlm, url.format(port=web.port), hosts=("pictures.example",)))
    assert web.connections == 0


@pytest.mark.parametrize(
    "source",
    ["file:///etc/hostname", "/etc/hostname", "examples/cat.png", "cat.png", "~/x", "", "data:", "data:image/png,abc",
     "data:text/html;base64,PGI+", base64.b64encode(CAT).decode(), "C:\\x.png", "\\\\host\\share\\x.png", "http://"],
)  # fmt: skip
def test_nothing_else_is_opened(vlm, source, monkeypatch):
    monkeypatch.setattr("visglm.pictures.load._from_path", lambda *arguments: pytest.fail("a file was opened"))
    message = refused(ask(vlm, source, hosts=("pictures.example",)))
    assert "/" + "root" not in message and "working directory" not in message


def test_the_address_that_was_checked_is_the_one_connected_to(vlm, web, names):
    """A name that leads to a public address first and inside afterwards."""
    known, asked = names
    known["pictures.example"] = ["93.184.215.14", "127.0.0.1"]
    refused(ask(vlm, web.url("/cat.png", "pictures.example"), hosts=("pictures.example",)))
    assert web.connections == 0 and asked.count("pictures.example") == 1


def test_a_host_that_was_allowed_is_fetched_from(vlm, web, names, loopback_is_public):
    known, _ = names
    known["pictures.example"] = ["127.0.0.1"]
    web.page("/cat.png", CAT)
    answer = ask(vlm, web.url("/cat.png", "Pictures.Example"), hosts=("pictures.example",))
    assert answer.json()["choices"][0]["message"]["content"] == "It is a cat." and web.requests == ["/cat.png"]


@pytest.mark.parametrize(
    "target", ["http://inside.example:{port}/cat.png", "http://127.0.0.1:{port}/cat.png", "file:///etc"]
)
def test_a_redirect_leads_to_no_other_host(vlm, web, names, loopback_is_public, target):
    known, _ = names
    known |= {"pictures.example": ["127.0.0.1"], "inside.example": ["127.0.0.1"], "127.0.0.1": ["127.0.0.1"]}
    web.page("/cat.png", CAT)
    web.page("/moved", status=302, Location=target.format(port=web.port))
    refused(ask(vlm, web.url("/moved", "pictures.example"), hosts=("pictures.example",)))
    assert web.requests == ["/moved"]


def test_a_host_that_was_not_allowed_is_refused_before_a_thread_is_taken(vlm, monkeypatch):
    monkeypatch.setattr("visglm.serve.service.download", lambda *arguments: pytest.fail("it was begun"))
    refused(ask(vlm, "https://other.example/cat.png", hosts=("pictures.example",)), "this is none")


def test_a_download_is_bounded(vlm, web, names, loopback_is_public):
    known, _ = names
    known["pictures.example"] = ["127.0.0.1"]
    web.page("/big", b"x" * 40_000_000)
    refused(ask(vlm, web.url("/big", "pictures.example"), hosts=("pictures.example",)), "bytes")


def png(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(vlm, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *arguments: pytest.fail("it was decoded"))
    refused(ask(vlm, png(20_000, 20_000)), "pixels")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89PNG", CAT[:2000], b"%PDF-1.7 x", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 99, b"%!PS-Adobe-3.0 EPSF"],
)
def test_what_is_no_whole_picture_is_refused_in_words_of_ours(vlm, data):
    message = refused(ask(vlm, "data:image/png;base64," + base64.b64encode(data).decode()))
    assert "0x" not in message and "object at" not in message


def test_a_picture_of_one_pixel_is_one(vlm):
    assert ask(vlm, png(1, 1)).status_code == 200


def test_pictures_are_counted_before_any_is_opened(vlm, monkeypatch):
    monkeypatch.setattr("visglm.serve.service.decode", lambda *arguments: pytest.fail("one was decoded"))
    with client_of(service_for(vlm, limits={"max_pictures": 2})) as client:
        answer = client.post(CHAT, json=asking(user("What?", *["data:image/png;base64,AAAA"] * 3)))
    assert answer.status_code == 400 and "3 are too many pictures" in answer.text


def test_other_limits_are_checked_before_a_picture_is_opened(vlm, monkeypatch):
    monkeypatch.setattr("visglm.serve.service.decode", lambda *arguments: pytest.fail("one was decoded"))
    limits = {"max_answers": 2, "max_new_tokens": 50, "max_schema": 60}
    long = {"type": "object", "properties": {f"name{number}": {"type": "string"} for number in range(9)}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": long}}
    with client_of(service_for(vlm, limits=limits)) as client:
        for fields, param in (
            ({"n": 3}, "n"), ({"choices": ["a", "b", "c"]}, "choices"), ({"max_tokens": 51}, "max_tokens"),
            ({"response_format": form}, "response_format"),
        ):  # fmt: skip
            answer = client.post(CHAT, json=asking(user("What?", data_url("cat.png")), **fields))
            assert answer.status_code == 400 and answer.json()["error"]["param"] == param
