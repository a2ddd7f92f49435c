"""Clients of others ask about pictures, and get what they expect."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest

from tests.serve.knocking import KEY, MODEL, data_url, user

pytestmark = pytest.mark.clients
CAT, PAIR = data_url("cat.png"), data_url("pair.png")


# --- openai ---


@pytest.fixture
def openai_client(url):
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_openai_asks_about_pictures(openai_client):
    answer = openai_client.chat.completions.create(
        model=MODEL, messages=[user("这是什么？", CAT)], logprobs=True, top_logprobs=2, seed=5
    )
    assert answer.choices[0].message.content == "这是猫。" and answer.usage.total_tokens > 20
    assert answer.choices[0].logprobs.content[0].top_logprobs
    assert [model.id for model in openai_client.models.list()] == [MODEL]
    assert openai_client.models.retrieve(MODEL).owned_by == "visglm"
    scored = openai_client.chat.completions.create(
        model=MODEL, messages=[user("这是什么？", CAT)], extra_body={"choices": ["猫", "狗"]}
    )
    assert scored.choices[0].scores["猫"] > 0.9


def test_openai_streams(openai_client):
    chunks = list(
        openai_client.chat.completions.create(
            model=MODEL, messages=[user("How many objects are there?", PAIR)], stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "There are 2 objects." and chunks[-1].usage.completion_tokens > 3
    with openai_client.chat.completions.stream(model=MODEL, messages=[user("这是什么？", CAT)]) as stream:
        assert stream.get_final_completion().choices[0].message.content == "这是猫。"


def test_openai_asks_many_at_a_time(url):
    import openai

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(model=MODEL, messages=[user("这是什么？", CAT)]) for _ in range(12))
            )
            stream = await client.chat.completions.create(model=MODEL, messages=[user("这是什么？", CAT)], stream=True)
            streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return [answer.choices[0].message.content for answer in answers] + [streamed]

    assert asyncio.run(ask()) == ["这是猫。"] * 13


def test_openai_parses_answers_of_a_shape(openai_client):
    from pydantic import BaseModel

    class Seen(BaseModel):
        animal: Literal["cat", "dog"]
        is_tame: bool

    answer = openai_client.chat.completions.parse(
        model=MODEL, messages=[user("What is this?", CAT)], response_format=Seen
    )
    assert isinstance(answer.choices[0].message.parsed, Seen)
    told = openai_client.responses.parse(model=MODEL, input="What is this?", text_format=Seen)
    assert isinstance(told.output_parsed, Seen)


def test_openai_asks_for_responses(openai_client):
    content = [{"type": "input_image", "image_url": CAT}, {"type": "input_text", "text": "这是什么？"}]
    asked = {"model": MODEL, "input": [{"role": "user", "content": content}]}
    answer = openai_client.responses.create(**asked)
    assert answer.output_text == "这是猫。" and answer.status == "completed"
    events = list(openai_client.responses.create(**asked, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "这是猫。"
    with openai_client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_text == "这是猫。"


def test_openai_understands_refusals(openai_client, url):
    import openai

    def ask(**fields):
        openai_client.chat.completions.create(**{"model": MODEL, "messages": [user("Hi")], **fields})

    with pytest.raises(openai.BadRequestError) as caught:
        ask(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    assert caught.value.param == "tools" and caught.value.code == "unsupported_field" and caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        ask(model="gpt-7")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="another-key-0123").models.list()


# --- others ---


def test_anthropic_asks_streams_and_understands_refusals(url):
    import anthropic

    source = {"type": "base64", "media_type": "image/png", "data": CAT.partition(",")[2]}
    messages = [
        {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "这是什么？"}]}
    ]
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as client:
        answer = client.messages.create(model=MODEL, max_tokens=100, messages=messages)
        assert answer.content[0].text == "这是猫。" and answer.stop_reason == "end_turn"
        with client.messages.stream(model=MODEL, max_tokens=100, messages=messages) as stream:
            assert "".join(stream.text_stream) == "这是猫。"
            assert stream.get_final_message().usage == answer.usage
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(model=MODEL, max_tokens=0, messages=messages)
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=url, api_key="another-key-0123").messages.create(
            model=MODEL, max_tokens=5, messages=messages
        )


def test_langchain_asks_and_streams(url):
    from langchain_core.messages import HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=f"{url}/v1", api_key=KEY, model=MODEL, max_retries=0, temperature=0)
    messages = [HumanMessage(user("这是什么？", CAT)["content"])]
    assert model.invoke(messages).content == "这是猫。"
    assert "".join(str(chunk.content) for chunk in model.stream(messages)) == "这是猫。"
    assert model.invoke([SystemMessage("Be short."), *messages]).usage_metadata["total_tokens"] > 20


def test_instructor_gets_objects(url):
    import instructor
    import openai
    from pydantic import BaseModel, ConfigDict

    class Seen(BaseModel):
        model_config = ConfigDict(extra="forbid")
        animal: Literal["cat", "dog"]

    plain = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY)
    client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
    seen = client.chat.completions.create(model=MODEL, messages=[user("What is this?", CAT)], response_model=Seen)
    assert isinstance(seen, Seen)
