"""`POST /` answers those who call VisualGLM-6B's own server."""

from __future__ import annotations

import re

from tests.serve.knocking import EXAMPLES, data_url

CAT = data_url("cat.png").partition(",")[2]
GREEDY = {"temperature": 0, "repetition_penalty": 1.0}


def test_a_picture_a_question_and_what_was_said(client, vlm):
    first = vlm.chat(EXAMPLES / "cat.png", "这是什么？")
    answer = client.post("/", json={"image": CAT, "text": "这是什么？", "history": [], **GREEDY})
    told = answer.json()
    assert answer.status_code == 200 and told["result"] == told["response"] == first.text
    assert told["history"] == [["这是什么？", first.text]] and told["status"] == 200
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", told["time"])
    second = vlm.chat(None, "它是什么颜色？", first.history)
    again = client.post("/", json={"image": CAT, "text": "它是什么颜色？", "history": told["history"], **GREEDY}).json()
    assert again["result"] == second.text and len(again["history"]) == 2


def test_it_draws_as_that_server_did(client):
    from visglm.serve.visualglm import LegacyRequest

    sent = LegacyRequest(text="x")
    assert (sent.temperature, sent.top_p, sent.top_k, sent.repetition_penalty) == (0.8, 0.4, 100, 1.2)
    assert (
        client.post("/", json={"image": CAT, "text": "这是什么？", "history": [], "max_length": 30}).status_code == 200
    )


def test_no_file_is_opened_and_no_address_fetched(client):
    for image in ("/etc/hostname", "examples/cat.png", "http://127.0.0.1/x.png", "not base64!", "AAAA"):
        answer = client.post("/", json={"image": image, "text": "这是什么？", "history": []})
        assert answer.status_code == 400 and "error" in answer.json(), image
    assert client.post("/", json={"text": "你好", "history": [["a"]]}).status_code == 400
    assert client.post("/", json={"text": "你好", "num_beams": 4}).json()["error"]["param"] == "num_beams"
