"""Many at a time: who waits, who is turned away, who leaves, and which adapter answers."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from tests.adapters.taught import golden, teach
from tests.serve.knocking import (
    CHAT,
    EXAMPLES,
    KEY,
    OTHER_KEY,
    asking,
    client_of,
    data_url,
    endless,
    knock,
    service_for,
    user,
)
from visglm.errors import ConfigError
from visglm.serve import Keys, Names, Service, Settings, create_app


def until(is_so, seconds: float = 60) -> None:
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < seconds, "it never came to be so"
        time.sleep(0.005)


class Steps:
    """Counts passes through the head, and can hold them up."""

    def __init__(self, vlm):
        self.rows: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self._hook = vlm.model.lm_head.register_forward_pre_hook(self._count)

    def _count(self, module, arguments) -> None:
        self.go_on.wait(60)
        self.rows.append(len(arguments[0]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.go_on.set()
        self._hook.remove()


def is_idle(service) -> bool:
    return service.admission.inside == 0 and service.vlm.engine.turns.is_free


# --- too many ---


def test_who_comes_when_the_queue_is_full_is_told_to_come_again(vlm, monkeypatch):
    service = service_for(vlm, limits={"max_waiting": 0, "max_answers": 1})
    most = service.admission.most
    assert most == vlm.engine.slots
    decoded = []
    monkeypatch.setattr("visglm.serve.service.decode", lambda *arguments: decoded.append(1))
    with Steps(vlm) as steps, client_of(service) as client:
        steps.go_on.clear()
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.post(CHAT, json=asking(user("Hi"), max_tokens=2))))
            for _ in range(most)
        ]
        for thread in threads:
            thread.start()
        until(lambda: service.admission.inside == most)
        refused = client.post(CHAT, json=asking(user("What?", data_url("cat.png"))))
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        steps.go_on.set()
        for thread in threads:
            thread.join()
    assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limit_error" and not decoded
    assert int(refused.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in answers] == [200] * most and is_idle(service)


def test_every_answer_of_a_request_counts(vlm):
    service = service_for(vlm, limits={"max_waiting": 0, "max_answers": 16})
    assert service.admission.most == 16
    with service.admission.take(5), client_of(service) as client:
        assert client.post(CHAT, json=asking(user("Hi"), n=12, max_tokens=1)).status_code == 429
        assert client.post(CHAT, json=asking(user("Hi"), n=11, max_tokens=1)).status_code == 200
    assert is_idle(service)


def test_many_at_a_time_get_what_they_would_get_alone(vlm):
    service = service_for(vlm)
    questions = [(picture, text) for picture in ("cat.png", "pair.png", "fruit.png", None)
                 for text in ("What is this?", "描述这张图片。", "How many objects are there?")]  # fmt: skip
    wanted = [vlm.chat(EXAMPLES / picture if picture else None, text).text for picture, text in questions]
    found: dict[int, str] = {}
    with client_of(service) as client:

        def ask(place: int) -> None:
            picture, text = questions[place]
            body = asking(user(text, *([data_url(picture)] if picture else [])))
            found[place] = client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]

        threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(questions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[place] for place in range(len(questions))] == wanted and is_idle(service)


# --- who leaves ---


@pytest.mark.parametrize("streams", [False, True])
def test_a_row_stops_within_a_token_of_its_reader(vlm, monkeypatch, streams):
    service = service_for(vlm)
    body = json.dumps(endless(vlm, 450, stream=streams)).encode()
    with Steps(vlm) as steps:
        at_cancel = []
        cancel = vlm.engine.cancel
        monkeypatch.setattr(vlm.engine, "cancel", lambda task: (cancel(task), at_cancel.append(len(steps.rows))))

        async def after() -> None:
            while len(steps.rows) < 5:
                await asyncio.sleep(0.001)

        answer = knock(create_app(service), CHAT, "POST", None, [body], after=after)
        until(lambda: is_idle(service))
        assert len(at_cancel) == 1 and len(steps.rows) <= at_cancel[0] + 1 and len(steps.rows) < 400
    assert (answer.status, b"[DONE]" in answer.body) == ((200, False) if streams else (499, False))
    assert b"visglm_answers_cancelled_total 1.0" in service.metrics.text()


def test_who_leaves_while_he_waits_was_never_begun(vlm):
    """In the line of the engine, or in that for another adapter."""
    service = service_for(vlm)
    slots = vlm.engine.slots
    vlm.engine.slots = 1
    try:
        with Steps(vlm) as steps, client_of(service) as client:
            steps.go_on.clear()
            first = threading.Thread(target=lambda: client.post(CHAT, json=asking(user("Hi"), max_tokens=3)))
            first.start()
            until(lambda: service.admission.inside == 1 and not vlm.engine.turns.is_free)

            async def after() -> None:
                while not vlm.engine.turns.num_waiting:
                    await asyncio.sleep(0.001)

            body = json.dumps(asking(user("Hello"), max_tokens=100)).encode()
            knock(create_app(service), CHAT, "POST", None, [body], after=after)
            assert vlm.engine.turns.num_waiting == 0 and service.admission.inside == 1
            steps.go_on.set()
            first.join()
            assert len(steps.rows) <= 3
    finally:
        vlm.engine.slots = slots
    assert is_idle(service)


def test_who_reads_nothing_of_his_stream_is_given_up(vlm, monkeypatch):
    service = service_for(vlm)
    monkeypatch.setattr("visglm.serve.asking.STUCK_SECONDS", 0.2)
    body = json.dumps(endless(vlm, 30, stream=True)).encode()

    async def check() -> None:
        sent = []

        async def receive():
            if not sent:
                sent.append(1)
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.Event().wait()

        async def send(message):
            await asyncio.Event().wait()  # the buffers are full

        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "headers": headers,
                 "query_string": b"", "scheme": "http"}  # fmt: skip
        await create_app(service)(scope, receive, send)

    asyncio.run(check())
    until(lambda: is_idle(service))


def test_what_was_let_in_before_the_end_is_answered(vlm, monkeypatch):
    """The signal comes while its picture is decoded."""
    service = service_for(vlm)
    check = service.check

    def close(question):
        service.admission.is_closing = True
        check(question)

    monkeypatch.setattr(service, "check", close)
    with client_of(service) as client:
        assert client.post(CHAT, json=asking(user("Hi"), max_tokens=2)).status_code == 200
        assert client.post(CHAT, json=asking(user("Hi"), max_tokens=2)).status_code == 503


def test_megabytes_of_text_are_refused_without_making_tokens_of_them(vlm, monkeypatch):
    monkeypatch.setattr(type(vlm.tokenizer), "encode", lambda *arguments, **options: pytest.fail("it was"))
    text = "word " * 1_000_000
    with client_of(service_for(vlm)) as client:
        for path, body in (
            (CHAT, asking(user(text))), ("/tokenize", {"prompt": text}), ("/", {"text": text, "history": []}),
            ("/tokenize", {"messages": [user(text)]}),
        ):  # fmt: skip
            answer = client.post(path, json=body)
            assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded", path


def test_more_pictures_than_the_context_holds_are_refused_before_one_is_decoded(vlm):
    broken = "data:image/png;base64,AAAA"
    with client_of(service_for(vlm, limits={"max_pictures": 100})) as client:
        answer = client.post(CHAT, json=asking(user("What are these?", *[broken] * 80)))
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
        one = client.post(CHAT, json=asking(user("What is this?", broken)))
        assert one.status_code == 400 and one.json()["error"]["code"] == "invalid_image"


def test_a_server_that_ends_takes_nothing_new(vlm):
    service = service_for(vlm)
    with client_of(service) as client:
        service.admission.is_closing = True
        answer = client.post(CHAT, json=asking(user("Hi")))
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "shutting_down"
        assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200


def test_a_dead_engine_is_told_by_its_health(monkeypatch):
    vlm = golden()
    service = service_for(vlm)
    monkeypatch.setattr("visglm.engine.core.Loop", lambda *arguments: 1 / 0)
    with client_of(service) as client:
        assert client.get("/health").status_code == 200
        body = asking(user("Hi"), max_tokens=3) | {"model": service.names.default}
        first, second = (client.post(CHAT, json=body) for _ in range(2))
        assert first.status_code == second.status_code == 500 and "ZeroDivision" not in first.text + second.text
        assert client.get("/health").status_code == client.get("/ready").status_code == 503


def test_who_asks_while_it_is_taught_is_told(vlm):
    service = service_for(vlm)
    entered, leave = threading.Event(), threading.Event()

    def teach_it() -> None:
        with vlm.engine.turns.take("being fine-tuned"):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=teach_it)
    thread.start()
    entered.wait(60)
    with client_of(service) as client:
        answer = client.post(CHAT, json=asking(user("Hi")))
        leave.set()
        thread.join()
        assert answer.status_code == 503 and "retry-after" in answer.headers
        assert client.post(CHAT, json=asking(user("Hi"), max_tokens=1)).status_code == 200


# --- adapters ---


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two that were taught different things, and what a model answers with each."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, seed in (("one", 1), ("two", 2)):
        teach(golden(), folder / name, seed=seed, learning_rate=0.3)
    return folder


@pytest.fixture
def several(adapters):
    vlm = golden()
    names = Names(vlm, "base", {name: str(adapters / name) for name in ("one", "two")})
    return Service(vlm, names, Settings())


def question(model: str, text: str = "What is this?", **fields):
    return asking(user(text, data_url("cat.png")), max_tokens=8, **fields) | {"model": model}


def test_model_chooses_the_base_or_an_adapter(several, adapters):
    wanted = {}
    for name in ("base", "one", "two"):
        vlm = golden()
        if name != "base":
            vlm.load_adapter(adapters / name, name)
        wanted[name] = vlm.chat(EXAMPLES / "cat.png", "What is this?", max_new_tokens=8, logprobs=1).logprobs
    assert len({logprobs[0] for logprobs in wanted.values()}) == 3
    with client_of(several) as client:
        listed = client.get("/v1/models").json()["data"]
        assert [(one["id"], one["parent"]) for one in listed] == [("base", None), ("one", "base"), ("two", "base")]
        for name in ("one", "base", "two", "one", "two", "base"):
            answer = client.post(CHAT, json=question(name, logprobs=True)).json()
            told = [one["logprob"] for one in answer["choices"][0]["logprobs"]["content"]]
            assert answer["model"] == name and told == pytest.approx(wanted[name][: len(told)], abs=1e-4)
        unknown = client.post(CHAT, json=question("three"))
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
    assert "base, one, two" in unknown.text


def test_requests_for_different_adapters_are_answered_together_and_none_is_lost(several):
    with client_of(several) as client:
        alone = {name: client.post(CHAT, json=question(name)).json()["choices"] for name in several.names}
        found: list[tuple[str, object]] = []

        def ask(name: str) -> None:
            found.append((name, client.post(CHAT, json=question(name)).json()["choices"]))

        threads = [threading.Thread(target=ask, args=(("base", "one", "two")[n % 3],)) for n in range(15)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 15 and all(choices == alone[name] for name, choices in found)
    assert is_idle(several)


def test_an_adapter_that_cannot_be_switched_to_fails_its_request_alone(several, monkeypatch):
    use = several.vlm.adapters.activate

    def fail(name):
        if name == "one":
            raise ConfigError("no")
        use(name)

    monkeypatch.setattr(several.vlm.adapters, "activate", fail)
    with client_of(several) as client:
        assert [client.post(CHAT, json=question(name)).status_code for name in ("one", "two", "one", "base")] == [
            400, 200, 400, 200,
        ]  # fmt: skip
    assert is_idle(several)


def test_two_of_one_name_are_refused(adapters):
    with pytest.raises(ConfigError, match="'one'"):
        Names(golden(), "one", {"one": str(adapters / "one")})


# --- what is remembered of whom ---


def test_pictures_of_one_key_serve_no_other(vlm):
    looked = []
    encode = vlm.model.get_image_features
    vlm.model.get_image_features = lambda pixels, **options: looked.append(len(pixels)) or encode(pixels, **options)
    try:
        service = Service(vlm, Names(vlm), Settings(keys=Keys((KEY, OTHER_KEY))))
        body = asking(user("What is this?", data_url("cat.png")), max_tokens=1)
        with client_of(service) as client:
            for key, count in ((KEY, 1), (KEY, 1), (OTHER_KEY, 2), (OTHER_KEY, 2), (KEY, 2)):
                answer = client.post(CHAT, json=body, headers={"Authorization": f"Bearer {key}"})
                assert answer.status_code == 200 and sum(looked) == count
    finally:
        del vlm.model.get_image_features
