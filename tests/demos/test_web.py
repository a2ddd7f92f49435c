"""The page that answers in the browser alone: its tokenizer, its pictures, and the whole of it in Chromium."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tests.demos.browser import CHROMIUM, DRIVER, FLAGS, PASTE, PATIENCE
from tests.light.talks import EXAMPLES
from visglm.checkpoint import EMBEDDED_MODEL
from visglm.cli import web
from visglm.errors import VisGLMError
from visglm.light import VisGLM as LightVisGLM
from visglm.light.manifest import Manifest

WEB = Path(__file__).parents[2] / "demos" / "web"
ZH = "模型就在这个网页里运行，图片和问题都不会离开这台设备。第一次打开之后，没有网络也能用。"
EN = (
    "The model runs inside this page: no picture and no question leaves this device. "
    "After the first visit it works without a network."
)
DROP = (
    PASTE.replace("ClipboardEvent", "DragEvent")
    .replace('"paste"', '"drop"')
    .replace("clipboardData: clipboard", "dataTransfer: clipboard")
)
WORDS = (
    *("猫", "狗", "老虎", "图片", "颜色", "红色的", "你好", "世界", "左边", "它在哪里？", "描述这张图片。", "有几个"),
    *("，", "。", "！", "：", "；", "？", "「」", "《书》", "cat", "Dog", "picture", "What is it?", "colour", "the"),
    *("left-hand side,", "don't", "I'm", "3.14", "1,000", "e.g.", "C++", "naïve", "café", "Ωmega", "한국어", "ไทย"),
    *("😀", "👩\u200d👩\u200d👧", "🇨🇳", "🐱", "é", "e\u0301", "ﬁ", "①", "㎏", "Ａｂｃ", "ｶﾞ", "عربي", "𠮷", "𝔘"),
    *("[gMASK]", "<sop>", "<eop>", "<|image|>", "<n>", "＜n＞", "<|blank_4|>", "<img>", "</img>", "<unk>", "<0x41>"),
    *("▁", " ", "  ", "   ", "     ", "\n", "\n\n", "\t", "\r\n", "\u3000", "\u00a0", "\u200b", "\ufeff", "\x00"),
    *("\x1f", "\u2028"),
)


def strings(count: int, seed: int = 0) -> Iterator[str]:
    """Texts of both languages, emoji, rare and unassigned characters, typed control tokens, whitespace of all kinds."""
    random_numbers = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(random_numbers.randint(0, 12)):
            if random_numbers.random() < 0.15:
                number = random_numbers.choice((0x250, 0x3000, 0x9FFF, 0xFFFF, 0x10FFFF))
                character = chr(random_numbers.randint(1, number))
                parts.append(character if not 0xD800 <= ord(character) < 0xE000 else "�")
            else:
                parts.append(random_numbers.choice(WORDS) + random_numbers.choice(("", "", " ")))
        yield "".join(parts)


def tokenized(texts: list[str]) -> list[tuple[list[int], str]]:
    """Ids of each text by the page's tokenizer, and what it makes of them again."""
    words = ["node", str(Path(__file__).parent / "tokenize.mjs")]
    words += [str(EMBEDDED_MODEL / name) for name in ("ice_text.model", "light.json")]
    result = subprocess.run(words, input=json.dumps(texts), capture_output=True, text=True, check=True)
    return [(ids, text) for ids, text in json.loads(result.stdout)]


@pytest.mark.browser
def test_the_tokenizer_is_ours_on_ten_thousand_strings():
    tokenizer, texts = LightVisGLM.from_pretrained().tokenizer, list(strings(10_000))
    for text, (ids, again) in zip(texts, tokenized(texts), strict=True):
        assert ids == tokenizer.encode(text), text
        assert again == tokenizer.decode(ids), text


@contextmanager
def served() -> Iterator[str]:
    """The address of `visglm web`, on a free port, until the `with` ends."""
    words = [sys.executable, "-m", "visglm", "web", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = iter(process.stderr.readline, "")
            address = next((line.split()[0] for line in said if line.startswith("http://")), None)
            assert address is not None, "the command ended before it listened"
            yield address
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def runtime() -> None:
    """What the page runs on, which the command has npm bring. Nothing else here needs npm and its registry."""
    try:
        web.fetch_runtime()
    except VisGLMError as error:
        pytest.skip(str(error))


@pytest.fixture
def browser(runtime, tmp_path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,900"):
        options.add_argument(flag)
    options.binary_location = CHROMIUM
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def wait(driver: Any, script: str, seconds: float = PATIENCE) -> Any:
    """Until the script gives something true; what it gives."""
    return WebDriverWait(driver, seconds, 0.05).until(lambda driver: driver.execute_script(f"return {script}"))


def is_ready(driver: Any) -> bool:
    return bool(wait(driver, "!document.getElementById('send').disabled"))


def show_picture(driver: Any, path: Path) -> None:
    driver.find_element("id", "file").send_keys(str(path))
    wait(driver, "!document.getElementById('shown').hidden && document.getElementById('preview').complete")


def ask(driver: Any, question: str) -> dict[str, Any]:
    before = driver.execute_script("return window.answers.length")
    driver.find_element("id", "question").send_keys(question, Keys.ENTER)
    return wait(driver, f"window.answers[{before}]")


TALKS = (
    ("cat.png", "What is it?"), (None, "它在哪里？"), (None, "What colour is it?"),
    ("fruit.png", "描述这张图片。"), (None, "有几个？"), ("pair.png", "Which one is left?"),
)  # fmt: skip
MORE_TALKS = (
    ("pair.png", "图里有什么？"), (None, "左边是什么？"), ("cat.png", "这是狗吗？"),
    (None, "你好"), (None, "How many are there?"), ("fruit.png", "What is it?"),
)  # fmt: skip


@pytest.mark.browser
def test_twelve_answers_without_a_network_are_pythons(browser, tmp_path):
    vlm = LightVisGLM.from_pretrained()
    with served() as address:
        started = time.perf_counter()
        browser.get(address)
        is_ready(browser)
        loaded = time.perf_counter() - started
        asked = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert all(name.startswith((address, "data:")) for name in asked)
    # The server is gone, and with it all that the page could reach.
    first = {}
    for talk in (TALKS, MORE_TALKS):
        history = None
        for picture, question in talk:
            if picture is not None:
                show_picture(browser, EXAMPLES / picture)
            answer = ask(browser, question)
            first = first or answer
            reply = vlm.chat([] if picture is None else EXAMPLES / picture, question, history)
            assert (tuple(answer["ids"]), answer["text"]) == (reply.ids, reply.text), question
            history = reply.history
        browser.find_element("id", "clear").click()
    browser.refresh()
    is_ready(browser)  # after the first visit, the page itself needs no network either
    show_picture(browser, EXAMPLES / "cat.png")
    again = ask(browser, "What is it?")
    assert again["ids"] == first["ids"]
    sizes = [path.stat().st_size for path in (EMBEDDED_MODEL / name for name in vlm.manifest.files)]
    print(
        f"\nmodel {sum(sizes) / 1e6:.1f} MB; ready after {loaded:.1f} s; first answer {first['seconds'] / 1e3:.2f} s, "
        f"its first token {first['firstToken'] / 1e3:.2f} s; an answer later {again['seconds'] / 1e3:.2f} s"
    )
    assert sum(sizes) <= 45e6


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_used_on_a_phone_and_by_keyboard(browser, scheme, tmp_path):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    with served() as address:
        browser.get(address)
        is_ready(browser)
        browser.find_element("id", "language").send_keys(Keys.ENTER)
        language = browser.execute_script("return document.documentElement.lang")
        assert browser.find_element("id", "privacy").text == {"zh-CN": ZH, "en": EN}[language]
        show_picture(browser, EXAMPLES / "cat.png")
        assert browser.switch_to.active_element.get_attribute("id") == "question"
        assert ask(browser, "What is it?")["text"]
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        reached = set()
        for _ in range(12):
            browser.switch_to.active_element.send_keys(Keys.TAB)
            reached.add(browser.switch_to.active_element.get_attribute("id"))
        assert {"language", "choose", "photograph", "question", "send", "clear", "talk"} <= reached
        folder = Path(os.environ.get("VISGLM_SCREENSHOTS", tmp_path))
        browser.save_screenshot(str(folder / f"web-{scheme}.png"))


@pytest.mark.browser
def test_pictures_are_dropped_pasted_and_refused(browser, tmp_path):
    with served() as address:
        browser.get(address)
        is_ready(browser)
        picture = base64.b64encode((EXAMPLES / "cat.png").read_bytes()).decode()
        browser.execute_script(PASTE, browser.find_element("id", "question"), picture, "cat.png")
        wait(browser, "!document.getElementById('shown').hidden")
        browser.find_element("id", "remove").click()
        assert browser.execute_script("return document.getElementById('shown').hidden")
        browser.execute_script(DROP, browser.find_element("id", "form"), picture, "cat.png")
        wait(browser, "!document.getElementById('shown').hidden")
        (tmp_path / "broken.png").write_bytes(b"no picture")
        browser.find_element("id", "file").send_keys(str(tmp_path / "broken.png"))
        wait(browser, "document.getElementById('problem').textContent")


@pytest.mark.browser
def test_the_heat_map_is_pythons_and_lies_over_the_picture(browser, tmp_path):
    vlm = LightVisGLM.from_pretrained()
    with served() as address:
        browser.get(address)
        is_ready(browser)
        show_picture(browser, EXAMPLES / "cat.png")
        first = ask(browser, "What is it?")
        history = vlm.chat(EXAMPLES / "cat.png", "What is it?").history
        for question in (None, "它在哪里？"):  # the second is about the same picture
            text = first["text"] if question is None else ask(browser, question)["text"]
            browser.execute_script("window.heat = null")
            browser.find_element("css selector", "button.heat").send_keys(Keys.ENTER)
            found = wait(browser, "window.heat && {...window.heat, heat: [...window.heat.heat]}")
            if question is None:
                wanted = vlm.explain(EXAMPLES / "cat.png", "What is it?", text)
            else:
                wanted = vlm.explain(EXAMPLES / "cat.png", question, text, history)
            heat = np.array(found["heat"], np.float32).reshape(found["rows"], found["columns"])
            np.testing.assert_allclose(heat, wanted.heat, atol=1e-3, rtol=0)
        picture, canvas = (browser.find_element("css selector", f".seen {name}").rect for name in ("img", "canvas"))
        assert picture == canvas
        folder = Path(os.environ.get("VISGLM_SCREENSHOTS", tmp_path))
        browser.save_screenshot(str(folder / "web-heat.png"))
        browser.find_element("css selector", "button.heat").click()
        assert not browser.find_element("css selector", ".seen canvas").is_displayed()


@pytest.mark.browser
def test_an_answer_is_stopped(browser):
    with served() as address:
        browser.get(address)
        is_ready(browser)
        show_picture(browser, EXAMPLES / "pair.png")
        # Between two pieces, however fast the machine is.
        browser.execute_script(
            "new MutationObserver((_, watch) => { watch.disconnect(); document.getElementById('stop').click(); })"
            ".observe(document.getElementById('talk'), { subtree: true, characterData: true, childList: true })"
        )
        assert len(ask(browser, "描述这张图片。")["ids"]) < 4
        assert len(ask(browser, "描述这张图片。")["ids"]) >= 4


def test_only_the_pages_own_files_are_served():
    files = web.served(EMBEDDED_MODEL, Manifest(EMBEDDED_MODEL).files)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(web.Handler, files)) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            for path in ("/../pyproject.toml", "/model/..%2f..%2fchat.py", "/package.json", "/model/config.json"):
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(address + path)
            with urllib.request.urlopen(address) as page:
                assert "connect-src 'self'" in page.headers["Content-Security-Policy"]
            with urllib.request.urlopen(f"{address}/model/light.json") as manifest:
                assert json.load(manifest)["format"] == 1
        finally:
            server.shutdown()


def test_the_page_says_the_same_in_both_languages():
    texts = (WEB / "texts.js").read_text("utf-8")
    zh, en = (texts[texts.index(f"  {name}: {{") :].split("\n  },")[0] for name in ("zh", "en"))
    names = [re.findall(r"^    (\w+):", text, re.MULTILINE) for text in (zh, en)]
    assert names[0] == names[1]
    used = set(re.findall(r'data-(?:text|label|alt|placeholder)="(\w+)"', (WEB / "index.html").read_text("utf-8")))
    used |= set(re.findall(r"\bsay\.(\w+)", (WEB / "app.js").read_text("utf-8")))
    scripts = [(WEB / name).read_text("utf-8") for name in ("files.js", "worker.js")]
    used |= set(re.findall(r'new Problem\("(\w+)"', "".join(scripts)))  # which the page says by their name
    assert used == {*names[0]}
