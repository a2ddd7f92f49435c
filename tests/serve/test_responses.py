"""OpenAI's responses: the same answers, in other words, and nothing is kept."""

from __future__ import annotations

import re

import pytest

from tests.serve.knocking import EXAMPLES, MODEL, client_of, data_url, events, service_for

URL, CAT = "/v1/responses", data_url("cat.png")


def body(*items, **fields):
    return {"model": MODEL, "input": list(items), **fields}


def asked(text: str, *urls: str):
    pictures = [{"type": "input_image", "image_url": url, "detail": "auto"} for url in urls]
    return {"role": "user", "content": [*pictures, {"type": "input_text", "text": text}]}


def text_of(answer) -> str:
    assert answer.status_code == 200, answer.text
    [item] = answer.json()["output"]
    assert item["type"] == "message" and item["role"] == "assistant"
    [part] = item["content"]
    return part["text"]


def test_it_is_what_the_library_answers(client, vlm):
    reply = vlm.chat(EXAMPLES / "cat.png", "这是什么？")
    answer = client.post(URL, json=body(asked("这是什么？", CAT)))
    assert text_of(answer) == reply.text
    told = answer.json()
    assert (told["object"], told["status"], told["store"], told["error"]) == ("response", "completed", False, None)
    assert told["usage"]["input_tokens"] == reply.usage.prompt_tokens
    assert told["usage"]["total_tokens"] == reply.usage.total_tokens
    assert text_of(client.post(URL, json={"model": MODEL, "input": "你好"})) == vlm.chat(None, "你好").text


def test_settings_that_were_left_open_are_told_as_they_were_taken(client, vlm, monkeypatch):
    """The protocol has no null for them."""
    told = client.post(URL, json=body(asked("Hi"), max_output_tokens=1)).json()
    assert (told["temperature"], told["top_p"]) == (vlm.defaults["temperature"], vlm.defaults["top_p"]) == (0, 1)
    own = {"temperature": 0.7, "top_p": 0.6, "top_k": 5, "min_p": 0.0, "repetition_penalty": 1.0}
    monkeypatch.setattr(type(vlm), "defaults", property(lambda self: own))
    with client_of(service_for(vlm)) as client:
        for fields, wanted in (({}, (0.7, 0.6)), ({"temperature": 0.0}, (0.0, 0.6)), ({"top_p": 1.0}, (0.7, 1.0))):
            told = client.post(URL, json=body(asked("Hi"), max_output_tokens=1, **fields)).json()
            assert (told["temperature"], told["top_p"]) == wanted and "top_k" not in told


def test_instructions_and_answers_that_are_sent_back(client):
    first = client.post(URL, json=body(asked("What is this?", CAT))).json()["output"][0]
    items = [asked("What is this?", CAT), first, asked("What colour is it?")]
    whole = text_of(client.post(URL, json=body(*items, instructions="Be short.")))
    chat = {"model": MODEL, "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": CAT}},
                                     {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": first["content"][0]["text"]},
        {"role": "user", "content": "What colour is it?"},
    ]}  # fmt: skip
    assert whole == client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]["content"]


def test_a_stream_tells_every_step_in_order(client):
    request = body(asked("Describe the picture.", data_url("fruit.png")))
    answer = client.post(URL, json={**request, "stream": True})
    found = events(answer.text)
    assert all(name == content["type"] for name, content in found)
    assert [content["sequence_number"] for _, content in found] == list(range(len(found)))
    kinds = [name for name, _ in found]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]  # fmt: skip
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done",
                          "response.completed"]  # fmt: skip
    deltas = "".join(content["delta"] for name, content in found if name == "response.output_text.delta")
    whole = client.post(URL, json=request)
    assert deltas == text_of(whole) == found[-4][1]["text"]
    last = found[-1][1]["response"]
    assert last["usage"] == whole.json()["usage"] and last["output"][0]["content"][0]["text"] == deltas


def test_what_was_cut_is_incomplete(client):
    answer = client.post(URL, json=body(asked("Describe it.", CAT), max_output_tokens=2)).json()
    assert answer["status"] == "incomplete" and answer["incomplete_details"] == {"reason": "max_output_tokens"}
    streamed = events(client.post(URL, json=body(asked("Describe it.", CAT), max_output_tokens=2, stream=True)).text)
    assert streamed[-1][0] == "response.incomplete"


def test_answers_of_a_shape(client):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}}
    answer = client.post(URL, json=body(asked("Hi"), text=form))
    assert text_of(answer) in ('{"a": 1}', '{"a": 2}')
    assert answer.json()["text"]["format"]["schema"] == schema


def test_logprobs_where_they_are_included(client, vlm):
    include = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    [item] = client.post(URL, json=body(asked("这是什么？", CAT), **include)).json()["output"]
    told = item["content"][0]["logprobs"]
    wanted = vlm.chat(EXAMPLES / "cat.png", "这是什么？").logprobs
    assert [one["logprob"] for one in told] == pytest.approx(wanted[: len(told)], abs=1e-5)
    assert all(len(one["top_logprobs"]) == 2 for one in told)


WRONG = {
    "store": True, "previous_response_id": "resp_1", "conversation": "c", "tools": [{"type": "web_search"}],
    "background": True, "truncation": "auto", "reasoning": {"effort": "high"}, "include": ["file_search_call.results"],
    "prompt": {"id": "p"}, "top_logprobs": 3, "max_output_tokens": 0, "invented": 1, "service_tier": "flex",
    "text": {"format": {"type": "grammar"}}, "input": [], "instructions": 5,
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG)
def test_what_it_cannot_do_is_named(client, field):
    answer = client.post(URL, json=body(asked("Hi")) | {field: WRONG[field]})
    assert answer.status_code == 400 and re.split(r"[.\[]", answer.json()["error"]["param"])[0] == field, answer.text


def test_items_that_are_no_message_are_refused(client):
    for item in ({"type": "reasoning", "id": "r", "summary": []}, {"type": "function_call_output", "output": "x"},
                 {"role": "user", "content": [{"type": "input_file", "file_id": "f"}]},
                 {"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}):  # fmt: skip
        answer = client.post(URL, json=body(item, asked("Hi")))
        assert answer.status_code == 400 and answer.json()["error"]["param"].startswith("input[0]"), answer.text
