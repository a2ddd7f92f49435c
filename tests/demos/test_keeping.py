"""Conversations that last: saved as files, kept over a reload, listed, deleted and brought back; all in Chromium."""

from __future__ import annotations

import stat

import pytest

pytest.importorskip("streamlit", reason="the page's tests run with the demo extra: make test-browser")

from conversation import from_json
from texts import speak

from .browser import Browser, serve, until
from .samples import disc, encode
from .test_browser import ARTIFACTS, babbler, needs_browser  # noqa: F401

pytestmark = needs_browser
en = speak("en")


@pytest.fixture(scope="module")
def address(babbler):  # noqa: F811
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with serve("--model", "visglm-tiny", "--model", str(babbler), log=ARTIFACTS / "keeping.log") as address:
        yield address


@pytest.fixture(scope="module")
def browser(address):
    with Browser() as browser:
        yield browser


@pytest.fixture
def talked(browser, address, tmp_path) -> Browser:
    """A new conversation of two questions about a picture."""
    browser.open(address)
    (tmp_path / "disc.png").write_bytes(encode(disc()))
    browser.upload(tmp_path / "disc.png")
    browser.find("[class*=st-key-tray_] img")
    browser.settle()
    browser.ask("What is this?")
    browser.ask("Where is the disc?")
    return browser


def kept(address) -> bytes:
    """All that lies on the disk, whatever the files are called."""
    return b"".join(path.read_bytes() for path in address.data.rglob("*") if path.is_file())


def test_a_saved_conversation_is_on_the_disk_and_loads_again(talked, address, tmp_path):
    before = talked.said()
    talked.click(".st-key-save_json button")
    file = talked.downloaded("*.json")
    saved = from_json(file.read_bytes())
    assert [item.question for item in saved] == ["What is this?", "Where is the disc?"]
    assert len(saved[0].pictures) == 1
    talked.click(".st-key-save_markdown button")
    text = talked.downloaded("*.md").read_text("utf-8")
    assert "Where is the disc?" in text and "data:image/jpeg;base64," in text
    talked.press(".st-key-new button")
    assert not talked.said()
    talked.send(".st-key-loader [data-testid=stFileUploaderDropzoneInput]", str(file))
    until(lambda: talked.said() == before, "the conversation as it was")
    until(lambda: talked.shows("[class*=st-key-shown_] img") or talked.sees("Where is the disc?"), "it to be seen")
    file.unlink()


def test_a_reload_keeps_the_conversation(talked):
    before = talked.said()
    talked.reload()
    until(lambda: talked.said() == before, "the conversation as it was")
    assert talked.all("[class*=st-key-shown_] img")
    until(lambda: talked.sees("Where is the disc?"), "its end to be in view")
    talked.ask("And now?")
    talked.reload()
    until(lambda: "And now?" in talked.said(), "what was said after the first reload")


def test_a_reload_in_the_middle_of_an_answer_keeps_what_was_said(browser, address, babbler):  # noqa: F811
    browser.open(address)
    browser.choose("model_main", babbler.name)
    browser.say("Tell me everything.")
    browser.find(".said:not(.waiting) .cursor")
    browser.reload()
    until(lambda: "Tell me everything." in browser.said(), "the question")
    until(lambda: browser.sees(en("stopped")), "the page to say that the answer was stopped")
    assert browser.all(".st-key-regenerate button")


def test_talks_are_listed_and_opened_again(talked):
    before = talked.said()
    talked.press(".st-key-new button")
    assert not talked.said()
    until(lambda: talked.shows("[class*=st-key-talk_] button", 0), "the list of talks")
    assert "What is this?" in talked.all("[class*=st-key-talk_] button")[0].text
    talked.press("[class*=st-key-talk_] button", 0)
    assert talked.said() == before
    until(lambda: talked.sees("Where is the disc?"), "the end of it in view")


def test_a_deleted_talk_is_gone_from_the_disk_and_comes_back_by_undo(browser, address):
    browser.open(address)
    browser.ask("Is this about the seventeenth elephant?")

    def is_kept() -> bool:
        return b"seventeenth" in kept(address)

    until(is_kept, "it to be kept")
    browser.press(".st-key-new button")
    browser.press("[class*=st-key-forget_] button", 0)
    assert not is_kept()
    assert not any("seventeenth" in button.text for button in browser.all("[class*=st-key-talk_] button"))
    until(lambda: browser.shows(".st-key-undo button"), "a way back")
    browser.press(".st-key-undo button")
    assert is_kept()
    browser.press("[class*=st-key-talk_] button", 0)
    assert "Is this about the seventeenth elephant?" in browser.said()


def test_another_visitor_sees_none_of_it(talked, address):
    where = talked.driver.current_url
    assert "talk=" in where
    with Browser() as other:
        other.open(where)
        assert not other.said()
        assert not other.all("[class*=st-key-talk_] button")


def test_what_is_kept_belongs_to_this_user_alone(talked, address):
    files = [path for path in address.data.rglob("*") if path.is_file()]
    assert files and b"Where is the disc?" in kept(address)
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    key = talked.driver.get_cookie("visglm_visitor")
    assert key["httpOnly"] and key["sameSite"] == "Strict"
    assert key["value"].encode() not in kept(address), "whoever reads the files cannot come as this visitor"


def test_nothing_is_kept_where_that_is_off():
    with serve("--no-history", log=ARTIFACTS / "off.log") as address, Browser() as browser:
        browser.open(address)
        browser.ask("What is this?")
        assert not kept(address)
        browser.press(".st-key-new button")
        browser.press("[class*=st-key-talk_] button", 0)
        assert "What is this?" in browser.said(), "until the page is closed there is a list all the same"
