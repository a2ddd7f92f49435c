"""Several visitors, and those who mean harm: what one can take from the machine, the others, and their browsers."""

from __future__ import annotations

import base64
import http.server
import json
import re
import threading
import urllib.request

import pytest
from PIL import Image

pytest.importorskip("streamlit", reason="the page's tests run with the demo extra: make test-browser")

from selenium.webdriver.common.keys import Keys
from texts import speak

from .browser import Browser, forget_peak, memory_of, serve, until
from .samples import encode
from .test_browser import ARTIFACTS, needs_browser

pytestmark = needs_browser
en = speak("en")
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def address():
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with serve(log=ARTIFACTS / "visitors.log") as address:
        yield address


@pytest.fixture(scope="module")
def opened(address):
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(opened, address) -> Browser:
    opened.open(address)
    return opened


def load(browser: Browser, path) -> None:
    with browser.redrawn():  # the place for files is another one after each: what the old one gets is for nobody
        browser.send("[data-testid=stSidebar] [data-testid=stFileUploaderDropzoneInput]", str(path))


def saved(question: str, *urls: str) -> str:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    user = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    return json.dumps({"messages": [user, {"role": "assistant", "content": "It is."}]})


def as_url(picture: Image.Image, kind: str, **options) -> str:
    return f"data:image/{kind.lower()};base64," + base64.b64encode(encode(picture, kind, **options)).decode()


def test_a_small_file_cannot_take_much_memory(browser, address, tmp_path):
    """A conversation of some hundred bytes whose picture claims to be enormous, and one with many of them."""
    browser.ask("Hello?")  # what a first question needs once for all
    bomb = as_url(Image.new("RGB", (16000, 3900)), "WEBP", lossless=True)
    assert len(bomb) < 5000
    forget_peak(address.pid)
    before = memory_of(address.pid)
    (tmp_path / "bomb.json").write_text(saved("One?", bomb))
    load(browser, tmp_path / "bomb.json")
    until(lambda: browser.sees(en("load_refused")), "a sentence")
    (tmp_path / "many.json").write_text(saved("Many?", *[as_url(Image.new("RGB", (4000, 3900)), "PNG")] * 12))
    load(browser, tmp_path / "many.json")
    until(lambda: "Many?" in browser.text(), "the pictures, made small")
    assert memory_of(address.pid, peak=True) - before < 400 * MEGABYTE


def test_a_half_character_is_told_and_one_goes_on(browser, tmp_path):
    (tmp_path / "half.json").write_text(saved("\ud800"))
    load(browser, tmp_path / "half.json")
    until(lambda: browser.sees(en("load_refused")), "a sentence")
    assert browser.ask("Hello?")


class Trap(http.server.BaseHTTPRequestHandler):
    """Somebody's server elsewhere that would like to know who looks."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(404)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def trap():
    Trap.asked.clear()
    server = http.server.HTTPServer(("127.0.0.1", 0), Trap)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


def test_a_name_is_text_wherever_it_stands(browser, trap, tmp_path):
    """In an error, in a title of the list, in a question, in what is exported; the browser fetches nothing for it."""
    name = f"![x](http:&#47;&#47;127.0.0.1:{trap}&#47;name.png) &lt;b&gt; :red[x].png"
    (tmp_path / name).write_bytes(b"no picture")
    browser.upload(tmp_path / name)
    until(lambda: browser.sees(name), "the name as it is")
    question = f"![x](http://127.0.0.1:{trap}/question.png) <img src=http://127.0.0.1:{trap}/html.png> :red[x] $x$"
    browser.ask(question)
    until(lambda: question[:30] in browser.find("[class*=st-key-talk_] button", 0).text, "the title as it is")
    browser.press("[class*=st-key-forget_] button", 0)
    until(lambda: question[:30] in browser.find(".st-key-forgotten").text, "the title as it is")
    browser.press(".st-key-undo button")
    browser.press("[class*=st-key-talk_] button", 0)
    browser.click(".st-key-save_markdown button")
    exported = browser.downloaded("*.md").read_text("utf-8")
    assert "question.png" in exported and not re.search(r"(?<!\\)(!\[|<img)", exported.replace("![](data:", ""))
    assert not browser.all("[data-testid=stMain] .said img, [data-testid=stSidebar] img[alt=x]")
    assert Trap.asked == []


def test_headers_keep_others_out(browser, address, trap):
    with urllib.request.urlopen(urllib.request.Request(address, headers={"Accept": "text/html"})) as response:
        headers, page = response.headers, response.read().decode()
    policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    assert policy["frame-ancestors"] == "'self'" and policy["img-src"] == "'self' data: blob:"
    assert headers["X-Frame-Options"] == "SAMEORIGIN" and headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer" and "<title>visglm</title>" in page
    browser.script(f"document.body.append(Object.assign(new Image(), {{src: 'http://127.0.0.1:{trap}/foreign.png'}}))")
    browser.script(f"return fetch('http://127.0.0.1:{trap}/fetched', {{mode: 'no-cors'}}).catch(() => null)")
    browser.settle()
    assert Trap.asked == []


def test_the_policy_stops_nothing_of_the_pages_own(address):
    """The browser says nothing about anything refused, on any of the views, a chart included."""
    with Browser() as browser:
        browser.open(address)
        browser.press("[class*=st-key-sample_] button", 0)
        browser.ask("What is this?")
        for view in ("Compare", "Teach"):
            browser.choose("view", view)
        told = [row["message"] for row in browser.driver.get_log("browser")]
        assert not [line for line in told if "Content Security Policy" in line or "Refused" in line]


def test_there_is_a_bound_to_what_one_visitor_holds(address, tmp_path):
    """Pictures in the tray, never asked about: refused where there are too many, and freed when the visitor leaves."""
    noise = Image.effect_noise((1460, 1460), 80).convert("RGB")
    noise.save(tmp_path / "noise.jpg", quality=60)
    many = "\n".join([str(tmp_path / "noise.jpg")] * 6)
    tray = "[class*=st-key-tray_] img"
    with Browser() as browser:  # a visitor of its own: what others had before would be counted for half a minute
        browser.open(address)
        browser.press("[class*=st-key-sample_] button", 0)
        browser.ask("Hello?")
        before = memory_of(address.pid)
        here = browser.driver.current_window_handle
        browser.driver.switch_to.new_window("tab")
        browser.open(address)
        for number in (6, 12, 18, 24, 25):
            browser.send("[data-testid=stMain] [data-testid=stFileUploaderDropzoneInput]", many, 0)
            until(lambda number=number: len(browser.all(tray)) >= number, f"{number} to be taken")
            browser.settle()
        until(lambda: browser.sees(en("reason_full")), "a sentence")
        assert len(browser.all(tray)) <= 26
        grown = memory_of(address.pid) - before
        browser.driver.close()
        browser.driver.switch_to.window(here)
        until(lambda: memory_of(address.pid) - before < grown / 2, "the memory to come back", 120)


def test_files_that_are_never_asked_about_are_bounded(browser, tmp_path):
    """They wait at the box to write in; the server has taken them already."""
    (tmp_path / "large.png").write_bytes(bytes(30 * MEGABYTE))
    box = "[data-testid=stBottom] input[type=file]"
    for _ in range(6):
        browser.find(box).send_keys(str(tmp_path / "large.png"))
    uploads = "performance.getEntriesByType('resource').filter(entry => entry.name.includes('upload_file'))"
    key = f"return {uploads}.map(entry => entry.responseStatus)"
    until(lambda: len(browser.script(key)) >= 6, "six uploads")
    answers = browser.script(key)
    assert answers.count(413) >= 3 and answers.count(204) <= 3


def test_one_lesson_at_a_time_and_the_others_are_told(browser, address):
    pytest.importorskip("peft", reason="teaching needs the finetune extra")

    def prepare(page: Browser) -> None:
        page.choose("view", "Teach")
        for number, name in enumerate(("It is a wug.", "It is a dax.")):
            page.press("[class*=st-key-sample_] button", number)
            until(lambda number=number: len(page.all("[class*=st-key-name_] input")) > number, "the picture's row")
            with page.redrawn():
                page.find("[class*=st-key-name_] input", number).send_keys(name + Keys.ENTER)

    with Browser() as other:
        other.open(address)
        prepare(browser)
        prepare(other)
        browser.click(".st-key-teach button")
        until(lambda: browser.all(".st-key-teach_stop button"), "the lesson to begin")
        other.click(".st-key-teach button")
        until(lambda: en("teach_queue", num=1) in other.text(), "the queue to be said aloud")
        assert en("teach_queue", num=1) not in browser.text()
        browser.click(".st-key-teach_stop button")
        until(lambda: en("teach_queue", num=1) not in other.text(), "the other one's turn", 120)
        other.click(".st-key-teach_stop button")
        until(lambda: not other.all(".st-key-teach_stop button"), "the lesson to end", 120)
