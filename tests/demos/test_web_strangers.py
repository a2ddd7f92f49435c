"""The page in the hands of strangers: storage that is refused, downloads that break, odd files, impatience."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.demos.browser import CHROMIUM, DRIVER, FLAGS, PASTE
from tests.demos.test_web import DROP, EXAMPLES, WEB, ask, is_ready, runtime, show_picture, wait  # noqa: F401
from visglm.checkpoint import EMBEDDED_MODEL
from visglm.cli import web
from visglm.light import VisGLM as LightVisGLM
from visglm.light.manifest import Manifest

CAT = EXAMPLES / "cat.png"
PHONE = "phone.test"  # a name by which the page is another device's: no https, so that browsers keep nothing
pytestmark = pytest.mark.browser


class Site:
    """`visglm web` in this process. What it serves can be changed under the page."""

    def __init__(self, server: Any, files: dict[str, Path], place: Path):
        self.address = f"http://127.0.0.1:{server.server_port}"
        self.phone = f"http://{PHONE}:{server.server_port}"
        self.files, self.place = files, place

    def replace(self, path: str, text: str) -> None:
        """Serve a text in place of a file."""
        copy = self.place / path.strip("/").replace("/", "_")
        copy.write_text(text, "utf-8")
        self.files[path] = copy

    def before(self, path: str, code: str) -> None:
        """Serve a script that begins with some code."""
        self.replace(path, code + (WEB / path.strip("/")).read_text("utf-8"))


@pytest.fixture
def site(runtime, tmp_path) -> Iterator[Site]:  # noqa: F811
    files = web.served(EMBEDDED_MODEL, Manifest(EMBEDDED_MODEL).files)
    with web.listen("127.0.0.1", 0, files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield Site(server, files, tmp_path)
        finally:
            server.shutdown()


@contextmanager
def opened(place: Path, language: str = "en-US") -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    flags = (*FLAGS, f"--user-data-dir={place / 'profile'}", "--window-size=1000,900", f"--accept-lang={language}")
    for flag in (*flags, f"--host-resolver-rules=MAP {PHONE} 127.0.0.1"):
        options.add_argument(flag)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(tmp_path) -> Iterator[Any]:
    with opened(tmp_path) as driver:
        yield driver


def text(driver: Any, name: str) -> str:
    return driver.execute_script("return document.getElementById(arguments[0]).textContent", name)


def problem(driver: Any) -> str:
    return wait(driver, "document.getElementById('problem').textContent")


def shoot(driver: Any, name: str, place: Path) -> None:
    driver.save_screenshot(str(Path(os.environ.get("VISGLM_SCREENSHOTS", place)) / f"{name}.png"))


def drop(driver: Any, path: Path, *, paste: bool = False, kind: str = "image/png") -> None:
    script = (PASTE if paste else DROP).replace("image/png", kind)
    content = base64.b64encode(path.read_bytes()).decode()
    driver.execute_script(script, driver.find_element("id", "question"), content, path.name)


def errors(driver: Any) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


REFUSE = "Object.defineProperty(self, '{}', {{ get() {{ throw new DOMException('no', 'SecurityError'); }} }});\n"
FULL = "Cache.prototype.put = () => Promise.reject(new DOMException('full', 'QuotaExceededError'));\n"


@pytest.mark.parametrize("how", ["refused", "full", "no service worker"])
def test_the_page_answers_where_nothing_can_be_kept(site, browser, how, tmp_path):
    if how == "refused":
        site.before("/worker.js", REFUSE.format("caches"))
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": REFUSE.format("localStorage")})
        site.replace("/sw.js", "throw new Error('no');")
    elif how == "full":
        site.before("/worker.js", FULL)
        site.before("/sw.js", FULL + "Cache.prototype.addAll = Cache.prototype.put;\n")
    else:
        site.replace("/sw.js", "self.addEventListener('install', (event) => event.waitUntil(Promise.reject()));")
    browser.get(site.address)
    is_ready(browser)
    assert ask(browser, "你好")["text"]
    assert "without a network" not in text(browser, "privacy")
    assert "keeps nothing" in text(browser, "privacy")
    browser.find_element("id", "language").click()
    assert "留不下" in text(browser, "privacy")
    shoot(browser, f"web-nothing-kept-{how.split()[0]}", tmp_path)


def test_a_phone_that_opens_the_page_without_https_is_answered(site, browser):
    browser.get(site.phone)
    is_ready(browser)
    assert not browser.execute_script("return isSecureContext")
    show_picture(browser, CAT)
    assert tuple(ask(browser, "What is it?")["ids"]) == LightVisGLM.from_pretrained().chat(CAT, "What is it?").ids
    assert "keeps nothing" in text(browser, "privacy")


@pytest.mark.parametrize("name", ["/model/model.safetensors", "/worker.js"])
def test_a_download_that_breaks_is_told_and_tried_again(site, browser, name, tmp_path):
    file = site.files.pop(name)
    browser.get(site.address)
    assert Path(name).name in problem(browser)
    assert browser.find_element("id", "send").get_attribute("disabled")
    assert not browser.find_element("id", "loading").is_displayed() and "MB" not in text(browser, "status")
    assert browser.switch_to.active_element.get_attribute("id") == "again"
    browser.find_element("id", "language").click()
    assert "下载" in problem(browser) and not any("a" <= letter <= "z" for letter in said_in_chinese(problem(browser)))
    shoot(browser, f"web-download-broken-{Path(name).stem}", tmp_path)
    site.files[name] = file
    browser.find_element("id", "again").click()
    is_ready(browser)
    assert problem_is_gone(browser) and ask(browser, "你好")["text"]


def said_in_chinese(told: str) -> str:
    """Without names of files and numbers."""
    return "".join(word for word in told.replace("（", " ").replace("）", " ").split() if "." not in word)


def problem_is_gone(driver: Any) -> bool:
    return wait(driver, "document.getElementById('problem').textContent === ''")


KEPT = """
const [change, done] = arguments;
(async () => {
  const cache = await caches.open("visglm-model");
  const request = (await cache.keys()).find(({ url }) => url.includes("vision.onnx"));
  await cache.put(request, new Response(change));
})().then(done);
"""


def test_what_is_kept_and_damaged_is_fetched_again(site, browser):
    browser.get(site.address)
    is_ready(browser)
    browser.execute_async_script(KEPT, "an older version")
    browser.refresh()
    is_ready(browser)
    assert ask(browser, "你好")["text"]


def test_a_newer_model_that_cannot_be_had_leaves_the_older_one(site, browser):
    browser.get(site.address)
    is_ready(browser)
    fields = json.loads((EMBEDDED_MODEL / "light.json").read_text("utf-8"))
    fields["files"]["model.safetensors"]["sha256"] = "0" * 64
    site.replace("/model/light.json", json.dumps(fields))
    weights = site.files.pop("/model/model.safetensors")
    for _ in range(2):
        browser.refresh()
        is_ready(browser)
        assert "model.safetensors" in problem(browser) and "earlier" in problem(browser)
        assert ask(browser, "你好")["text"]
    # And with the model that there was: nothing of it has to come again.
    del site.files["/model/light.json"]
    browser.refresh()
    is_ready(browser)
    site.files |= {"/model/light.json": EMBEDDED_MODEL / "light.json", "/model/model.safetensors": weights}


def test_other_pages_of_the_same_address_are_not_kept(site, browser):
    browser.get(site.address)
    is_ready(browser)
    site.replace("/secret.json", "{}")
    browser.execute_script("return fetch('/secret.json').then((answer) => answer.text())")
    kept = browser.execute_async_script(
        "const done = arguments[0]; caches.open('visglm-page').then((cache) => cache.keys())"
        ".then((keys) => done(keys.map(({ url }) => url)))"
    )
    assert kept and not any("secret" in url for url in kept)


def test_a_second_tab_answers_too(site, browser):
    browser.get(site.address)
    is_ready(browser)
    browser.switch_to.new_window("tab")
    browser.get(site.address)
    is_ready(browser)
    second = ask(browser, "你好")
    browser.switch_to.window(browser.window_handles[0])
    assert ask(browser, "你好")["ids"] == second["ids"]


def made(place: Path) -> dict[str, Path]:
    """Pictures as strangers have them."""
    cat = Image.open(CAT).convert("RGB")
    found = {
        name: place / name for name in ("turned.jpg", "moving.gif", "grey.png", "wide.png", "dot.png", "clear.png")
    }
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = cat.resize((4000, 3000)).rotate(20)  # 12 megapixels, as a phone takes them
    photo.save(found["turned.jpg"], exif=exif, quality=90)
    cat.save(found["moving.gif"], save_all=True, append_images=[cat.rotate(90)])
    cat.convert("L").save(found["grey.png"])
    cat.resize((9000, 60)).save(found["wide.png"])
    Image.new("RGB", (1, 1), "red").save(found["dot.png"])
    faint = cat.convert("RGBA")
    faint.putalpha(Image.new("L", cat.size, 255))
    faint.paste((0, 0, 0, 0), (0, 0, 100, 100))
    faint.save(found["clear.png"])
    return found


def test_strangers_pictures_are_seen_as_python_sees_them(site, browser, tmp_path):
    vlm = LightVisGLM.from_pretrained()
    browser.get(site.address)
    is_ready(browser)
    for name, path in made(tmp_path).items():
        show_picture(browser, path)
        found = ask(browser, "What is it?")
        assert tuple(found["ids"]) == vlm.chat(path, "What is it?").ids, name
        browser.find_element("id", "clear").click()
    assert errors(browser) == []


def test_what_is_no_picture_is_told(site, browser, tmp_path):
    content = CAT.read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    Image.open(CAT).convert("RGB").save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.4")
    browser.get(site.address)
    is_ready(browser)
    for name in ("cut.png", "cut.jpg", "empty.png", "drawing.svg", "paper.pdf"):
        for paste in (False, True):
            browser.execute_script("document.getElementById('problem').textContent = ''")
            drop(browser, tmp_path / name, paste=paste, kind="" if name == "paper.pdf" else "image/png")
            assert "cannot be opened" in problem(browser), (name, paste)
            assert not browser.find_element("id", "shown").is_displayed()
    # A picture of another page comes as its address.
    browser.execute_script(
        "const data = new DataTransfer(); data.setData('text/uri-list', 'https://example.com/cat.png');"
        "document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }))"
    )
    assert "Save the picture" in wait(browser, "document.getElementById('problem').textContent")
    browser.execute_script(
        "const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));"
        "const data = new DataTransfer(); for (const name of ['a', 'b']) data.items.add(new File([bytes], name));"
        "document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }))",
        base64.b64encode(CAT.read_bytes()).decode(),
    )
    wait(browser, "!document.getElementById('shown').hidden")
    assert "one picture" in problem(browser)


SLOW_FIRST = """
const make = window.createImageBitmap.bind(window);
let number = 0;
window.createImageBitmap = async (...given) => {
  if (number++ === 0) await new Promise((resolve) => setTimeout(resolve, 1500));
  return make(...given);
};
"""


def test_the_picture_chosen_last_is_the_one(site, browser):
    browser.get(site.address)
    is_ready(browser)
    browser.execute_script(SLOW_FIRST)
    drop(browser, CAT)
    drop(browser, EXAMPLES / "fruit.png")
    wait(browser, "!document.getElementById('shown').hidden")
    browser.execute_async_script("setTimeout(arguments[0], 2500)")
    found = ask(browser, "描述这张图片。")
    assert tuple(found["ids"]) == LightVisGLM.from_pretrained().chat(EXAMPLES / "fruit.png", "描述这张图片。").ids


def test_a_question_that_fails_is_not_lost(site, browser):
    browser.get(site.address)
    is_ready(browser)
    long = "What is it? " * 160
    show_picture(browser, CAT)
    browser.execute_script("document.getElementById('question').value = arguments[0]", long)
    browser.find_element("id", "question").send_keys(Keys.ENTER)
    assert "longer than the model remembers" in problem(browser)
    assert browser.find_element("id", "question").get_attribute("value") == long
    assert browser.find_element("id", "shown").is_displayed()
    assert browser.execute_script("return document.querySelectorAll('.turn').length") == 0
    browser.find_element("id", "question").clear()
    assert ask(browser, "What is it?")["text"]


def test_impatience_does_no_harm(site, browser):
    browser.get(site.address)
    for _ in range(3):  # before it can be answered
        browser.find_element("id", "question").send_keys(Keys.ENTER)
    is_ready(browser)
    assert browser.execute_script("return window.answers.length") == 0
    show_picture(browser, CAT)
    browser.execute_script(
        "const form = document.getElementById('form'); const question = document.getElementById('question');"
        "question.value = 'What is it?'; form.requestSubmit(); question.value = '它在哪里？';"
        "form.dispatchEvent(new SubmitEvent('submit', { cancelable: true }))"
    )
    first = wait(browser, "window.answers[0]")
    assert browser.find_element("id", "question").get_attribute("value") == "它在哪里？"
    assert tuple(first["ids"]) == LightVisGLM.from_pretrained().chat(CAT, "What is it?").ids
    # The heat map, asked for twice before it is there, is one; and hidden by the next click.
    button = browser.find_element("css selector", "button.heat")
    browser.execute_script("arguments[0].click(); arguments[0].click()", button)
    wait(browser, "document.querySelector('.seen canvas')")
    browser.execute_async_script("setTimeout(arguments[0], 1500)")
    assert len(browser.find_elements("css selector", ".seen canvas")) == 1
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert not browser.find_element("css selector", ".seen canvas").is_displayed()
    assert errors(browser) == []


def test_a_heat_map_that_comes_late_lies_over_no_other_picture(site, browser):
    browser.get(site.address)
    is_ready(browser)
    show_picture(browser, CAT)
    ask(browser, "What is it?")
    browser.find_element("css selector", "button.heat").click()
    show_picture(browser, EXAMPLES / "fruit.png")
    ask(browser, "描述这张图片。")
    browser.execute_async_script("setTimeout(arguments[0], 1500)")
    assert browser.find_elements("css selector", ".seen canvas") == []


@pytest.mark.parametrize("language", ["zh-CN", "en-US"])
def test_labels_are_in_the_language_of_the_page(site, tmp_path, language):
    with opened(tmp_path, language) as browser:
        browser.get(site.address)
        is_ready(browser)
        show_picture(browser, CAT)
        ask(browser, "这是什么？")
        browser.find_element("css selector", "button.heat").click()
        wait(browser, "document.querySelector('.seen canvas')")
        names = "(element) => element.getAttribute('aria-label') ?? element.getAttribute('alt') ?? element.textContent"
        for _ in range(2):
            chinese = browser.execute_script("return document.documentElement.lang") == "zh-CN"
            told = browser.execute_script(
                f"return [...document.querySelectorAll('button, img, canvas, input:not([hidden]), #talk')].map({names})"
            )
            for name in told:
                if name not in ("English", "中文") and not name.startswith(("You", "你")):
                    assert any("\u4e00" <= letter <= "\u9fff" for letter in name) == chinese, name
            shoot(browser, f"web-{language}-{'zh' if chinese else 'en'}", tmp_path)
            browser.find_element("id", "language").click()
        assert browser.execute_script("return document.querySelectorAll('main').length") == 1
        assert browser.execute_script("return document.querySelector('main [role=log]') !== null")
        assert browser.execute_script("return document.getElementById('talk').ariaBusy") == "false"


def test_what_is_read_aloud_is_read_once(site, browser):
    """An alert whose text is set anew is read anew."""
    browser.get(site.address)
    is_ready(browser)
    browser.execute_script(
        "window.changes = 0; new MutationObserver((found) => { window.changes += found.length; })"
        ".observe(document.getElementById('problem'), { childList: true, characterData: true, subtree: true });"
        "window.changes = 0"
    )
    drop(browser, Path(__file__))
    problem(browser)
    browser.execute_async_script("setTimeout(arguments[0], 100)")
    told = browser.execute_script("return window.changes")
    show_picture(browser, CAT)  # which has it go
    ask(browser, "What is it?")
    browser.execute_async_script("setTimeout(arguments[0], 100)")
    assert (told, browser.execute_script("return window.changes")) == (1, 2)


def test_the_settings_of_a_model_hold_here_too(site, browser):
    fields = json.loads((EMBEDDED_MODEL / "light.json").read_text("utf-8"))
    fields["answers"] |= {"no_repeat_ngram_size": 2, "min_new_tokens": 12}
    site.replace("/model/light.json", json.dumps(fields))
    vlm = LightVisGLM.from_pretrained()
    vlm.manifest.answers.update(fields["answers"])
    browser.get(site.address)
    is_ready(browser)
    for number, question in enumerate(("描述这张图片。", "What is it?")):
        if number == 0:
            show_picture(browser, CAT)
            reply = vlm.chat(CAT, question)
        else:
            reply = vlm.chat(None, question, reply.history)
        assert tuple(ask(browser, question)["ids"]) == reply.ids
