"""The site builds without a warning, every link inside leads somewhere, and a reader's browser asks nobody else."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
from selenium.webdriver import ActionChains

import visglm
from tests.demos.browser import CHROMIUM, DRIVER, Browser, until
from tests.docs.pages import ENGLISH, ROOT

SITE = ROOT / "build/site"
# The dialog, which lies in the shadow of the one element that has any.
SEARCH = """
const search = [...document.querySelectorAll("*")].map((host) => host.shadowRoot?.querySelector("dialog[open]"))
  .find((dialog) => dialog) ?? undefined;
"""
WIDTHS, LANGUAGES = (1280, 390), ("en", "zh")


@pytest.fixture(scope="module")
def site() -> Path:
    """Built as `make docs` builds it."""
    done = subprocess.run([sys.executable, ROOT / "docs/build.py"], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return SITE


class Page(HTMLParser):
    """What a page links to, loads, and can be linked to at."""

    def __init__(self, path: Path):
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for name, value in attrs if name in ("id", "name") and value}
        if tag == "a" and values.get("href"):
            self.targets.append(values["href"])
        rel = values.get("rel") or ""
        if tag == "link" and rel not in ("canonical", "prev", "next", "alternate"):
            self.loaded.append(values.get("href") or "")
        if tag in ("img", "script", "iframe", "source", "video"):
            self.loaded += [values["src"]] if values.get("src") else []


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_links_inside_lead_somewhere(pages):
    lost = []
    for path, page in pages.items():
        if path.name == "404.html":  # answers for any address, and so its links begin at the site's root
            continue
        for target in page.targets + page.loaded:
            name, anchor = urldefrag(unquote(target))
            if re.match(r"[a-z]+:", name):
                continue
            file = (path.parent / name).resolve() if name else path
            if (
                not file.is_file()
                or anchor
                and file in pages
                and anchor not in pages[file].anchors
                and not anchor.startswith("__")
            ):
                lost.append(f"{path.relative_to(SITE)}: {target}")
    assert lost == []


def test_nothing_foreign_is_loaded(pages):
    assert [target for page in pages.values() for target in page.loaded if re.match(r"(https?:)?//", target)] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_public_name_has_its_place_and_says_what_it_is_for(site, language):
    overview = (site / language / "api/index.html").read_text("utf-8")
    reference = "".join(path.read_text("utf-8") for path in (site / language / "api").glob("*.html"))
    for name in visglm.__all__:
        assert f'id="visglm.{name}"' in reference, name
        row = re.search(rf">{name}</code></a></td>\s*<td>(.*?)</td>", overview, re.DOTALL)
        assert row and row[1].strip(), name
    for method in ("chat", "stream_chat", "batch", "finetune", "from_pretrained"):
        assert f'id="visglm.VisGLM.{method}"' in reference


def build_script() -> Any:
    spec = importlib.util.spec_from_file_location("documentation", ROOT / "docs/build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build


def test_what_is_unchanged_is_not_built_again(site, monkeypatch, capsys, tmp_path):
    build = build_script()
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("it was built again"))
    assert build.main() == 0 and "pages in build/site" in capsys.readouterr().out
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "docs/en").mkdir(parents=True)
    digests = []
    for content in ("a", "b"):
        (tmp_path / "docs/en/page.md").write_text(content)
        digests.append(build.digest())
    (tmp_path / "visglm").mkdir()
    (tmp_path / "visglm/more.py").write_text("")
    assert len({*digests, build.digest()}) == 3


def documented() -> list[tuple[str, Any]]:
    """Public names, and the members of classes among them."""
    build, found = build_script(), []
    for path in [path for paths in build.public_names().values() for path in paths]:
        module, _, name = path.rpartition(".")
        value = getattr(importlib.import_module(module), name)
        members = vars(value).items() if inspect.isclass(value) else ()
        found += [(path, value), *((f"{path}.{key}", getattr(member, "__func__", member)) for key, member in members)]
    return [
        (path, value)
        for path, value in found
        if callable(value) and re.search("Args:|Raises:", value.__doc__ or "") and "._" not in path
    ]


@pytest.mark.parametrize("path, value", documented(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_parameter_and_error_of_a_docstring_begins_a_line(path, value):
    """Behind another one's text it would be a part of that."""
    fields = {*inspect.signature(value).parameters, *getattr(value, "__annotations__", ())} - {"self", "kwargs"}
    for line in value.__doc__.splitlines():
        for name in re.findall(r"\. (\w+): ", line):
            assert name not in fields and not name.endswith("Error"), line.strip()


def test_a_broken_link_and_a_bad_docstring_end_the_build(tmp_path):
    """A copy of the repository as far as the site needs it, with each, one after the other."""
    kept = ("finetune", "benchmarks", "examples", "demos", "NOTICE", "LICENSE")
    for name in (*kept, "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("docs", "visglm"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    page = tmp_path / "docs/en/asking.md"
    text = page.read_text("utf-8")

    def build() -> str:
        command = [sys.executable, tmp_path / "docs/build.py"]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 1
        return done.stderr

    page.write_text(text + "\n[lost](nowhere.md)\n", "utf-8")
    assert "docs/en/asking.md: the link 'nowhere.md' leads to no file" in build()
    page.write_text(text + "\n[lost](api/visglm.md#visglm.Nothing)\n", "utf-8")
    assert "anchor does not exist" in build()
    page.write_text(text, "utf-8")
    module = tmp_path / "visglm/sampling.py"
    module.write_text(module.read_text("utf-8").replace("        top_k: sample", "        top_q: sample"), "utf-8")
    assert "Parameter 'top_q' does not appear" in build()


@pytest.fixture(scope="module")
def served(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def requests_of(browser: Browser) -> list[str]:
    """Addresses of all that the page has asked for."""
    return browser.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")


def open_search(browser: Browser) -> bool:
    """Click until the dialog is there: its script comes after the button."""
    browser.click(".md-search__button")
    return browser.script(SEARCH + "return search !== undefined")


def found_by(browser: Browser) -> list[str]:
    return browser.script(SEARCH + "return [...search.querySelectorAll('a')].map((link) => link.href)")


@pytest.mark.browser
@pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and not os.environ.get("VISGLM_NEEDS_BROWSER"),
    reason="chromium and chromedriver are not installed (Debian: apt install chromium chromium-driver)",
)
class TestInABrowser:
    @pytest.mark.parametrize("width", WIDTHS)
    @pytest.mark.parametrize("language", LANGUAGES)
    def test_pages_fit_and_ask_nobody_else(self, served, language, width):
        with Browser(width=width, height=900, mobile=width < 500) as browser:
            for name in [page.stem for page in ENGLISH] + ["api/visglm", "model-card", "results"]:
                browser.driver.get(f"{served}/{language}/{name}.html")
                until(lambda: browser.script("return document.readyState") == "complete", "the page")
                assert browser.all("article h1"), name
                assert browser.script("return document.documentElement.scrollWidth") <= width, name
                foreign = [address for address in requests_of(browser) if not address.startswith(served)]
                assert foreign == [], name
                broken = "return [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src)"
                assert browser.script(broken) == [], name

    def test_the_other_language_is_one_click_away_on_the_same_page(self, served):
        with Browser() as browser:
            browser.driver.get(f"{served}/en/teaching.html")
            until(lambda: browser.all("a[hreflang=zh]"), "the languages")
            browser.click("a[hreflang=zh]")
            until(lambda: browser.driver.current_url.endswith("/zh/teaching.html"), "the Chinese page")
            assert "教它新东西" in browser.find("h1").text

    @pytest.mark.parametrize("words, language", [("quantize", "en"), ("量化", "zh")])
    def test_search_finds(self, served, words, language):
        with Browser(language={"en": "en-US", "zh": "zh-CN"}[language]) as browser:
            browser.driver.get(f"{served}/{language}/index.html")
            browser.find(".md-search__button")
            until(lambda: open_search(browser), "the box")
            ActionChains(browser.driver).send_keys(words).perform()
            until(lambda: any("quantization.html" in address for address in found_by(browser)), "what it found")

    def test_the_front_door_opens_in_the_readers_language(self, served):
        for language, code in (("en-US", "en"), ("zh-CN", "zh")):
            with Browser(language=language) as browser:
                browser.driver.get(f"{served}/index.html")
                until(lambda code=code, browser=browser: f"/{code}/index.html" in browser.driver.current_url, language)
