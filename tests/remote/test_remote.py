"""`RemoteVisGLM`: what `VisGLM` says, said by a server in another process."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import os
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from PIL import Image

from tests.serve.knocking import EXAMPLES, KEY
from tests.web import page_of
from visglm import RemoteVisGLM, VisGLM
from visglm.errors import ConfigError, ContextLengthError, ImageError, PromptError, ServerError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="servers are ended by signals here")
CAT, PAIR = EXAMPLES / "cat.png", EXAMPLES / "pair.png"


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained(device="cpu")


def test_it_says_what_the_model_says(vlm, remote):
    assert remote.models() == ["visglm-tiny"] and remote.model == "visglm-tiny"
    reply = remote.chat(CAT, "这是什么？")
    own = vlm.chat(CAT, "这是什么？")
    assert (reply.text, reply.finish_reason, reply.usage) == (own.text, own.finish_reason, own.usage)
    further = remote.chat(None, "它是什么颜色？", reply.history)
    assert further.text == vlm.chat(None, "它是什么颜色？", own.history).text
    assert further.history.turns == vlm.chat(None, "它是什么颜色？", own.history).history.turns
    assert remote.chat(None, "Hello", [("Hi", "Hello!")]).text == vlm.chat(None, "Hello", [("Hi", "Hello!")]).text
    picture = {"type": "image_url", "image_url": {"url": str(CAT)}}
    messages = [
        {"role": "user", "content": [picture, {"type": "text", "text": "这是什么？"}]},
        {"role": "assistant", "content": own.text},
    ]
    assert remote.chat(None, "它是什么颜色？", messages).text == further.text


@pytest.mark.parametrize(
    "source",
    [str(CAT), CAT, CAT.read_bytes(), Image.open(CAT), np.asarray(Image.open(CAT).convert("RGB"))],
    ids=["text", "path", "bytes", "PIL", "array"],
)
def test_whatever_holds_a_picture_is_sent(vlm, remote, source):
    assert remote.chat([source, PAIR], "What is this?").text == vlm.chat([CAT, PAIR], "What is this?").text


def test_settings_are_those_of_chat(vlm, remote):
    settings = {"temperature": 1.2, "top_p": 0.9, "seed": 2**64 - 5, "max_new_tokens": 9}
    assert remote.chat(CAT, "What is this?", **settings).text == vlm.chat(CAT, "What is this?", **settings).text
    scores = remote.chat(CAT, "这是什么？", choices=["猫", "狗"]).scores
    assert scores == pytest.approx(vlm.chat(CAT, "这是什么？", choices=["猫", "狗"]).scores, rel=1e-3)
    schema = {"type": "object", "properties": {"is": {"enum": ["猫", "狗"]}}, "required": ["is"]}
    schema["additionalProperties"] = False
    assert remote.chat(CAT, "这是什么？", json_schema=schema).parsed in ({"is": "猫"}, {"is": "狗"})
    with pytest.raises(ConfigError, match="temperature"):
        remote.chat(CAT, "What?", temperature=9)


def test_a_stream_gives_the_same_and_its_end_stops_the_model(vlm, remote, server):
    stream = remote.stream_chat(PAIR, "Describe the picture.")
    with pytest.raises(ServerError, match="to its end"):
        _ = stream.reply
    pieces = list(stream)
    own = vlm.chat(PAIR, "Describe the picture.")
    assert len(pieces) > 1 and "".join(pieces) == stream.reply.text == own.text
    assert stream.reply.usage == own.usage and stream.reply.finish_reason == "stop"
    assert 0 < stream.reply.timings.first_token <= stream.reply.timings.total
    before = server.metric("visglm_answers_cancelled_total")
    stream = remote.stream_chat(None, "Hello", temperature=5.0, seed=3, max_new_tokens=480)
    first = next(stream)
    stream.close()
    assert list(stream) == [] and stream.reply.finish_reason == "cancelled" and stream.reply.text == first
    wait_for(lambda: server.metric("visglm_answers_cancelled_total") == before + 1)


def test_another_thread_ends_what_is_being_waited_for():
    with answering(lambda handler: threading.Event().wait(30)) as url:
        stream = RemoteVisGLM(url, model="m").stream_chat(None, "Hi")
        reader = threading.Thread(target=lambda: list(stream), daemon=True)
        reader.start()
        wait_for(lambda: stream._response is not None)
        stream.close()
        reader.join(20)
        assert not reader.is_alive() and stream.reply.finish_reason == "cancelled"


def test_the_heat_map_is_that_of_the_model(vlm, remote):
    own = vlm.explain(PAIR, "What is on the left?")
    explanation = remote.explain(PAIR, "What is on the left?", own.answer)
    assert np.abs(explanation.heat - own.heat).max() < 1e-3 and explanation.overlay().size == own.overlay().size
    with pytest.raises(ServerError, match="gives another answer"):
        remote.explain(PAIR, "What is on the left?", "An elephant.")


def test_what_is_wrong_with_a_question_is_told_as_by_the_model(remote, tmp_path):
    (tmp_path / "broken.png").write_bytes(CAT.read_bytes()[:60])
    with pytest.raises(ImageError):
        remote.chat(tmp_path / "broken.png", "What?")
    with pytest.raises(ImageError):
        remote.chat(tmp_path / "nowhere.png", "What?")
    with pytest.raises(ContextLengthError):
        remote.chat(None, "word " * 3000)
    with pytest.raises(PromptError):
        remote.chat(None, " ")
    with pytest.raises(ServerError, match="models") as caught:
        RemoteVisGLM(remote.url, KEY, model="elephant").chat(None, "Hi")
    assert caught.value.reason == "missing"
    with pytest.raises(ServerError) as caught:
        RemoteVisGLM(remote.url, "a-wrong-key-0123456789").chat(None, "Hi")
    assert caught.value.reason == "key" and "wrong-key" not in str(caught.value)


def test_a_history_of_another_models_eyes_is_refused(vlm, remote):
    with pytest.raises(PromptError, match="as one model saw them"):
        remote.chat(None, "And?", vlm.chat(CAT, "What?").history)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://ex\nample", "file:///etc/passwd"])
def test_an_address_is_one(url):
    with pytest.raises(ConfigError, match="address"):
        RemoteVisGLM(url)


def test_the_key_is_read_from_the_environment_and_shown_nowhere(monkeypatch):
    monkeypatch.setenv("VISGLM_API_KEY", KEY)
    remote = RemoteVisGLM("http://127.0.0.1:9/v1/")
    assert KEY not in repr(remote) and remote.url == "http://127.0.0.1:9"
    with pytest.raises(ServerError) as caught:
        remote.models()
    assert caught.value.reason == "unreachable" and KEY not in str(caught.value)
    with pytest.raises(ConfigError, match="printable"):
        RemoteVisGLM("http://127.0.0.1:9", "schlüssel")


def error(status: int, code: str | None = None, **headers: str):
    said = {"error": {"message": "No.", "type": "x", "param": None, "code": code}}
    return page_of(json.dumps(said).encode(), status, **headers)


def events(*lines: bytes):
    return page_of(b"".join(b"data: " + line + b"\n\n" for line in lines))


CHUNK = b'{"choices": [{"index": 0, "delta": {"content": "A"}, "finish_reason": null}]}'


@pytest.mark.parametrize(
    "answer, reason, wait",
    [
        (error(429, "queue_full", Retry_After="7"), "full", 7.0),
        (error(503, "shutting_down"), "ending", None),
        (error(500, "model_failed"), "failed", None),
        (error(400, "unsupported_field"), "refused", None),
        (error(302, Location="http://127.0.0.1:9/"), "failed", None),
        (events(CHUNK, b'{"error": {"message": "Ends.", "code": "shutting_down"}}'), "ending", None),
        (events(CHUNK), "unreachable", None),
        (events(b"<html>"), "missing", None),
        (events(b"[]"), "missing", None),
    ],
)
def test_what_a_server_may_say_instead_has_a_reason(answer, reason, wait):
    with answering(answer) as url:
        stream = RemoteVisGLM(url, model="m").stream_chat(None, "Hi")
        with pytest.raises(ServerError) as caught:
            list(stream)
        assert (caught.value.reason, caught.value.wait) == (reason, wait)
        with pytest.raises(ServerError, match="no reply"):
            _ = stream.reply


def test_what_was_thought_comes_apart_from_the_answer():
    deltas = [{"reasoning_content": "Hm"}, {"reasoning_content": "m."}, {"content": "A "}, {"content": "cat."}]
    told = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 2}}
    told += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
    with answering(events(*(json.dumps(each).encode() for each in told), b"[DONE]")) as url:
        remote = RemoteVisGLM(url, model="m")
        stream = remote.stream_chat(None, "Hi")
        assert [*stream] == ["A ", "cat."] and stream.thinking == "Hmm."
        streamed = stream.reply
        assert [*remote.stream_chat(None, "Hi").parts()] == [
            ("thinking", "Hm"), ("thinking", "m."), ("text", "A "), ("text", "cat.")
        ]  # fmt: skip
    message = {"content": "A cat.", "reasoning_content": "Hmm."}
    whole = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    with answering(page_of(json.dumps(whole).encode())) as url:
        reply = RemoteVisGLM(url, model="m").chat(None, "Hi")
    for each in (streamed, reply):
        assert (each.text, each.thinking, each.usage.thinking_tokens) == ("A cat.", "Hmm.", 2)
        assert each.history.turns[0].answer == "A cat."


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[]", b"{}", b'{"data": 3}', b'{"data": [{"di": 1}]}'])
def test_another_server_is_told_from_ours(body):
    with answering(page_of(body)) as url:
        for ask in (RemoteVisGLM(url).models, lambda: RemoteVisGLM(url, model="m").chat(None, "Hi")):
            with pytest.raises(ServerError, match="not as `visglm serve` does"):
                ask()


WHOLE = {
    "choices": [{"message": {"content": "A"}, "finish_reason": "stop", "explanation": {"heat": [[0, 1]]}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}


def whole(**fields):
    """An answer with other fields; "message" and what else a choice has, in the choice."""
    choice = WHOLE["choices"][0]
    inner = {name: fields.pop(name) for name in ("message", "finish_reason", "scores", "explanation") if name in fields}
    return WHOLE | {"choices": [choice | inner]} | fields


@pytest.mark.parametrize(
    "told",
    [
        b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"choices": ' + b"9" * 5000 + b"}", whole(usage=None),
        whole(usage=[]), whole(usage={"prompt_tokens": "1", "completion_tokens": 1}), whole(finish_reason=5),
        whole(usage=WHOLE["usage"] | {"completion_tokens_details": 5}), whole(choices=["x"]), whole(choices={}),
        whole(message={"content": None}), whole(message={"content": ["A"]}), whole(message=[]), whole(scores=[1]),
        whole(message={"content": "A", "reasoning_content": 5}), whole(scores={"A": "x"}), whole(scores="x"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_told_as_such(told):
    with (
        answering(page_of(told if isinstance(told, bytes) else json.dumps(told).encode())) as url,
        pytest.raises(ServerError, match="not as `visglm serve` does"),
    ):
        RemoteVisGLM(url, model="m").chat(None, "Hi")


@pytest.mark.parametrize(
    "heat", ["x", 5, [1, 0], [], [[]], [[[1]]], [[1], [1, 0]], [[float("nan")]], [[1e300]], [[-3]]]
)
def test_a_heat_map_that_is_none_is_told_as_such(heat):
    with (
        answering(page_of(json.dumps(whole(explanation={"heat": heat})).encode())) as url,
        pytest.raises(ServerError, match="not as `visglm serve` does"),
    ):
        RemoteVisGLM(url, model="m").explain(CAT, "Hi", "A")
    with answering(page_of(json.dumps(WHOLE).encode())) as url:
        assert RemoteVisGLM(url, model="m").explain(CAT, "Hi", "A").heat.tolist() == [[0, 1]]


def test_json_that_is_cut_in_a_thousand_brackets_is_not_parsed():
    with answering(page_of(json.dumps(whole(message={"content": "[" * 100_000})).encode())) as url:
        assert RemoteVisGLM(url, model="m").chat(None, "Hi", json_schema={"type": "array"}).parsed is None


@pytest.mark.parametrize("body", [{"data": []}, {"data": [{"id": 5}]}, {"data": [{"id": None}]}, {"data": "ab"}])
def test_names_that_are_none_are_told_as_such(body):
    with (
        answering(page_of(json.dumps(body).encode())) as url,
        pytest.raises(ServerError, match="not as `visglm serve` does"),
    ):
        _ = RemoteVisGLM(url).model


@pytest.mark.parametrize(
    "event",
    [
        {}, {"choices": None}, {"choices": 5}, {"choices": ["x"]}, {"choices": [{"finish_reason": None}]},
        {"choices": [{"delta": None, "finish_reason": None}]}, {"choices": [{"delta": {"content": 5}}]},
        {"choices": [{"delta": {"content": "A"}, "finish_reason": 5}]}, {"choices": [], "usage": "x"},
        {"choices": [], "usage": {"a": 1}}, b"[" * 100_000,
    ],
)  # fmt: skip
def test_an_event_that_is_none_is_told_as_such(event):
    with answering(events(CHUNK, event if isinstance(event, bytes) else json.dumps(event).encode())) as url:
        stream = RemoteVisGLM(url, model="m").stream_chat(None, "Hi")
        assert next(stream) == "A"
        with pytest.raises(ServerError, match="not as `visglm serve` does"):
            next(stream)


@pytest.mark.parametrize("code", [[1], {}, 5, None])
def test_an_error_of_whatever_code_is_one_of_the_server(code):
    with answering(error(400, code)) as url, pytest.raises(ServerError) as caught:
        RemoteVisGLM(url, model="m").chat(None, "Hi")
    assert caught.value.reason == "refused" and "No." in str(caught.value)


@pytest.mark.parametrize("ask", ["chat", "stream", "models"])
@pytest.mark.parametrize("status, begin, block", [
    (200, b'{"x": "', b"a"), (500, b'{"x": "', b"a"), (200, b"data: ", b"a"), (200, b"", b": ping\n\n"),
    (200, b"", b"data: " + CHUNK + b"\n\n"),
])  # fmt: skip
def test_no_more_is_read_than_an_answer_may_be(monkeypatch, ask, status, begin, block):
    monkeypatch.setattr("visglm.remote.connection.LONGEST", 200_000)
    sent = []

    def endless(handler):
        handler.send_response(status)
        handler.end_headers()
        with suppress(OSError):
            handler.wfile.write(begin)
            while True:
                sent.append(handler.wfile.write(block * 1000))

    with answering(endless) as url:
        remote = RemoteVisGLM(url, model="m")
        asks = {"chat": lambda: remote.chat(None, "Hi"), "stream": lambda: list(remote.stream_chat(None, "Hi")),
                "models": remote.models}  # fmt: skip
        with pytest.raises(ServerError, match="over 200,000 bytes"):
            asks[ask]()
    assert sum(sent) < 50_000_000


@pytest.mark.parametrize("status", [200, 500])
def test_what_comes_packed_is_not_unpacked(status):
    """A thousand bytes of it may be a million."""
    seen = []

    def bomb(handler):
        seen.append(handler.headers["Accept-Encoding"])
        page_of(gzip.compress(json.dumps(WHOLE).encode()), status, Content_Encoding="gzip")(handler)

    with answering(bomb) as url:
        remote = RemoteVisGLM(url, model="m")
        for ask in (remote.chat, lambda *words: list(remote.stream_chat(*words))):
            with pytest.raises(ServerError, match="not as `visglm serve` does"):
                ask(None, "Hi")
    assert set(seen) == {"identity"}


def test_events_are_read_as_their_standard_writes_them():
    """As what stands in front of a server may write them: without a blank, in several lines, with remarks and names."""
    told = CHUNK.replace(b", ", b",\ndata: ", 1)
    body = b": hello\r\n\r\nevent: x\ndata:" + CHUNK + b"\n\nid: 5\r\ndata: " + told + b"\r\n\r\ndata:[DONE]\n\n"
    with answering(page_of(body)) as url:
        assert list(RemoteVisGLM(url, model="m").stream_chat(None, "Hi")) == ["A", "A"]


@contextmanager
def answering(answer):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if answer.__name__ == "<lambda>":
                self.send_response(200)
                self.end_headers()
            answer(self)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def wait_for(condition) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < 60
        time.sleep(0.01)


def test_pictures_in_other_forms_go_as_png():
    from visglm.remote.messages import to_url

    url = to_url(Image.new("RGB", (3, 2), "red"))
    assert url.startswith("data:image/png;base64,") and to_url(url) is url
    assert to_url(io.BytesIO(CAT.read_bytes())).startswith("data:image/png;base64,")
    assert to_url("https://example.org/a.png") == "https://example.org/a.png"
