"""The doors: who may come in, by which name, from which page, with how much; and what the log says of it."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from fastapi.routing import APIRoute

from tests.serve.knocking import CHAT, KEY, OTHER_KEY, asking, client_of, knock, service_for, user
from visglm.errors import ConfigError
from visglm.serve import Keys, create_app
from visglm.serve import door as door_module
from visglm.serve.settings import host_of

HOST = (b"host", b"127.0.0.1")
JSON = (b"content-type", b"application/json")


@pytest.fixture(scope="module")
def locked(vlm):
    return create_app(service_for(vlm, keys=(KEY, OTHER_KEY)))


def routes(app) -> list[tuple[str, str]]:
    found = []
    for route in app.routes:
        inner = (
            [route] if isinstance(route, APIRoute) else getattr(getattr(route, "original_router", None), "routes", [])
        )
        found += [(method, one.path_format) for one in inner for method in one.methods]
    return found


def test_all_routes_are_known(locked):
    assert {path for _, path in routes(locked)} == {
        "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/models", "/v1/models/{model}", "/tokenize", "/",
        "/health", "/ready", "/metrics", "/docs", "/openapi.json",
    }  # fmt: skip


def test_without_a_key_every_route_is_shut_but_two(locked):
    for method, path in routes(locked):
        for sent in ([], [(b"authorization", b"Bearer wrong-key-0123456789")], [(b"authorization", KEY.encode())]):
            answer = knock(locked, path.replace("{model}", "visglm-tiny"), method, [HOST, JSON, *sent])
            if path in ("/health", "/ready"):
                assert answer.status == 200, path
            else:
                assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer", (method, path)
                assert answer.json["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "raw",
    [b"//health", b"/health/", b"/./health", b"/health/../v1/models", b"/v1/../health", b"/%68ealth", b"/health%2f",
     b"/health;x", b"/HEALTH", b"http://127.0.0.1/health", b"/health%00", b"/v1/models?/health", b"/health%3f", b""],
)  # fmt: skip
def test_what_is_open_is_open_by_its_exact_path_only(locked, raw):
    for path in ("/v1/models", "/health"):
        assert knock(locked, path, raw_path=raw, headers=[HOST]).status == (401 if raw or path != "/health" else 200), (
            raw,
            path,
        )


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_each_key_opens_as_openai_and_as_anthropic_send_it(locked, key):
    for header in ((b"authorization", b"Bearer " + key.encode()), (b"x-api-key", key.encode())):
        assert knock(locked, "/v1/models", headers=[HOST, header]).status == 200
    assert knock(locked, "/v1/models", headers=[HOST, (b"authorization", b"bearer " + key.encode())]).status == 200
    assert knock(locked, "/v1/models", headers=[HOST, (b"authorization", b"Basic " + key.encode())]).status == 401
    assert knock(locked, "/v1/models", headers=[HOST, (b"x-api-key", key.encode() + b"\xff")]).status == 401


def test_keys_are_compared_in_constant_time(monkeypatch):
    """Every one of them, by the library that is made for it."""
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    keys = Keys([KEY, OTHER_KEY])
    assert keys.owner(KEY) and keys.owner("x") is None and keys.owner(None) is None
    assert len(compared) == 6 and all(len(a) == len(b) == 32 for a, b in compared)
    assert KEY not in repr(vars(keys)) and keys.owner(KEY) != keys.owner(OTHER_KEY)


@pytest.mark.parametrize("key", ["short", "with a space in it 123", "ключ-ключ-ключ-ключ", "a" * 600])
def test_keys_that_can_be_guessed_or_sent_in_no_header_are_refused(key):
    with pytest.raises(ConfigError, match="token_urlsafe"):
        Keys([key])


# --- hosts and pages ---

MALFORMED = [
    b"", b" ", b"a b", b"127.0.0.1:", b"127.0.0.1:x", b"127.0.0.1:8000:9", b"[::1", b"::1", b"[::1]x", b"[v1.a]",
    b"127.0.0.1/health", b"a@127.0.0.1", b"127.0.0.1#", b"127.0.0.1?x", b"127.0.0.1\\@evil", b"\xff\xfe", b"a,b",
    b"127.0.0.1:999999", b"localhost%00",
]  # fmt: skip


@pytest.mark.parametrize("host", MALFORMED)
def test_a_malformed_host_is_turned_away_on_every_route(locked, host):
    for method, path in routes(locked):
        answer = knock(locked, path, method, [(b"host", host), JSON, (b"x-api-key", KEY.encode())])
        assert answer.status == 400 and answer.json["error"]["code"] == "invalid_host", (path, host)


def test_no_host_and_two_hosts_are_turned_away(locked):
    for headers in ([], [HOST, HOST]):
        assert knock(locked, "/health", headers=headers).status == 400


@pytest.mark.parametrize("host", [b"evil.example", b"127.0.0.1.evil.example", b"localhost.evil", b"0.0.0.0", b"[::]"])
def test_a_name_that_was_made_to_lead_here_is_turned_away(vlm, host):
    assert knock(create_app(service_for(vlm)), "/v1/models", headers=[(b"host", host)]).status == 421


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7", "localhost."]
)
def test_its_own_names_and_addresses_are_fine(vlm, host):
    assert knock(create_app(service_for(vlm)), "/v1/models", headers=[(b"host", host.encode())]).status == 200


def test_hosts_are_read_as_they_are_meant():
    assert [host_of(text) for text in ("Example.ORG:80", "[::1]", "[0:0::1]:5", "a_b-c.d")] == [
        "example.org", "::1", "::1", "a_b-c.d",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost", "https://127.0.0.1:9", "file://"]
)
def test_pages_of_others_may_not_ask(vlm, origin):
    app = create_app(service_for(vlm))
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("OPTIONS", CHAT)):
        answer = knock(app, path, method, [HOST, JSON, (b"origin", origin.encode())])
        assert answer.status == 403 and "access-control-allow-origin" not in answer.headers
    assert knock(app, "/v1/models", headers=[HOST, (b"origin", b"http://127.0.0.1")]).status == 200


def test_pages_that_were_allowed_may(vlm):
    app = create_app(service_for(vlm, keys=(KEY,), origins=["https://page.example"]))
    origin, ask = (b"origin", b"https://page.example"), (b"access-control-request-method", b"POST")
    wanted = (b"access-control-request-headers", b"authorization,content-type")
    before = knock(app, CHAT, "OPTIONS", [HOST, origin, ask, wanted])
    assert before.status == 200 and before.headers["access-control-allow-origin"] == "https://page.example"
    body = json.dumps(asking(user("Hi"), max_tokens=2)).encode()
    key = (b"authorization", b"Bearer " + KEY.encode())
    after = knock(app, CHAT, "POST", [HOST, JSON, origin, key], [body])
    assert after.status == 200 and after.headers["access-control-allow-origin"] == "https://page.example"
    assert {"X-Request-Id", "Retry-After"} <= {*after.headers["access-control-expose-headers"].split(", ")}
    refused = knock(app, CHAT, "POST", [HOST, JSON, origin], [body])
    assert refused.status == 401 and refused.headers["access-control-allow-origin"] == "https://page.example"
    assert "access-control-allow-credentials" not in after.headers
    assert knock(app, CHAT, "OPTIONS", [HOST, (b"origin", b"https://other.example"), ask]).status == 403


def test_websockets_are_shut(locked):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/health", "headers": [HOST]}
    asyncio.run(locked(scope, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


# --- bodies ---


@pytest.fixture(scope="module")
def small(vlm):
    return create_app(service_for(vlm, limits={"max_body": 5000}))


def test_a_body_that_says_it_is_too_large_is_not_read(small):
    """Before it is answered; and not at all from who asked whether to send it."""
    told = []

    async def send(message):
        told.append(message.get("status") or message["more_body"])

    async def receive():
        told.append("read")
        return {"type": "http.request", "body": b"x" * 6000, "more_body": told.count("read") < 3}

    for headers, wanted in (
        ([], [413, True, "read", "read", "read", False]),
        ([(b"expect", b"100-continue")], [413, True, False]),
    ):
        told.clear()
        scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"",
                 "scheme": "http", "headers": [HOST, JSON, (b"content-length", b"18000"), *headers]}  # fmt: skip
        asyncio.run(small(scope, receive, send))
        assert told == wanted


def test_a_body_that_is_thrown_away_is_not_waited_for(small, monkeypatch):
    """The end of the server would wait for it, too."""
    monkeypatch.setattr(door_module, "SILENT_SECONDS", 0.05)
    told = []

    async def send(message):
        told.append(message.get("status") or message["more_body"])

    async def receive():
        if told[-1] == "x":
            await asyncio.Event().wait()
        told.append("x")
        return {"type": "http.request", "body": b"x", "more_body": True}

    scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"",
             "scheme": "http", "headers": [HOST, JSON, (b"content-length", b"18000")]}  # fmt: skip
    asyncio.run(small(scope, receive, send))
    assert told == [413, True, "x", False]


def test_a_body_that_does_not_say_is_read_up_to_the_limit(small):
    left = [b"x" * 1000] * 50
    answer = knock(small, CHAT, "POST", None, left)
    assert answer.status == 413


def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(vlm, monkeypatch):
    app = create_app(service_for(vlm))
    monkeypatch.setattr("starlette.requests.Request.json", lambda request: pytest.fail("it was parsed"))
    for body in (b"[" + b"0," * 300_000 + b"0]", b"[{}" + b",{}" * 150_000 + b"]"):
        answer = knock(app, CHAT, "POST", None, [body])
        assert answer.status == 413 and answer.json["error"]["code"] == "too_many_values"


def test_a_body_that_dribbles_is_given_up(vlm, monkeypatch):
    service = service_for(vlm)
    monkeypatch.setattr(door_module, "BODY_SECONDS", 0.05)
    app = create_app(service)

    async def ask():
        sent = []

        async def receive():
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "headers": [HOST, JSON],
                 "query_string": b"", "scheme": "http"}  # fmt: skip
        await app(scope, receive, send)
        return sent

    sent = asyncio.run(ask())
    assert sent[0]["status"] == 408 and service.admission.inside == 0


def test_a_client_that_goes_while_it_sends_leaves_nothing(vlm):
    service = service_for(vlm)
    app = create_app(service)

    async def ask():
        async def receive():
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "headers": [HOST, JSON],
                 "query_string": b"", "scheme": "http"}  # fmt: skip
        await app(scope, receive, None)

    asyncio.run(ask())
    assert service.admission.inside == 0


# --- what comes back, whatever was asked ---


def test_every_refusal_is_of_one_shape(client):
    for method, path, status in (
        ("GET", "/nowhere", 404), ("POST", "/v1/nowhere", 404), ("GET", CHAT, 405), ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/none", 404), ("POST", CHAT, 400),
    ):  # fmt: skip
        answer = client.request(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, path
    assert client.get(CHAT).headers["allow"] == "POST"


def test_what_fails_inside_is_told_in_a_fixed_sentence(vlm, monkeypatch, caplog):
    service = service_for(vlm)
    secret = "0x7f3a secret of the inside"

    def fail(*arguments):
        raise RuntimeError(secret)

    monkeypatch.setattr(service, "_prepare", fail)
    with caplog.at_level(logging.INFO, "visglm.serve"), client_of(service) as client:
        answer = client.post(CHAT, json=asking(user("a question about Ann")))
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert secret not in answer.text and secret not in caplog.text and "Ann" not in caplog.text
    assert "RuntimeError at" in caplog.text and "test_door.py" in caplog.text


def test_the_log_tells_what_happened_and_not_what_was_said(vlm, caplog):
    with (
        caplog.at_level(logging.INFO, "visglm.serve"),
        client_of(service_for(vlm, keys=(KEY,)), KEY) as client,
    ):
        answer = client.post(CHAT, json=asking(user("a question about Ann")))
        client.get("/v1/models/Ann?key=Ann")
        client.get("/Ann")
        client.post(CHAT, json=asking(user("Ann")), headers={"Authorization": "Bearer Ann-0123456789abcdef"})
    assert answer.headers["x-request-id"] in caplog.text and f"POST {CHAT} 200" in caplog.text
    assert "GET /v1/models/{model} 404" in caplog.text and "GET - 404" in caplog.text and "POST - 401" in caplog.text
    assert "Ann" not in caplog.text and KEY not in caplog.text
    tokens = answer.json()["usage"]
    assert f"{tokens['prompt_tokens']} + {tokens['completion_tokens']} tokens" in caplog.text


def test_answers_are_kept_by_nobody_and_read_as_nothing_else(client):
    for path in ("/v1/models", "/docs", "/nowhere"):
        headers = client.get(path).headers
        assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"] and "server" not in headers
