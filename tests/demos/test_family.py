"""The page with a model of another family: what it thought is folded, and where it points is drawn. The
model is a tiny one that has learnt two answers by heart."""

from __future__ import annotations

import io
import urllib.request
from urllib.parse import urljoin

import pytest

pytest.importorskip("streamlit", reason="the page's tests run with the demo extra: make test-browser")

from PIL import Image
from texts import speak

from tests.families.made import PLACES, POINTED, SPOKEN, make, make_pointer

from .browser import Browser, serve, until
from .test_browser import ARTIFACTS, needs_browser

pytestmark = needs_browser
FOLDED = "[data-testid=stChatMessage] [data-testid=stExpander]"
PICTURE = "[data-testid=stChatMessage] [data-testid=stImage] img"


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    (folder / "learning").mkdir()
    return make_pointer(make("glm4v", folder / "base"), folder / "learning")


@pytest.fixture(scope="module")
def address(learnt):
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with serve("--model", str(learnt), log=ARTIFACTS / "family.log") as address:
        yield address


@pytest.mark.parametrize("language", SPOKEN)
def test_thoughts_are_folded_and_places_are_drawn(address, language):
    asked, thought, said = SPOKEN[language]
    with Browser({"zh": "zh-CN", "en": "en-US"}[language]) as browser:
        browser.open(address)
        browser.upload(POINTED)
        browser.find("[class*=st-key-tray_] img")
        browser.settle()
        answer = browser.ask(asked)
        assert answer.startswith(said) and "<" not in answer
        until(lambda: browser.all(FOLDED), "the answer as it stays")
        browser.settle()
        browser.shoot(ARTIFACTS / f"family-{language}.png")
        assert browser.sees(speak(language)("thinking")) and not browser.sees(thought)
        browser.click(f"{FOLDED} summary")
        until(lambda: browser.sees(thought), "the thoughts, unfolded")
        browser.shoot(ARTIFACTS / f"family-{language}-unfolded.png")
        shown = fetched(browser, address)
    width, height = shown.size
    for left, top, right, bottom in PLACES:
        for across, down in ((left, (top + bottom) / 2), ((left + right) / 2, bottom)):
            x, y = round(across * width / 1000), round(down * height / 1000)
            near = shown.crop((x - 3, y - 3, x + 4, y + 4)).getdata()
            assert any(red > 150 and red - max(green, blue) > 60 for red, green, blue in near)


def fetched(browser: Browser, address: str) -> Image.Image:
    """The picture beside the answer, as it was sent to the browser."""
    source = until(lambda: browser.all(PICTURE), "the picture")[-1].get_attribute("src")
    with urllib.request.urlopen(urljoin(address, source)) as response:
        return Image.open(io.BytesIO(response.read())).convert("RGB")
