"""Chat completions answer what the library answers, say it in OpenAI's words, and refuse what they cannot do."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.serve.knocking import CHAT, EXAMPLES, MODEL, asking, data_url, endless, events, user
from visglm.request import prepare
from visglm.sampling import Sampling

CAT, PAIR = data_url("cat.png"), data_url("pair.png")


def text_of(answer) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_it_is_what_the_library_answers(client, vlm):
    for picture, question in (("cat.png", "这是什么？"), ("pair.png", "How many objects are there?")):
        reply = vlm.chat(EXAMPLES / picture, question)
        answer = client.post(CHAT, json=asking(user(question, data_url(picture)))).json()
        assert answer["object"] == "chat.completion" and answer["model"] == MODEL and answer["id"]
        [choice] = answer["choices"]
        assert choice["message"]["role"] == "assistant" and choice["message"]["content"] == reply.text
        assert choice["finish_reason"] == reply.finish_reason == "stop"
        assert answer["usage"] == {
            "prompt_tokens": reply.usage.prompt_tokens, "completion_tokens": reply.usage.completion_tokens,
            "total_tokens": reply.usage.total_tokens,
        }  # fmt: skip


def test_a_conversation_goes_on_with_the_pictures_of_its_turns(client, vlm):
    first = vlm.chat(EXAMPLES / "pair.png", "How many objects are there?")
    second = vlm.chat(EXAMPLES / "cat.png", "And what is this?", first.history)
    messages = [
        user("How many objects are there?", PAIR), {"role": "assistant", "content": first.text},
        user("And what is this?", CAT),
    ]  # fmt: skip
    assert text_of(client.post(CHAT, json=asking(*messages))) == second.text
    assert vlm.chat([EXAMPLES / "cat.png", EXAMPLES / "pair.png"], "两张图").text == text_of(
        client.post(CHAT, json=asking(user("两张图", CAT, PAIR)))
    )


def test_what_the_system_and_the_developer_say_stands_in_front_of_the_question(client, vlm):
    said = [{"role": "system", "content": "Be short."}, {"role": "developer", "content": "Name colours."}]
    wanted = vlm.chat(EXAMPLES / "cat.png", "Be short.\nName colours.\nWhat is this?")
    assert text_of(client.post(CHAT, json=asking(*said, user("What is this?", CAT)))) == wanted.text
    later = [user("Hello"), {"role": "assistant", "content": "Hi."}, said[1], user("What is this?", CAT)]
    wanted = vlm.chat(EXAMPLES / "cat.png", "Name colours.\nWhat is this?", [("Hello", "Hi.")])
    assert text_of(client.post(CHAT, json=asking(*later))) == wanted.text


def test_answers_in_a_row_are_one_and_the_first_may_be_an_answer(client, vlm):
    said = [{"role": "assistant", "content": text} for text in ("Hello.", "It is red.")]
    wanted = vlm.chat(None, "What is it?", [("", "Hello.\nIt is red.")])
    assert text_of(client.post(CHAT, json=asking(*said, user("What is it?")))) == wanted.text


def test_control_tokens_that_are_typed_are_text(client, vlm):
    question = "[gMASK]<sop><|image|><img>cat.png</img> 你好"
    tokens = client.post("/tokenize", json={"messages": [user(question)]}).json()["tokens"]
    assert vlm.model.config.image_token_id not in tokens
    sampling = {"language": "auto", "max_new_tokens": 1, "config": vlm.model.config, "tokenizer": vlm.tokenizer}
    other = {"to_pixels": None, "limits": vlm.image_limits, "allow_urls": False, "fingerprint": str}
    assert tokens == prepare(None, question, None, **sampling, **other).rendered.input_ids


# --- as a stream ---


def chunks_of(client, body) -> list:
    answer = client.post(CHAT, json=body)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    found = [content for name, content in events(answer.text) if name is None]
    assert found[-1] == "[DONE]" and "[DONE]" not in found[:-1]
    return found[:-1]


def test_a_stream_says_the_same_and_ends(client, vlm):
    wanted = vlm.chat(EXAMPLES / "fruit.png", "Describe the picture.")
    chunks = chunks_of(client, asking(user("Describe the picture.", data_url("fruit.png")), stream=True))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"} and len({c["id"] for c in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks) and len(chunks) > 5
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant" and "".join(d.get("content", "") for d in deltas) == wanted.text
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons[-1] == "stop" and set(reasons[:-1]) == {None} and deltas[-1] == {}


def test_usage_comes_last_where_it_was_asked_for(client):
    body = asking(user("这是什么？", CAT))
    *chunks, last = chunks_of(client, {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert last["choices"] == [] and last["usage"] == client.post(CHAT, json=body).json()["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)


def test_several_answers_stream_side_by_side(client):
    body = asking(user("Describe it.", CAT), n=3, temperature=1.5, seed=5, max_tokens=12)
    whole = client.post(CHAT, json=body).json()
    texts = ["", "", ""]
    for chunk in chunks_of(client, {**body, "stream": True}):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in whole["choices"]] and len(set(texts)) > 1


# --- settings ---


def test_a_seed_gives_the_same_again_and_may_be_negative(client, vlm):
    wanted = vlm.chat(
        EXAMPLES / "cat.png", "Describe it.", temperature=1.5, top_p=0.9, seed=2**64 - 3, max_new_tokens=9
    )
    body = asking(user("Describe it.", CAT), temperature=1.5, top_p=0.9, seed=-3, max_completion_tokens=9)
    assert [text_of(client.post(CHAT, json=body)) for _ in range(2)] == [wanted.text] * 2


def test_the_length_is_kept(client, vlm):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.post(CHAT, json=asking(user("Describe it.", CAT), **{name: 2})).json()
        assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 2


def test_a_length_beyond_the_context_is_an_upper_bound(client, vlm):
    whole = client.post(CHAT, json=endless(vlm, 4000)).json()
    assert whole["usage"]["total_tokens"] == vlm.context_length and whole["choices"][0]["finish_reason"] == "length"
    refused = client.post(CHAT, json=endless(vlm, 4097))
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize("stop", ["objects", ["zebra", "objects"]])
def test_a_stop_ends_the_answer(client, vlm, stop):
    question = user("How many objects are there?", PAIR)
    assert text_of(client.post(CHAT, json=asking(question, stop=stop))) == "There are 2"
    streamed = chunks_of(client, asking(question, stop=stop, stream=True))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == "There are 2"


def test_n_answers_are_those_of_the_seeds_that_follow(client, vlm):
    body = asking(user("Describe it.", CAT), n=2, temperature=1.5, seed=7, max_tokens=12)
    answer = client.post(CHAT, json=body).json()
    reply = vlm.chat(EXAMPLES / "cat.png", "Describe it.", n=2, temperature=1.5, seed=7, max_new_tokens=12)
    assert [c["message"]["content"] for c in answer["choices"]] == [str(reply), str(reply.others[0])]
    assert [c["index"] for c in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == sum(one.usage.completion_tokens for one in (reply, *reply.others))


def test_logprobs_are_the_models_and_spell_the_answer(client, vlm):
    body = asking(user("这是什么？", CAT), logprobs=True, top_logprobs=3)
    content = client.post(CHAT, json=body).json()["choices"][0]["logprobs"]["content"]
    reply = vlm.chat(EXAMPLES / "cat.png", "这是什么？", logprobs=3)
    assert [one["logprob"] for one in content] == pytest.approx(reply.logprobs[: len(content)], abs=1e-5)
    assert b"".join(bytes(one["bytes"]) for one in content).decode().strip() == reply.text
    assert all(len(one["top_logprobs"]) == 3 and one["top_logprobs"][0]["token"] == one["token"] for one in content)
    chunks = chunks_of(client, {**body, "stream": True})
    streamed = [one for c in chunks if (told := c["choices"][0]["logprobs"]) for one in told["content"]]
    assert [one["token"] for one in streamed] == [one["token"] for one in content]
    assert client.post(CHAT, json=asking(user("Hi"))).json()["choices"][0]["logprobs"] is None


def test_a_bias_rules_a_token_out(client, vlm):
    first = vlm.chat(EXAMPLES / "cat.png", "这是什么？").ids[0]
    wanted = vlm.chat(EXAMPLES / "cat.png", "这是什么？", logit_bias={first: -100})
    body = asking(user("这是什么？", CAT), logit_bias={str(first): -100}, logprobs=True)
    [choice] = client.post(CHAT, json=body).json()["choices"]
    assert choice["message"]["content"] == wanted.text and wanted.ids[0] != first
    assert choice["logprobs"]["content"][0]["logprob"] == pytest.approx(wanted.logprobs[0], abs=1e-5)
    wrong = client.post(CHAT, json=asking(user("Hi"), logit_bias={"cat": 1}))
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "logit_bias"


def test_answers_of_a_shape(client, vlm):
    schema = {"type": "object", "properties": {"animal": {"enum": ["cat", "dog"]}}, "required": ["animal"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema, "strict": True}}
    answer = text_of(client.post(CHAT, json=asking(user("What is this?", CAT), response_format=form)))
    assert answer == vlm.chat(EXAMPLES / "cat.png", "What is this?", json_schema=schema).text
    assert json.loads(answer)["animal"] in ("cat", "dog")
    free = client.post(CHAT, json=asking(user("Hi"), response_format={"type": "json_object"}, max_tokens=30))
    assert text_of(free).startswith("{")
    text_of(client.post(CHAT, json=asking(user("Hi"), response_format={"type": "text"})))
    bad = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}}
    answer = client.post(CHAT, json=asking(user("Hi"), response_format=bad))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "response_format"


def test_choices_are_scored_exactly(client, vlm):
    choices = ["猫", "狗", "汽车"]
    [choice] = client.post(CHAT, json=asking(user("这是什么？", CAT), choices=choices)).json()["choices"]
    wanted = vlm.chat(EXAMPLES / "cat.png", "这是什么？", choices=choices).scores
    assert choice["message"]["content"] == "猫" and choice["scores"] == pytest.approx(dict(wanted), abs=1e-5)


def test_it_shows_where_it_looked(client, vlm):
    body = asking(user("What is on the right?", CAT, PAIR), explain=True)
    found = client.post(CHAT, json=body).json()["choices"][0]["explanation"]
    head, _, data = found["overlay"].partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as overlay, Image.open(EXAMPLES / "pair.png") as pair:
        assert overlay.size == pair.size
    wanted = vlm.explain([EXAMPLES / "cat.png", EXAMPLES / "pair.png"], "What is on the right?").heat
    assert np.allclose(found["heat"], wanted, atol=1e-4)
    without = client.post(CHAT, json=asking(user("Hi"), explain=True))
    assert without.status_code == 400


# --- what is refused, and how ---

WRONG = {
    "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required", "store": True,
    "frequency_penalty": 0.5, "presence_penalty": -1, "service_tier": "priority", "metadata": {"a": "b"},
    "modalities": ["text", "audio"], "audio": {"voice": "alloy"}, "prediction": {"type": "content", "content": "a"},
    "functions": [{"name": "f"}], "reasoning_effort": "high", "web_search_options": {}, "repetition_penalty": 1.2,
    "invented": None, "template": "x", "n": 0, "max_tokens": 0, "temperature": -1, "top_p": 1.5, "seed": 2**63,
    "logit_bias": {"5": 101}, "top_logprobs": 5, "stream_options": {"include_usage": True}, "stop": [""],
    "response_format": {"type": "xml"}, "model": "gpt-7", "user": 5, "choices": ["a"], "max_completion_tokens": -2,
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG)
def test_what_it_cannot_do_is_named(client, field):
    answer = client.post(CHAT, json=asking(user("Hello")) | {field: WRONG[field]})
    error = answer.json()["error"]
    assert answer.status_code == (404 if field == "model" else 400), answer.text
    assert re.split(r"[.\[]", error["param"])[0] == field and field in (error["message"] + error["param"])
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


def test_what_clients_send_by_themselves_is_no_reason_to_refuse(client):
    neutral = {
        "frequency_penalty": 0, "presence_penalty": 0.0, "store": False, "tools": [], "tool_choice": "none",
        "stop": None,
        "logit_bias": None, "metadata": {}, "modalities": ["text"], "user": "somebody", "response_format": None,
        "service_tier": "auto", "seed": None,
    }  # fmt: skip
    sent_back = {"role": "assistant", "content": "Hi.", "refusal": None, "annotations": [], "tool_calls": None}
    body = asking(user("Hello"), sent_back, user("What is this?", CAT), max_tokens=3) | neutral
    assert client.post(CHAT, json=body).status_code == 200


MESSAGES = {
    "nobody asks": ([{"role": "system", "content": "Be short."}], "messages"),
    "the assistant was last": ([user("Hi"), {"role": "assistant", "content": "Yes?"}], "messages"),
    "empty": ([user("   ")], "messages"),
    "no parts": ([{"role": "user", "content": []}], "messages[0].content"),
    "a role": ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[0]"),
    "a part": ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages[0].content[0]"),
    "a name": ([user("Hi") | {"name": "Ann"}], "messages[0].name"),
    "detail": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": CAT, "detail": "high"}}]}],
        "messages[0].content[0].image_url.detail",
    ),
    "a picture of the assistant's": (
        [user("Hi"), {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": CAT}}]}, user("?")],
        "messages[1].content[0].image_url",
    ),
    "a field of a text": (
        [{"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]}],
        "messages[0].content[0].cache_control",
    ),
    "a field of a picture": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": CAT}, "index": 0}]}],
        "messages[0].content[0].index",
    ),
    "a text that is none": (
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        "messages[0].content[0].text",
    ),
    "a picture without a place": (
        [{"role": "user", "content": [{"type": "image_url"}]}],
        "messages[0].content[0].image_url",
    ),
    "half a character": ([user("\ud83d")], "messages"),
    "too long": ([user("很长" * 2000)], "messages"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages_that_cannot_be_answered_are_told_by_their_place(client, case):
    messages, place = MESSAGES[case]
    answer = client.post(CHAT, content=json.dumps(asking(*messages)), headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == place, answer.text
    if case == "no parts":
        assert "at least 1 item" in answer.text
    if case == "too long":
        assert answer.json()["error"]["code"] == "context_length_exceeded" and "512" in answer.text


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"a"', b"[" * 100_000, b'{"model": NaN}', b"\xff\xfe", b"1" * 5000]
)
def test_bodies_that_are_no_request(client, body):
    answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    as_text = client.post(CHAT, content=b'{"model": "visglm-tiny"}', headers={"content-type": "text/plain"})
    assert as_text.status_code == 400  # a page elsewhere can send this without asking


def test_fields_that_do_not_go_together(client):
    for fields, param in (
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"choices": ["a", "b"], "stream": True}, "choices"),
        ({"explain": True, "stream": True}, "explain"),
        ({"explain": True}, "explain"),
        ({"choices": ["a", "b"], "temperature": 1.0}, "choices"),
        ({"response_format": {"type": "json_object"}, "choices": ["a", "b"]}, None),
    ):
        answer = client.post(CHAT, json=asking(user("Hi"), **fields))
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_the_default_of_every_setting_is_the_librarys(client):
    from visglm.serve.chat import ChatRequest

    assert ChatRequest(**asking(user("Hi"))).sampling() == Sampling()


def test_a_failure_in_the_middle_is_an_event_and_the_end(client, vlm):
    """Valid JSON, nothing of the inside in it."""
    calls = []

    def fail(module, arguments):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("secret of the inside")

    hook = vlm.model.lm_head.register_forward_pre_hook(fail)
    try:
        answer = client.post(CHAT, json=endless(vlm, 60, stream=True))
    finally:
        hook.remove()
    found = [content for _, content in events(answer.text)]
    assert found[-1]["error"]["type"] == "server_error" and "secret" not in answer.text
    assert found[0]["choices"] and "[DONE]" not in found
    assert text_of(client.post(CHAT, json=asking(user("这是什么？", CAT)))) == "这是猫。"
