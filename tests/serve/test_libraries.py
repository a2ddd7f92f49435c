"""Chat completions from a library: what the library answers, with its sources, and nothing of where it lies."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("lancedb", reason="libraries need the extra library")

from tests.library import samples
from tests.serve.knocking import CHAT, EXAMPLES, asking, client_of, data_url, events, knock, service_for, user
from visglm import Library, VisGLM
from visglm.cli import main
from visglm.errors import LibraryError
from visglm.serve import create_app

QUESTION = "How much do tickets cost?"
TICKETS = "Tickets cost eleven euros."


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("secret")
    files = where / "files"
    files.mkdir()
    (files / "museum.pdf").write_bytes(samples.pdf([(50, 100, "Welcome.")], [(50, 300, TICKETS)]))
    shutil.copy(EXAMPLES / "cat.png", files)
    assert not Library.open(where / "notes", vectors=False).add(files, progress=False).skipped
    return where


@pytest.fixture(scope="module")
def client(vlm, folder):
    with client_of(service_for(vlm, libraries={"notes": str(folder / "notes")})) as client:
        yield client


def test_an_answer_says_where_it_comes_from(client, vlm, folder):
    reply = vlm.ask(QUESTION, library=folder / "notes")
    answer = client.post(CHAT, json=asking(user(QUESTION), library="notes")).json()
    message = answer["choices"][0]["message"]
    assert message["content"] == reply.text == f"{TICKETS} [1]"
    [citation] = message["citations"]
    assert (citation["source"], citation["page"], citation["quote"]) == ("museum.pdf", 2, TICKETS)
    assert citation["box"] == pytest.approx(list(reply.citations[0].box))
    assert answer["choices"][0]["finish_reason"] == "stop" and answer["usage"]["total_tokens"] == 0
    assert "secret" not in json.dumps(answer), "how folders of the server are called is told to nobody"


def test_what_the_system_says_and_earlier_turns_are_not_looked_for(client):
    messages = [
        {"role": "system", "content": "You are a pirate."}, user("What is the cat called?"),
        {"role": "assistant", "content": "Oscar."}, user(QUESTION),
    ]  # fmt: skip
    answer = client.post(CHAT, json=asking(*messages, library="notes")).json()
    assert answer["choices"][0]["message"]["content"] == f"{TICKETS} [1]"


def test_a_picture_is_looked_for(client):
    answer = client.post(CHAT, json=asking(user("Where is this?", data_url("cat.png")), library="notes"))
    assert answer.json()["choices"][0]["message"]["citations"][0]["source"] == "cat.png"
    two = client.post(CHAT, json=asking(user("x", data_url("cat.png"), data_url("pair.png")), library="notes"))
    assert two.status_code == 400 and "one picture" in two.json()["error"]["message"]


def test_nothing_found_is_an_answer(client):
    message = client.post(CHAT, json=asking(user("谁发明了飞机？"), library="notes")).json()["choices"][0]["message"]
    assert (message["content"], message["citations"]) == ("资料中没有找到相关内容。", [])


def test_as_a_stream(client):
    whole = client.post(CHAT, json=asking(user(QUESTION), library="notes")).json()["choices"][0]["message"]
    body = asking(user(QUESTION), library="notes", stream=True, stream_options={"include_usage": True})
    told = [content for _, content in events(client.post(CHAT, json=body).text)]
    assert told[-1] == "[DONE]" and told[-2]["usage"]["total_tokens"] == 0
    deltas = [one["choices"][0]["delta"] for one in told[:-2]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == whole["content"]
    assert [delta["citations"] for delta in deltas if "citations" in delta] == [whole["citations"]]
    assert told[-3]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["other", "../notes", "/etc", "notes.library", ""])
def test_a_request_names_a_library_and_no_file(client, folder, name):
    for library in (name, str(folder / "notes")):
        refused = client.post(CHAT, json=asking(user(QUESTION), library=library))
        error = refused.json()["error"]
        assert refused.status_code in (400, 404) and error["param"] == "library" and "secret" not in error["message"]
    assert client.post(CHAT, json=asking(user(QUESTION), library="other")).json()["error"] == {
        "message": "There is no such library here. There are: notes.", "type": "invalid_request_error",
        "param": "library", "code": "library_not_found",
    }  # fmt: skip


@pytest.mark.parametrize(
    "param, value",
    [
        ("n", 2), ("logprobs", True), ("choices", ["a", "b"]), ("explain", True),
        ("response_format", {"type": "json_object"}),
    ],
)  # fmt: skip
def test_what_does_not_go_with_it_is_refused_by_name(client, param, value):
    refused = client.post(CHAT, json=asking(user(QUESTION), library="notes", **{param: value}))
    assert refused.status_code == 400 and refused.json()["error"]["param"] == param


def test_what_there_is_is_listed(client, vlm):
    [card] = client.get("/v1/models").json()["data"]
    assert card["libraries"] == ["notes"] and "library" in client.get("/docs").text
    with client_of(service_for(vlm)) as bare:
        assert "libraries" not in bare.get("/v1/models").json()["data"][0]
        error = bare.post(CHAT, json=asking(user(QUESTION), library="notes")).json()["error"]
        assert error["message"] == "There is no such library here. There is none."


def test_a_library_that_fails_is_nobodys_business(vlm, folder, monkeypatch):
    service = service_for(vlm, libraries={"notes": str(folder / "notes")})

    def fail(*arguments, **options):
        raise LibraryError(f"{folder} cannot be read.")

    monkeypatch.setattr(Library, "search", fail)
    with client_of(service) as client:
        refused = client.post(CHAT, json=asking(user(QUESTION), library="notes"))
    assert refused.status_code == 503 and "secret" not in refused.text and refused.headers["retry-after"]
    with pytest.raises(LibraryError):
        service_for(vlm, libraries={"notes": str(folder / "lost")})


# --- a model that writes ---


@pytest.fixture
def reads(monkeypatch):
    """The embedded model is taken for one that reads."""
    monkeypatch.setattr("visglm.library.READING_CONTEXT", 1)


def test_a_model_that_reads_writes_and_is_held_against_its_sources(vlm, folder, reads):
    service = service_for(vlm, libraries={"notes": str(folder / "notes")})
    with client_of(service) as client:
        body = asking(user(QUESTION), library="notes", max_tokens=8)
        answer = client.post(CHAT, json=body).json()
        again = client.post(CHAT, json=body).json()
    expected = vlm.ask(QUESTION, library=folder / "notes", extract=False, max_new_tokens=8)
    message = answer["choices"][0]["message"]
    assert message["content"] == expected.text == again["choices"][0]["message"]["content"]
    assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_tokens > 0
    assert service.admission.inside == 0


def test_a_client_that_goes_stops_what_is_written(vlm, folder, reads):
    service = service_for(vlm, libraries={"notes": str(folder / "notes")})
    ends = [*vlm.model.generation_config.eos_token_id] if isinstance(
        vlm.model.generation_config.eos_token_id, list) else [vlm.model.generation_config.eos_token_id]  # fmt: skip
    bias = {str(end): -100 for end in ends}
    body = json.dumps(asking(user(QUESTION), library="notes", max_tokens=150, logit_bias=bias)).encode()

    submit, begun = service.submit, []
    service.submit = lambda *arguments: begun.append(submit(*arguments)) or begun[-1]

    async def until_it_writes() -> None:
        while not begun:
            await asyncio.sleep(0.005)

    app = create_app(service)

    async def stay(*wires) -> None:
        """The server goes on when the client has gone."""
        await app(*wires)
        await asyncio.sleep(0.2)
        stopped.append(service.metrics.cancelled._value.get())

    stopped: list[float] = []
    knock(stay, CHAT, "POST", chunks=[body], after=until_it_writes)
    assert stopped == [1], "it was written on, for nobody"
    assert service.admission.inside == 0


def test_on_the_command_line(tmp_path, folder, capsys):
    assert main(["serve", "--library", "notes"]) == 1 and "--library must be NAME=PATH" in capsys.readouterr().err
    assert main(["serve", "--library", f"notes={tmp_path / 'lost'}"]) == 1
    assert "there is no library" in capsys.readouterr().err and VisGLM
