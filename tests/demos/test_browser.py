"""The page in Chromium: shown a picture, asked in both languages, stopped, explained, attacked, and left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("streamlit", reason="the page's tests run with the demo extra: make test-browser")

from texts import speak

from visglm import VisGLM, VisGLMForConditionalGeneration

from .browser import CHROMIUM, DRIVER, Browser, serve, until
from .samples import UPLOADS, disc, encode

ARTIFACTS = Path(__file__).parents[2] / "build/browser"
zh, en = speak("zh"), speak("en")

needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER) and not os.environ.get("VISGLM_NEEDS_BROWSER"),
        reason="chromium and chromedriver are not installed (Debian: apt install chromium chromium-driver)",
    ),
]
pytestmark = needs_browser


@pytest.fixture(scope="module")
def babbler(tmp_path_factory) -> Path:
    """A model that talks nonsense until it has no room left: slow enough to be stopped."""
    vlm = VisGLM.from_pretrained()
    torch.manual_seed(0)
    config = vlm.model.config
    config.text_config.num_hidden_layers = 16
    folder = tmp_path_factory.mktemp("models") / "babbler"
    model = VisGLMForConditionalGeneration(config)
    model.generation_config = vlm.model.generation_config
    model.lm_head.weight.data[config.text_config.eos_token_id] = 0  # never the likeliest word: it does not end
    VisGLM(model, vlm.processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def address(babbler):
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with serve("--model", "visglm-tiny", "--model", str(babbler), log=ARTIFACTS / "server.log") as address:
        yield address


@pytest.fixture(scope="module")
def opened(address):
    with Browser("zh-CN") as browser:
        browser.open(address)
        yield browser


@pytest.fixture
def browser(opened) -> Browser:
    """The page in English, whatever a test before this one left."""
    opened.choose("language", "English")
    return opened


@pytest.fixture
def picture(tmp_path) -> Path:
    disc().save(tmp_path / "disc.png")
    return tmp_path / "disc.png"


@pytest.fixture(autouse=True)
def never_a_traceback(opened):
    yield
    assert not opened.all("[data-testid=stException]")


def show(browser: Browser, picture: Path) -> None:
    browser.press(".st-key-new button")
    browser.upload(picture)
    browser.find("[class*=st-key-tray_] img")
    browser.settle()


def test_it_speaks_the_browsers_language_and_answers_in_both(opened, picture):
    browser = opened
    assert zh("hero") in browser.text()
    browser.shoot(ARTIFACTS / "empty.png")
    show(browser, picture)
    assert browser.ask("这是什么？")
    until(lambda: zh("regenerate") in browser.text(), "what can be done with an answer")
    browser.choose("language", "English")
    show(browser, picture)
    assert browser.ask("What colour is it?")
    until(lambda: en("regenerate") in browser.text(), "what can be done with an answer")
    browser.shoot(ARTIFACTS / "answers.png")


def test_what_it_looked_at(browser, picture):
    show(browser, picture)
    browser.ask("What is this?")
    before = len(browser.all("[data-testid=stMain] [data-testid=stImage] img"))
    browser.press(".st-key-heat input")
    until(lambda: len(browser.all("[data-testid=stMain] [data-testid=stImage] img")) > before, "the heat map")
    assert en("heat_caption") in browser.text()
    browser.settle()
    browser.shoot(ARTIFACTS / "heat.png")
    browser.press(".st-key-heat input")


def test_a_pasted_picture(browser):
    browser.press(".st-key-new button")
    browser.paste(encode(disc("blue")))
    until(lambda: "pasted.png" in browser.text(), "the pasted picture")
    browser.ask("What is this?")
    assert browser.all("[class*=st-key-shown_] img")


def test_an_answer_streams_and_can_be_stopped(browser, babbler):
    browser.choose("model_main", babbler.name)
    browser.press(".st-key-new button")
    browser.say("Tell me everything.")
    # Read in one go: between two calls the page has drawn the next piece.
    texts = "return [...document.querySelectorAll(arguments[0])].map(said => said.innerText).filter(Boolean)"
    growing = ".said:has(.cursor):not(.waiting)"
    first = until(lambda: browser.driver.execute_script(texts, growing), "a first piece")[0]
    until(lambda: any(len(said) > len(first) for said in browser.driver.execute_script(texts, growing)), "more of it")
    browser.shoot(ARTIFACTS / "streaming.png")
    browser.click(".st-key-stop button")
    until(lambda: en("stopped") in browser.text(), "the page to say that it was stopped")
    browser.settle()
    answer = browser.said()[-1]
    assert answer.startswith(first[:5]) and not browser.all(".cursor")
    browser.shoot(ARTIFACTS / "stopped.png")


def test_leaving_frees_the_model(browser, address):
    """A tab that is closed mid-answer must not keep the model from the others."""
    here = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    browser.open(address)
    assert not browser.all("[data-testid=stChatMessage]"), "a second tab has its own conversation"
    browser.choose("model_main", "babbler")
    browser.say("Tell me everything.")
    browser.find(".said:not(.waiting) .cursor")
    browser.driver.close()
    browser.driver.switch_to.window(here)
    browser.press(".st-key-new button")
    browser.say("And me?")
    browser.find(".said:not(.waiting) .cursor")
    browser.click(".st-key-stop button")
    browser.settle()
    browser.choose("model_main", "visglm-tiny")


@pytest.mark.parametrize("name", [name for name, (content, _) in UPLOADS.items() if len(content) < 2**20])
def test_hostile_uploads(browser, tmp_path, name):
    content, reason = UPLOADS[name]
    browser.press(".st-key-new button")
    (tmp_path / name).write_bytes(content)
    browser.upload(tmp_path / name)
    if reason is None:
        browser.find("[class*=st-key-tray_] img")
        return
    until(lambda: en("picture_refused", name=name, reason=en(reason)) in browser.text(), "a friendly sentence")
    with (ARTIFACTS / "hostile.txt").open("a", encoding="utf-8") as file:
        file.write(f"{name}: {en(reason)}\n")
