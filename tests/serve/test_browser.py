"""A page of another server, in a real browser: it may ask where it was allowed, and nowhere else."""

from __future__ import annotations

import json
import os

import pytest

from tests.demos.browser import CHROMIUM, DRIVER, Browser
from tests.serve.knocking import CHAT, KEY, asking, data_url, user
from tests.serve.process import running
from tests.web import serve

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER) and not os.environ.get("VISGLM_NEEDS_BROWSER"),
        reason="needs Chromium and its chromedriver",
    ),
]
ASK = """
const [address, key, body, done] = arguments;
const headers = { "Content-Type": "application/json", Authorization: `Bearer ${key}` };
fetch(address, { method: "POST", headers, body: JSON.stringify(body) })
  .then((answer) => answer.text())
  .then(done, (error) => done(`refused: ${error}`));
"""


def test_a_page_asks_where_it_was_allowed():
    with serve() as ours, serve() as others:
        for web in (ours, others):
            web.page("/", b"<!doctype html><title>page</title>", Content_Type="text/html")
        with running("--allowed-origin", ours.url("")) as server, Browser() as window:
            browser = window.driver
            browser.set_script_timeout(60)
            address = f"http://127.0.0.1:{server.port}{CHAT}"
            body = asking(user("这是什么？", data_url("cat.png")), stream=True)
            browser.get(ours.url("/"))
            told = browser.execute_async_script(ASK, address, KEY, body)
            *chunks, last = (line.removeprefix("data: ") for line in told.splitlines() if line)
            pieces = [json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks]
            assert "".join(pieces).startswith("这是猫") and len(pieces) > 3 and last == "[DONE]"
            assert "invalid_api_key" in browser.execute_async_script(ASK, address, "wrong-key-0123456789", body)
            browser.get(others.url("/"))
            assert browser.execute_async_script(ASK, address, KEY, body).startswith("refused")
