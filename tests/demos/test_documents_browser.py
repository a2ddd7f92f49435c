"""The library in Chromium: a document is dropped, its place is in view when its source is clicked, on a phone too."""

from __future__ import annotations

import pytest

pytest.importorskip("streamlit", reason="the page's tests run with the demo extra: make test-browser")
pytest.importorskip("lancedb", reason="libraries need the extra library")

from tests.library import samples

from .browser import Browser, serve, until
from .test_browser import ARTIFACTS, needs_browser

pytestmark = needs_browser
LINES = [(60, 60 + 24 * number, f"Room {number} has pictures of the year {1800 + number}.") for number in range(18)]
TICKETS = "Tickets cost eleven euros for adults."
MUSEUM = samples.pdf([(60, 100, "Welcome to the museum.")], [*LINES, (60, 560, TICKETS)])
PHONE = {"language": "zh-CN", "width": 390, "height": 844, "mobile": True, "dark": True}
# The box of the quote and the window, in pixels.
BOX = """
const box = document.querySelector(".sheet .quoted").getBoundingClientRect();
return [box.left, box.top, box.right, box.bottom, innerWidth, innerHeight];
"""
# Of a place on the drawn page, whether it has the box's colour: what the browser shows, not what was sent.
INK = """
const image = document.querySelector(".sheet img"), box = document.querySelector(".sheet .quoted");
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
const pen = canvas.getContext("2d");
pen.drawImage(image, 0, 0);
const scale = image.naturalWidth / image.getBoundingClientRect().width, frame = box.getBoundingClientRect();
const at = (x, y) => [...pen.getImageData((x - image.getBoundingClientRect().left) * scale,
  (y - image.getBoundingClientRect().top) * scale, 1, 1).data];
return [at(frame.right - 1, frame.bottom - 1), at(frame.right + 30, frame.bottom - 1)];
"""


@pytest.fixture(scope="module")
def address():
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with serve(log=ARTIFACTS / "documents.log") as address:
        yield address


def fill(browser: Browser, *paths) -> None:
    """Drop files, and wait until they are read."""
    key = "[class*=st-key-library_upload_] [data-testid=stFileUploaderDropzoneInput]"
    with browser.redrawn():
        browser.send(key, "\n".join(map(str, paths)))
    until(lambda: browser.all(".st-key-library_question input"), "the documents to be read", 240)
    browser.settle()


def ask(browser: Browser, question: str) -> None:
    before = len(browser.all(".said"))
    browser.send(".st-key-library_question input", question + "\n")
    until(lambda: len(browser.all(".said")) > before, "the answer", 120)
    browser.settle()


@pytest.mark.parametrize(
    "settings, view, question",
    [
        ({}, "Library", "How much do tickets cost?"),
        (
            {"language": "zh-CN", "width": 390, "height": 844, "mobile": True, "dark": True},
            "资料库",
            "tickets cost 多少？",
        ),
    ],
)
def test_the_box_of_a_quote_is_in_view(address, tmp_path, settings, view, question):
    (tmp_path / "museum.pdf").write_bytes(MUSEUM)
    (tmp_path / "cat.png").write_bytes(samples.CAT.read_bytes())
    with Browser(**settings) as browser:
        browser.open(address)
        browser.choose("view", view)
        assert not browser.find("[class*=st-key-library_upload_] input[type=file]").get_attribute("accept")
        fill(browser, tmp_path / "museum.pdf", tmp_path / "cat.png")
        ask(browser, question)
        assert TICKETS in browser.said()[0]
        browser.press("[class*=st-key-source_0_1] button")
        browser.find(".sheet img")

        def is_seen() -> bool:
            left, top, right, bottom, width, height = browser.script(BOX)
            return 0 <= left < right <= width and 0 <= top < bottom <= height and right - left > 50 and bottom - top > 5

        until(is_seen, "the box to be in the window")
        inside, outside = browser.script(INK)
        assert outside[:3] != inside[:3] and inside[2] < 220, (inside, outside)
        assert not browser.script("return document.documentElement.scrollWidth > innerWidth")
        browser.shoot(ARTIFACTS / f"documents-{view}.png")
        browser.reload()  # it is kept for whoever has this browser
        browser.choose("view", view)
        browser.find("[class*=st-key-row_document_]")
        assert len(browser.all(".file")) == 2
        name = browser.driver.get_cookie("visglm_visitor")
        assert name
    with Browser() as stranger:
        stranger.open(address)
        stranger.choose("view", "Library")
        stranger.find("[class*=st-key-library_upload_]")
        assert not stranger.all(".file"), "nobody else's documents"


def test_whoever_sits_at_the_machine_syncs_a_folder_and_nobody_else(address, tmp_path):
    (tmp_path / "museum.pdf").write_bytes(MUSEUM)
    with Browser() as browser:
        browser.open(address)
        browser.choose("view", "Library")
        browser.send(".st-key-sync_folder input", str(tmp_path) + "\n")
        until(lambda: browser.all(".file"), "the folder to be read", 120)
        assert str(tmp_path / "museum.pdf") in browser.find(".file").get_attribute("textContent")
    with serve("--host", "0.0.0.0", log=ARTIFACTS / "open.log") as everywhere, Browser() as browser:
        browser.open(everywhere)
        browser.choose("view", "Library")
        browser.find("[class*=st-key-library_upload_]")
        assert not browser.all(".st-key-sync_folder")
