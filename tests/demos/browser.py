"""A page in a real browser: the server, Chromium, and the few things a person does with them."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE = float(os.environ.get("VISGLM_BROWSER_PATIENCE", "60"))  # seconds for anything to appear
# It must not look for updates or accounts: a test has no network.
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
)
PASTE = """
const [target, base64, name] = arguments;
const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const clipboard = new DataTransfer();
clipboard.items.add(new File([bytes], name, { type: "image/png" }));
target.dispatchEvent(new ClipboardEvent("paste", { clipboardData: clipboard, bubbles: true, cancelable: true }));
"""
# Notes what the page has asked of its server and had answered, so that a click can be told from the drawing that
# follows it, and when it last changed. The page's own state is no help with that: it never says "running" when a run is
# over before the browser paints, and not yet when the machine is slow.
WATCH = """
window.asked = window.answered = window.changed = 0;
const note = () => { window.changed = performance.now(); };
window.WebSocket = class extends WebSocket {
  constructor(...address) {
    super(...address);
    this.addEventListener("message", () => { window.answered = window.asked; note(); });
  }
  send(message) {
    window.asked += 1;
    super.send(message);
  }
};
new MutationObserver(note).observe(document, { childList: true, subtree: true });
"""
IS_SETTLED = """
const app = document.querySelector("[data-testid=stApp]");
return app?.dataset.testScriptState === "notRunning" && performance.now() - window.changed > 500;
"""


# Whether a person sees all of an element: it lies in the window, and nothing lies over its middle.
IS_SEEN = """
const isSeen = (element) => {
  const box = element.getBoundingClientRect();
  const isDrawn = element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  if (!box.width || !box.height || !isDrawn) return false;
  if (box.top < 0 || box.left < 0 || box.bottom > innerHeight + 1 || box.right > innerWidth + 1) return false;
  const hit = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
  return hit !== null && (element.contains(hit) || hit.parentElement === element.parentElement);
};
"""
SEEN_TEXT = (
    IS_SEEN
    + """
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_ELEMENT);
while (walker.nextNode()) {
  const element = walker.currentNode;
  const inside = [...element.children].some((child) => child.innerText?.includes(arguments[0]));
  if (!inside && element.innerText?.includes(arguments[0]) && isSeen(element)) return true;
}
return false;
"""
)


class Served(str):
    """The address of a page, and what runs behind it."""

    pid: int  # of the process that answers
    data: Path  # where its user's data lies


@contextmanager
def serve(*arguments: str, log: Path, **environment: str) -> Iterator[Served]:
    """`visglm app`, on a free port; yields the page's address. Its user has no data from before."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "visglm", "app", "--port", str(port), *arguments]
    data = Path(tempfile.mkdtemp(prefix="visglm-data-"))
    environment = {**os.environ, "XDG_DATA_HOME": str(data), **environment}
    with log.open("wb") as file:
        # A session of its own, so that Streamlit, which the command starts, ends with it.
        process = subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        try:
            until(lambda: is_open(port) or process.poll() is not None, "the server to listen")
            served = Served(f"http://127.0.0.1:{port}")
            served.pid, served.data = listener(process.pid), data
            yield served
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)
            shutil.rmtree(data, ignore_errors=True)


def listener(pid: int) -> int:
    """The process that answers: Streamlit, which the command has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return int(children.read_text().split()[0]) if children.exists() and children.read_text().split() else pid


def memory_of(pid: int, peak: bool = False) -> int:
    """Bytes a process holds now, or held at the most since `forget_peak`."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait for a true value and return it. What the page drew anew while it was being looked at is looked at again."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with suppress(StaleElementReferenceException):
            if value := condition():
                return value
        time.sleep(0.1)
    raise TimeoutError(f"waited {patience:g} seconds for {what}")


class Browser:
    """Chromium on the page.

    Args:
        language: the browser's, such as "zh-CN". width, height: of the window, in pixels. dark: what the visitor
            prefers. mobile: a telephone.
    """

    def __init__(
        self, language: str = "en-US", width: int = 1280, height: int = 860, dark: bool = False, mobile: bool = False
    ):
        self.profile = tempfile.mkdtemp(prefix="visglm-browser-")
        self.downloads = Path(tempfile.mkdtemp(prefix="visglm-downloads-"))
        options = webdriver.ChromeOptions()
        several = "profile.default_content_setting_values.automatic_downloads"  # files, without being asked
        prefs = {"download.default_directory": str(self.downloads), several: 1}
        options.add_experimental_option("prefs", prefs)
        options.binary_location = CHROMIUM
        size = f"--window-size={width},{height}"
        for flag in (*FLAGS, size, f"--user-data-dir={self.profile}", f"--accept-lang={language}"):
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.emulate("setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.emulate("setLocaleOverride", locale=language)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.emulate("setEmulatedMedia", features=[scheme])

    def emulate(self, command: str, **values: Any) -> None:
        self.driver.execute_cdp_cmd(f"Emulation.{command}", values)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exception: object) -> None:
        self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)
        shutil.rmtree(self.downloads, ignore_errors=True)

    def open(self, address: str) -> None:
        # Here, not once for all: it holds for the tab that is at the front.
        self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        self.driver.get(address)
        self.find("[data-testid=stChatInputTextArea]")
        self.settle()

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def find(self, css: str, number: int = -1) -> WebElement:
        return until(lambda: self.all(css), css)[number]

    def reload(self) -> None:
        self.driver.refresh()
        self.find("[data-testid=stChatInputTextArea]")
        self.settle()

    def script(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def sees(self, text: str) -> bool:
        """Whether a person who looks at the window reads this text there."""
        return self.script(SEEN_TEXT, text)

    def shows(self, css: str, number: int = -1) -> bool:
        """Whether all of the element is in the window, uncovered."""
        found = self.all(css)
        return bool(found) and self.script(IS_SEEN + "return isSeen(arguments[0]);", found[number])

    def downloaded(self, pattern: str) -> Path:
        """The file that was saved, once it is whole."""
        return until(lambda: list(self.downloads.glob(pattern)), f"a file {pattern} on the disk")[0]

    def settle(self) -> None:
        """Wait until the page has been drawn."""
        until(lambda: self.driver.execute_script(IS_SETTLED), "the page to settle", 2 * PATIENCE)

    def click(self, css: str, number: int = -1) -> None:
        self.driver.execute_script("arguments[0].click()", self.find(css, number))

    def press(self, css: str, number: int = -1) -> None:
        """Click what makes the page draw itself anew, and wait until it has."""
        with self.redrawn():
            self.click(css, number)

    @contextmanager
    def redrawn(self) -> Iterator[None]:
        """Wait until the page has been drawn anew by what is done meanwhile."""
        self.settle()
        before = self.driver.execute_script("return window.asked")
        yield
        until(lambda: self.driver.execute_script("return window.answered") > before, "the page to be drawn anew")
        self.settle()

    def say(self, text: str) -> None:
        box = self.find("[data-testid=stChatInputTextArea]")
        box.send_keys(text)

        def is_sent() -> bool:
            box.send_keys(Keys.ENTER)
            return not box.get_attribute("value")

        until(is_sent, "the box to send, which it does not while a picture is on its way")

    def said(self) -> list[str]:
        """What both have said, the page's visible text: read at once, for the page may be drawn anew at any moment."""
        return self.script("return [...document.querySelectorAll('.said')].map(element => element.innerText)")

    def send(self, css: str, keys: str, number: int = -1) -> None:
        """Type into an element, or give it files."""
        until(lambda: self.find(css, number).send_keys(keys) or True, f"{css} to take it")

    def ask(self, text: str) -> str:
        """Ask, wait for the whole answer, and return it."""
        before = len(self.all(".said"))
        self.say(text)
        until(lambda: len(self.all(".said")) >= before + 2, "the answer")
        until(lambda: not self.all(".cursor"), "the end of the answer", 2 * PATIENCE)
        self.settle()
        return self.said()[-1]

    def upload(self, path: Path) -> None:
        """Through the first uploader of the main page."""
        self.send("[data-testid=stMain] [data-testid=stFileUploaderDropzoneInput]", str(path), 0)

    def paste(self, png: bytes) -> None:
        box = self.find("[data-testid=stChatInputTextArea]")
        self.driver.execute_script(PASTE, box, base64.b64encode(png).decode(), "pasted.png")

    def choose(self, key: str, label: str) -> None:
        """Pick from a select box or a segmented control."""
        until(lambda: self.all(f".st-key-{key} button, .st-key-{key} input"), f"{key} to be drawn")
        for number, button in enumerate(self.all(f".st-key-{key} button")):
            if button.text.strip() == label:
                if button.get_attribute("aria-checked") != "true":
                    self.press(f".st-key-{key} button", number)
                return
        box = self.find(f".st-key-{key} input")
        if box.get_attribute("value") != label:
            with self.redrawn():
                box.send_keys(label + Keys.ENTER)

    def text(self) -> str:
        return self.script("return document.body.innerText")

    def shoot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(path))
