"""The command itself, in a process of its own, asked over a socket."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest

from tests.serve.knocking import KEY, asking, data_url, endless, user
from tests.serve.process import running

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
