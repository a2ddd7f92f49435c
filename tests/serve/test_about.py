"""What the server tells of itself."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from tests.serve.knocking import CHAT, MODEL, asking, client_of, data_url, service_for, user
from visglm.serve import Limits, Names, Service, Settings
from visglm.serve.limits import RULES


def test_models_are_listed_and_found(client, vlm):
    [one] = client.get("/v1/models").json()["data"]
    assert one["id"] == MODEL and one["object"] == "model" and one["max_model_len"] == vlm.context_length
    assert client.get(f"/v1/models/{MODEL}").json() == one
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_a_name_may_be_a_hub_id(vlm, caplog):
    service = Service(vlm, Names(vlm, "org/model-6b"), Settings())
    with caplog.at_level("INFO", "visglm.serve"), client_of(service) as client:
        for path in ("/v1/models/org/model-6b", "/v1/models/org%2Fmodel-6b"):
            assert client.get(path).json()["id"] == "org/model-6b"
    assert "GET /v1/models/{model} 200" in caplog.text


def test_tokens_are_counted_as_they_will_be(client):
    message = user("这是什么？", data_url("cat.png"))
    counted = client.post("/tokenize", json={"messages": [message], "model": MODEL}).json()
    used = client.post(CHAT, json=asking(message, max_tokens=1)).json()["usage"]["prompt_tokens"]
    assert counted["count"] == len(counted["tokens"]) == used and counted["max_model_len"] == 512
    plain = client.post("/tokenize", json={"prompt": "Hello [gMASK] \ud83d".encode("utf-8", "replace").decode()}).json()
    assert plain["count"] > 2
    for wrong in ({}, {"prompt": "a", "messages": [message]}, {"prompt": 5}, {"prompt": "a", "model": "b"}):
        assert client.post("/tokenize", json=wrong).status_code in (400, 404)


def test_numbers_for_prometheus(vlm):
    with client_of(service_for(vlm)) as client:
        usage = client.post(CHAT, json=asking(user("Hi"))).json()["usage"]
        client.post(CHAT, json=asking(user("Hi"), stream=True))
        client.get("/nowhere/with/words")
        client.post(CHAT, json={})
        text = client.get("/metrics").text
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["visglm_requests_total", CHAT, "200"] == 2 and found["visglm_requests_total", CHAT, "400"] == 1
    assert found["visglm_requests_total", "-", "404"] == 1 and "words" not in text
    assert found["visglm_tokens_total", "completion"] == 2 * usage["completion_tokens"]
    assert found["visglm_tokens_total", "prompt"] == 2 * usage["prompt_tokens"]
    assert found["visglm_first_token_seconds_count",] == 2 and found["visglm_requests_in_flight",] == 1


def test_the_page_about_it_needs_no_other_host_and_no_script(client):
    page = client.get("/docs").text
    assert not re.search(r"<script|https?://|@import|<link", page)
    for route in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize", "/health"):
        assert route in page
    assert "top_logprobs" in page and "extension: the answer is the likeliest of these" in page


def test_the_schema_tells_what_is_possible_and_no_more(client):
    schema = client.get("/openapi.json").json()
    body = schema["components"]["schemas"]["ChatRequest"]
    for name in ("ChatRequest", "ResponsesRequest", "MessagesRequest", "TokenizeRequest", "LegacyRequest"):
        [example] = schema["components"]["schemas"][name]["examples"]
        [path] = [
            path for path, ways in schema["paths"].items() if name in str(ways.get("post", {}).get("requestBody"))
        ]
        assert client.post(path, json=example).status_code == 200, path
    assert body["additionalProperties"] is False and "tools" not in body["properties"]
    assert "422" not in schema["paths"][CHAT]["post"]["responses"]


def test_every_limit_has_a_rule():
    assert set(vars(Limits())) == set(RULES)
