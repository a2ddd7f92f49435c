"""The Teach view in a real browser: pictures are named there, and afterwards the page answers with these names."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the page's tests run with the demo extra: make test-browser")

from selenium.webdriver.common.keys import Keys
from texts import speak

from .browser import Browser, serve, until
from .test_browser import ARTIFACTS, needs_browser

pytestmark = needs_browser
en = speak("en")
EMOJI = Path(__file__).parents[2] / "finetune/emoji/pictures/noto"
NAMES = ("zorp", "blik")
UPLOADS = """
return performance.getEntriesByType("resource").filter((entry) => entry.name.includes("upload_file")).length;
"""
BOX = "[class*=st-key-name_] input"


def test_six_pictures_of_two_names_are_learnt_and_the_page_answers_with_them():
    pytest.importorskip("peft", reason="teaching needs the finetune extra")
    pictures = random.Random(3).sample(sorted(EMOJI.glob("*.png")), 6)
    names = [NAMES[number // 3] for number in range(6)]
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with serve(log=ARTIFACTS / "teaching.log") as address, Browser() as browser:
        browser.open(address)
        browser.choose("view", en("teach"))
        for number, (picture, name) in enumerate(zip(pictures, names, strict=True)):
            browser.upload(picture)
            until(lambda number=number: len(browser.all(BOX)) > number, "the picture's row")
            with browser.redrawn():
                browser.find(BOX, number).send_keys(name + Keys.ENTER)
        assert "340,848 numbers" in browser.text() and "160 steps at the most" in browser.text()
        browser.click(".st-key-teach button")
        until(lambda: "seconds left" in browser.text(), "the time that is left", 300)
        until(lambda: not browser.all(".st-key-teach_stop button"), "it to learn", 600)
        browser.settle()
        browser.shoot(ARTIFACTS / "taught.png")
        assert en("taught_all", num=6) in browser.text()
        browser.choose("view", en("talk"))
        browser.choose("model_main", "lesson-1")
        for picture, name in zip(pictures, names, strict=True):
            browser.press(".st-key-new button")
            before = browser.script(UPLOADS)
            browser.find("[data-testid=stBottom] input[type=file]").send_keys(str(picture))
            until(lambda before=before: browser.script(UPLOADS) > before, "the picture to be there")
            browser.settle()
            assert browser.ask("What is this?") == name
