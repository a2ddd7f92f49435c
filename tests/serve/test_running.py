"""The command itself, in a process of its own, asked over a socket."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
import uvicorn

from tests.serve.knocking import CHAT, KEY, asking, client_of, data_url, endless, service_for, user
from tests.serve.process import running
from visglm.cli import main
from visglm.errors import ConfigError
from visglm.serve import create_app
from visglm.serve.listening import bind, listen
from visglm.serve.running import Server, config_of

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals like these are not sent elsewhere")


def test_it_answers_streams_notices_who_leaves_logs_no_words_and_drains(vlm):
    with running() as server:
        answer = json.loads(server.post(asking(user("这是什么？", data_url("cat.png")))).read())
        assert answer["choices"][0]["message"]["content"] == "这是猫。"
        refused = server.post(asking(user("Ann")), key="Ann-0123456789abcdef")
        assert refused.status == 401

        stream = server.post(endless(vlm, 400, stream=True))
        assert stream.readline().startswith(b"data: {")
        stream.connection.sock.shutdown(socket.SHUT_RDWR)
        server.wait_for(r"chat/completions 200 .* 0 \+ 0 tokens")
        assert server.metric("visglm_answers_cancelled_total") == 1
        assert server.metric("visglm_requests_in_flight") == 1  # that which asks

        half = socket.create_connection(("127.0.0.1", server.port))
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n{")
        assert half.recv(100).startswith(b"HTTP/1.1 401")
        half.close()

        stream = server.post(endless(vlm, 400, stream=True))
        first = stream.readline()
        server.process.send_signal(signal.SIGTERM)
        rest = stream.read()
        assert first.startswith(b"data: {") and rest.endswith(b"data: [DONE]\n\n")
        assert rest.count(b"chat.completion.chunk") > 100
        assert server.process.wait(60) == 0
        with pytest.raises(ConnectionRefusedError):
            server.get("/health")
        assert "Ann" not in server.log and KEY not in server.log and "这是" not in server.log
        assert "Traceback" not in server.log


@pytest.mark.slow
def test_what_is_not_done_by_the_deadline_is_broken_off(vlm):
    with running("--drain-seconds", "0") as server:
        stream = server.post(endless(vlm, 480, stream=True))
        stream.readline()
        server.process.send_signal(signal.SIGTERM)
        told = stream.read()
        assert b"[DONE]" not in told
        assert json.loads(told.strip().rpartition(b"data: ")[2])["error"]["code"] == "shutting_down"
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.log


def test_from_the_signal_on_nothing_new_is_taken(vlm):
    service = service_for(vlm)
    server = Server(uvicorn.Config(create_app(service)), service)
    with client_of(service) as client:
        assert client.get("/ready").status_code == 200
        server.handle_exit(signal.SIGTERM, None)
        assert server.should_exit and client.get("/ready").status_code == 503
        assert client.post(CHAT, json=asking(user("Hi"))).status_code == 503


# --- on a socket, in a thread of this process ---


@contextmanager
def listening(service):
    """Its port."""
    server = Server(config_of(service), service)
    sock = bind("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: server.run(sockets=[sock]), daemon=True)
    thread.start()
    try:
        listen(sock, 100)
        yield sock.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        sock.close()


REFUSED = b"POST /v1/tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"


@pytest.mark.parametrize("begun", [b"", b"GET /health HTTP/1.1\r\n", REFUSED], ids=["nothing", "a head", "a body"])
def test_a_connection_on_which_no_request_comes_is_let_go(vlm, monkeypatch, begun):
    """However slowly something comes, of a request that was refused, too; a long answer takes as long as it takes."""
    for module in ("running", "door"):
        monkeypatch.setattr(f"visglm.serve.{module}.BODY_SECONDS", 0.5)
    with listening(service_for(vlm, keys=(KEY,))) as port:
        answer = http.client.HTTPConnection("127.0.0.1", port)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        answer.request("POST", CHAT, json.dumps(endless(vlm, 400)), headers)
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(begun)
            with pytest.raises(OSError, match="let go"):
                while True:
                    if begun:
                        slow.sendall(b"X: y\r\n")
                    if select.select([slow], [], [], 0.02)[0] and not slow.recv(1000):
                        raise OSError("let go")
        assert json.loads(answer.getresponse().read())["usage"]["completion_tokens"] == 400
        answer.close()


@pytest.mark.parametrize("key, status", [("another-key-than-theirs", 401), (KEY, 413)])
def test_who_sends_all_before_reading_is_told_why_it_was_refused(vlm, key, status):
    with listening(service_for(vlm, keys=(KEY,), limits={"max_body": 10_000})) as port:
        headers = {"Authorization": f"Bearer {key}", "Connection": "close"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{CHAT}", b"x" * 30_000_000, headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert caught.value.code == status and json.loads(caught.value.read())["error"]["message"]


def test_heads_are_those_of_get_without_the_body(vlm):
    with listening(service_for(vlm)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for path, status in (("/health", 200), ("/ready", 200), ("/v1/models", 200), ("/nowhere", 404), (CHAT, 405)):
            lengths = []
            for method in ("HEAD", "GET"):
                connection.request(method, path)
                answer = connection.getresponse()
                assert answer.status == status, (method, path)
                lengths.append(answer.headers["Content-Length"])
                assert bool(answer.read()) == (method == "GET")
            assert lengths[0] == lengths[1]
        connection.close()


def test_a_port_that_another_took_while_the_model_was_loaded_is_told(vlm, monkeypatch, capsys):
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]

    def load(arguments):
        listen(first, 1)
        return vlm

    monkeypatch.setattr("visglm.cli.serve.load_model", load)
    try:
        assert main(["serve", "--port", str(port)]) == 1
    finally:
        first.close()
    assert f"port {port} cannot be listened on" in capsys.readouterr().err


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_an_address_of_ipv6_may_have_its_brackets():
    for host in ("::1", "[::1]"):
        try:
            with bind(host, 0) as sock:
                assert sock.getsockname()[0] == "::1"
        except ConfigError as error:
            assert "assign requested address" in str(error)  # this machine has it switched off
