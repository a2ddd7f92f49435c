"""`visglm web` as a server: addresses, visitors who leave, files that change."""

from __future__ import annotations

import http.client
import shutil
import socket
import threading
from contextlib import contextmanager

import pytest

from visglm.checkpoint import EMBEDDED_MODEL
from visglm.cli import main, web
from visglm.errors import ConfigError, VisGLMError
from visglm.light.manifest import Manifest


@contextmanager
def listening(folder=EMBEDDED_MODEL, host="127.0.0.1"):
    with web.listen(host, 0, web.served(folder, Manifest(folder).files)) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield server
        finally:
            server.shutdown()


@pytest.mark.parametrize("port", [-1, 65_536, 99_999])
def test_a_port_that_there_is_not_is_told(port, capsys, monkeypatch):
    monkeypatch.setattr(web, "fetch_runtime", lambda: None)
    assert main(["web", "--port", str(port)]) == 1
    assert "--port must be between 0 and 65535" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        web.listen("127.0.0.1", port, {})


def test_a_host_that_is_none_and_a_port_that_is_taken_are_told():
    with pytest.raises(VisGLMError, match="Name another --port, or --host"):
        web.listen("no such host", 0, {})
    with listening() as server, pytest.raises(VisGLMError, match="Name another --port"):
        web.listen("127.0.0.1", server.server_port, {})


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_it_listens_on_the_newer_addresses_too():
    with listening(host="::1") as server:
        asked = http.client.HTTPConnection("::1", server.server_port)
        asked.request("GET", "/")
        assert asked.getresponse().status == 200


def test_who_leaves_in_the_middle_of_a_file_is_no_news(capfd):
    with listening() as server:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.server_port)) as visitor:
                visitor.sendall(b"GET /model/model.safetensors HTTP/1.1\r\nHost: here\r\n\r\n")
                visitor.recv(1000)
                visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # as a tab that closes
        asked = http.client.HTTPConnection("127.0.0.1", server.server_port)
        asked.request("GET", "/")
        assert asked.getresponse().status == 200
    assert capfd.readouterr().err == ""


def test_heads_are_given_and_files_that_are_gone_are_404(tmp_path):
    folder = shutil.copytree(EMBEDDED_MODEL, tmp_path / "model")
    with listening(folder) as server:
        asked = http.client.HTTPConnection("127.0.0.1", server.server_port)
        asked.request("HEAD", "/model/model.safetensors")
        answer = asked.getresponse()
        size = (folder / "model.safetensors").stat().st_size
        assert (answer.status, answer.read(), int(answer.headers["Content-Length"])) == (200, b"", size)
        (folder / "model.safetensors").unlink()
        asked.request("GET", "/model/model.safetensors")
        answer = asked.getresponse()
        assert answer.status == 404
        answer.read()
