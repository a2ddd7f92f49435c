"""The page over a running `visglm serve`: one model for every tab."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the page's tests run with the demo extra: make test-browser")

import streamlit as st
from conversation import FAILED, picture_url
from streamlit.testing.v1 import AppTest
from texts import speak

from tests.serve.knocking import KEY
from tests.serve.process import running
from visglm import RemoteVisGLM, load_image

from .browser import Browser, serve, until
from .samples import disc, encode
from .test_app import APP, ask, check, notices, shown
from .test_browser import ARTIFACTS, needs_browser

en, zh = speak("en"), speak("zh")
pytestmark = pytest.mark.skipif(
    os.name != "posix" or not hasattr(AppTest, "camera_input"),
    reason="AppTest of Streamlit 1.65, the last for Python 3.10, uploads no files",
)


@pytest.fixture
def open_page(monkeypatch, server):
    st.cache_data.clear()
    st.cache_resource.clear()
    monkeypatch.setenv("VISGLM_API_KEY", KEY)

    def open_page(url: str | None = None, **values) -> AppTest:
        url = url or f"http://127.0.0.1:{server.port}"
        monkeypatch.setattr(sys, "argv", ["streamlit_app.py", "--server", url, "--no-history"])
        page = AppTest.from_file(APP, default_timeout=60)
        for name, value in values.items():
            page.session_state[name] = value
        return check(page.run())

    return open_page


def test_it_talks_by_the_server_and_goes_on(open_page, remote):
    page = open_page()
    assert en("hero_server") in shown(page) and en("hero_local") not in shown(page)
    ask(page, "What is this?", ("disc.png", encode(disc())))
    first, second = page.session_state.exchanges[0], None
    seen = picture_url(first.pictures[0])
    expected = remote.chat(seen, "What is this?")
    assert first.answer == expected.text and first.usage == expected.usage
    ask(page, "Where is it?", ("again.png", encode(disc())))
    second = page.session_state.exchanges[1]
    assert second.answer == remote.chat(seen, "Where is it?", expected.history).text
    assert "tokens/s" in shown(page) and "picture 0.00" not in shown(page)


def test_what_needs_the_model_is_not_there_and_the_page_says_why(open_page, server):
    page = open_page()
    assert [caption.value for caption in page.caption if "teaching" in caption.value]
    assert not [box for box in page.selectbox if box.key.startswith("quantize")]
    offered = str([group.proto for group in page.get("button_group")])
    assert en("talk") in offered and en("compare") in offered and en("teach") not in offered
    assert en("library") not in offered
    keys = {number.key for number in page.number_input} | {slider.key for slider in page.slider}
    assert {"temperature_main", "top_p_main", "seed_main", "max_new_tokens_main"} <= keys
    assert not {"top_k_main", "repetition_penalty_main"} & keys
    assert page.selectbox(key="model_main").options == ["visglm-tiny"]


def test_settings_reach_the_server(open_page, remote):
    page = open_page()
    page.number_input(key="max_new_tokens_main").set_value(3)
    page.slider(key="temperature_main").set_value(1.5)
    page.number_input(key="seed_main").set_value(7)
    ask(page, "Hello")
    (only,) = page.session_state.exchanges
    assert only.answer == remote.chat(None, "Hello", max_new_tokens=3, temperature=1.5, seed=7).text
    assert only.status == "length"


def test_the_heat_map_comes_from_the_server(open_page, remote):
    page = open_page()
    page.toggle(key="heat").set_value(True)
    ask(page, "What is this?", ("disc.png", encode(disc())))
    (only,) = page.session_state.exchanges
    expected = remote.explain(picture_url(only.pictures[0]), "What is this?", only.answer)
    assert (only.explanation.heat == expected.heat).all()
    assert only.explanation.image.size == load_image(picture_url(only.pictures[0])).size


def test_two_answers_are_compared(open_page):
    page = open_page(view="compare", compared_picture=[disc()])
    page.slider(key="temperature_right").set_value(2.0).run()
    page.text_input(key="compared_question").set_value("What is this?")
    next(button for button in page.button if button.label == en("compare_run")).click()
    check(page.run())
    assert [exchange.status for _, _, exchange in page.session_state.compared] == ["stop", "stop"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_server_that_is_not_there_is_told_and_can_be_asked_again(open_page, language):
    page = open_page("http://127.0.0.1:9", language=language)
    (told,) = notices(page)
    assert told == speak(language)("server_unreachable", server="http://127.0.0.1:9")
    assert page.button(key="server_again") and not page.chat_input


def test_a_wrong_key_is_told(open_page, monkeypatch, server):
    monkeypatch.setenv("VISGLM_API_KEY", "a-wrong-key-0123456789")
    monkeypatch.setattr(sys, "argv", ["streamlit_app.py", "--server", f"http://127.0.0.1:{server.port}"])
    (told,) = notices(check(AppTest.from_file(APP, default_timeout=60).run()))
    assert "VISGLM_API_KEY" in told and "wrong-key" not in told


@contextmanager
def failing(reason: str, monkeypatch):
    from visglm.errors import ServerError

    def fail(self, *arguments, **settings):
        raise ServerError("no", reason)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteVisGLM, "stream_chat", fail)
        yield


@pytest.mark.parametrize("reason", ["unreachable", "key", "missing", "full", "ending", "refused", "failed"])
def test_whatever_goes_wrong_has_its_sentence_in_both_languages(open_page, monkeypatch, reason):
    page = open_page()
    with failing(reason, monkeypatch):
        ask(page, "Hello")
    (only,) = page.session_state.exchanges
    assert only.status == FAILED
    for say in (en, zh):
        assert only.failure.said(say).startswith(
            say(f"server_{reason}", server=only.failure.values["server"], problem="no")[:30]
        )
    check(page.button(key="regenerate").click().run())
    assert page.session_state.exchanges[0].status == "stop"


def test_a_server_that_has_ended_is_told_and_the_talk_stays(open_page):
    with running("--drain-seconds", "1") as server:
        page = open_page(f"http://127.0.0.1:{server.port}")
        ask(page, "Hello")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        ask(page, "Are you there?")
        last = page.session_state.exchanges[-1]
        assert page.session_state.exchanges[0].status == "stop"
        assert last.status == FAILED and last.failure.key == "server_unreachable"
        assert en("server_unreachable", server=f"http://127.0.0.1:{server.port}") in notices(page)


@needs_browser[0]
@needs_browser[1]
def test_in_the_browser_two_tabs_talk_and_one_stops(server, tmp_path):
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    disc().save(tmp_path / "disc.png")
    (tmp_path / "key").write_text(KEY + "\n")
    words = ("--server", f"http://127.0.0.1:{server.port}", "--api-key-file", str(tmp_path / "key"))
    with serve(*words, log=ARTIFACTS / "remote.log") as address, Browser("en-US") as one, Browser("zh-CN") as other:
        for browser in (one, other):
            browser.open(address)
        assert one.sees("Answered by the server") and other.sees("由 http")
        assert [button.text for button in one.all(".st-key-view button")] == [en("talk"), en("compare")]
        one.upload(tmp_path / "disc.png")
        one.find("[class*=st-key-tray_] img")
        one.settle()
        assert one.ask("What is this?") and other.ask("你好")
        until(lambda: en("regenerate") in one.text(), "what can be done with an answer")
        one.press(".st-key-heat input")
        until(lambda: en("heat_caption") in one.text(), "the heat map")
        one.shoot(ARTIFACTS / "remote.png")
        server.process.send_signal(signal.SIGSTOP)  # it answers nobody: an answer is on its way until it is stopped
        try:
            one.say("And now?")
            one.find(".waiting .cursor")
            one.click(".st-key-stop button")
            until(lambda: en("stopped") in one.text(), "the page to say that it was stopped")
        finally:
            server.process.send_signal(signal.SIGCONT)
        one.settle()
        assert one.ask("Still there?")
    assert KEY not in Path(ARTIFACTS / "remote.log").read_text()
