"""Anthropic's messages: the same answers in their words, errors in theirs."""

from __future__ import annotations

import pytest

from tests.serve.knocking import EXAMPLES, KEY, MODEL, client_of, data_url, events, service_for

URL, CAT = "/v1/messages", data_url("cat.png")


def block(url: str):
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}}


def body(text: str, *urls: str, **fields):
    content = [*map(block, urls), {"type": "text", "text": text}]
    return {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": content}], **fields}


def test_it_is_what_the_library_answers(client, vlm):
    reply = vlm.chat(EXAMPLES / "cat.png", "Be short.\n这是什么？")
    answer = client.post(URL, json=body("这是什么？", CAT, system="Be short.")).json()
    assert answer["content"] == [{"type": "text", "text": reply.text, "citations": None}]
    assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", MODEL)
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    used = answer["usage"]
    assert (used["input_tokens"], used["output_tokens"]) == (reply.usage.prompt_tokens, reply.usage.completion_tokens)


@pytest.mark.parametrize("streams", [False, True])
def test_why_it_stopped(client, streams):
    for fields, reason in (
        ({"stop_sequences": ["zebra", "objects", "2 objects"]}, ("stop_sequence", "2 objects")),
        ({"max_tokens": 2}, ("max_tokens", None)),
        ({}, ("end_turn", None)),
    ):
        answer = client.post(
            URL, json=body("How many objects are there?", data_url("pair.png"), **fields, stream=streams)
        )
        told = events(answer.text)[-2][1]["delta"] if streams else answer.json()
        assert (told["stop_reason"], told["stop_sequence"]) == reason


def test_a_stream_tells_every_step_in_order(client):
    request = body("Describe the picture.", data_url("fruit.png"))
    found = events(client.post(URL, json={**request, "stream": True}).text)
    assert all(name == content["type"] for name, content in found)
    kinds = [name for name, _ in found]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    whole = client.post(URL, json=request).json()
    deltas = "".join(content["delta"]["text"] for name, content in found if name == "content_block_delta")
    assert deltas == whole["content"][0]["text"] and len(kinds) > 8
    assert found[0][1]["message"]["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    assert found[-2][1]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


WRONG = {
    "tools": [{"name": "f", "input_schema": {}}], "thinking": {"type": "enabled", "budget_tokens": 1024},
    "max_tokens": 0, "temperature": 1.5, "stop_sequences": [""], "invented": 1, "container": "c",
    "system": 5, "mcp_servers": [{}],
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG)
def test_what_it_cannot_do_is_named_in_their_shape(client, field):
    answer = client.post(URL, json=body("Hi") | {field: WRONG[field]})
    told = answer.json()
    assert answer.status_code == 400 and told["type"] == "error" and told["error"]["type"] == "invalid_request_error"
    assert field in told["error"]["message"] + str(told["error"]["param"]), answer.text


def test_other_errors_are_theirs_too(client, vlm):
    del_ = body("Hi")
    del del_["max_tokens"]
    assert client.post(URL, json=del_).json()["error"]["message"] == "max_tokens is missing."
    assert client.post(URL, json=body("Hi", model="claude")).json()["error"]["type"] == "not_found_error"
    prefilled = body("Hi")
    prefilled["messages"].append({"role": "assistant", "content": "The"})
    assert client.post(URL, json=prefilled).status_code == 400
    with client_of(service_for(vlm, keys=(KEY,))) as locked:
        answer = locked.post(URL, json=body("Hi"))
        assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
        assert locked.post(URL, json=body("Hi", max_tokens=1), headers={"x-api-key": KEY}).status_code == 200
