"""Answers in the shape of a schema or an expression, by whatever tokens and chances."""

from __future__ import annotations

import json
import random
import re
import sys

import pytest

from visglm import VisGLM
from visglm.errors import ConfigError, MissingDependencyError
from visglm.sampling import MOST_BIASES

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "名称": {"enum": ["猫", "狗", "老虎"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 20},
        "colours": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
        "sure": {"type": "boolean"},
    },
    "required": ["名称", "count", "colours", "sure"],
    "additionalProperties": False,
}
EXPRESSIONS = (r"(yes|no), [0-9]{1,3} of them", r"[猫狗]/[a-z]{2}", r"\d{4}-\d{2}", r"a\/b|c d\n")


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained(device="cpu")


def fits(found) -> bool:
    return (
        list(found) == SCHEMA["required"]
        and found["名称"] in SCHEMA["properties"]["名称"]["enum"]
        and found["count"] in range(21)
        and len(found["colours"]) <= 2
        and {*found["colours"]} <= {"red", "blue"}
        and isinstance(found["sure"], bool)
    )


def test_json_is_valid_however_it_is_drawn(vlm):
    settings = [{}, *({"temperature": 5.0, "seed": seed} for seed in range(12)), {"repetition_penalty": 3.0}]
    found = [vlm.chat(None, "What is it?", json_schema=SCHEMA, **setting) for setting in settings]
    for reply in found:
        assert fits(reply.parsed) and json.loads(reply.text) == reply.parsed and reply.finish_reason == "stop"
    assert len({reply.text for reply in found}) > 6


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_is_matched_whole(vlm, expression):
    for setting in ({}, {"temperature": 5.0, "seed": 1}, {"temperature": 5.0, "seed": 2}):
        reply = vlm.chat(None, "Say it.", regex=expression, **setting)
        assert re.fullmatch(expression.strip(), reply.text) or re.fullmatch(expression, reply.text + "\n")


def test_shapes_differ_in_one_batch_and_are_streamed(vlm):
    single = vlm.chat(None, "What is it?", json_schema=SCHEMA)
    stream = vlm.stream_chat(None, "What is it?", json_schema=json.dumps(SCHEMA))
    assert "".join(stream) == stream.reply.text == single.text and stream.reply.parsed == single.parsed
    free = vlm.chat(None, "Hello")
    for reply in vlm.batch([(None, "What is it?")] * 3, json_schema=SCHEMA, progress=False):
        assert reply == single
    assert vlm.chat(None, "Hello") == free
    several = vlm.chat(None, "What is it?", json_schema=SCHEMA, n=3, temperature=3.0, seed=1)
    assert all(fits(reply.parsed) for reply in (several, *several.others))


def test_what_is_cut_short_is_not_parsed(vlm):
    reply = vlm.chat(None, "What is it?", json_schema=SCHEMA, max_new_tokens=4)
    assert reply.finish_reason == "length" and reply.parsed is None and reply.text.startswith("{")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"regex": "("}, "regex cannot be used"),
        ({"regex": "a" * 70_000}, "up to 65536 characters"),
        ({"regex": 3}, "regex must be"),
        ({"json_schema": "{"}, "no JSON"),
        ({"json_schema": [1]}, "must be a JSON object"),
        ({"json_schema": {"type": "what"}}, "json_schema cannot be used"),
        ({"json_schema": {"a": {1, 2}}}, "no JSON"),
        ({"json_schema": {"type": "string", "pattern": "("}}, "json_schema cannot be used"),
        ({"json_schema": {"type": "string"}, "regex": "a"}, "one shape"),
        ({"choices": ["a", "b"], "regex": "a"}, "one shape"),
        ({"regex": "a", "min_new_tokens": 4}, "min_new_tokens"),
    ],
)
def test_wrong_shapes_are_told(vlm, settings, message):
    with pytest.raises(ConfigError, match=message):
        vlm.chat(None, "Hello", **settings)
    assert vlm._turns.is_free


def test_without_the_library_it_is_named(vlm, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingDependencyError, match=r"visglm\[shapes\]"):
        vlm.chat(None, "Hello", regex="a+")


def test_a_bias_that_leaves_nothing_is_an_error_of_its_own(vlm):
    token = vlm.chat(None, "Say it.", regex="a").ids
    with pytest.raises(Exception, match="shape"):
        vlm.chat(None, "Say it.", regex="zq", logit_bias=dict.fromkeys(range(MOST_BIASES), -100.0))
    assert vlm.chat(None, "Say it.", regex="a").ids == token


def test_random_walks_spell_what_the_tokenizer_decodes(vlm):
    """The table of bytes against the tokenizer's own words, over random tokens."""
    from visglm.tokenizers import token_bytes

    spelled = token_bytes(vlm.tokenizer, vlm.model.config.text_config.vocab_size)
    dice = random.Random(0)
    writing = [number for number, token in enumerate(spelled) if token]
    assert len(writing) > 3000
    for _ in range(200):
        ids = dice.choices(writing, k=12)
        text = b"".join(spelled[number] for number in ids).decode("utf-8", "replace")
        assert vlm.tokenizer.decode(ids).strip() == text.strip()
