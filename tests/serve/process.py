"""`visglm serve` in a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from tests.serve.knocking import CHAT, KEY

ROOT = Path(__file__).parents[2]


class Running:
    """A server: its process, its port, what it has written to stderr."""

    def __init__(self, process: subprocess.Popen, patience: float = 100):
        self.process, self.patience, self.lines = process, patience, []
        self._reader = threading.Thread(
            target=lambda: self.lines.extend(iter(process.stderr.readline, "")), daemon=True
        )
        self._reader.start()
        self.port = int(self.wait_for(r"127\.0\.0\.1:(\d+)/v1"))

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str) -> str:
        started = time.monotonic()
        while not (found := re.search(pattern, self.log)):
            assert self.process.poll() is None and time.monotonic() - started < self.patience, self.log
            time.sleep(0.01)
        return found[1] if found.groups() else found[0]

    def post(self, body, key: str = KEY) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request("POST", CHAT, json.dumps(body), headers)
        response = connection.getresponse()
        response.connection = connection  # or else it would be closed
        return response

    def get(self, path: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
        return connection.getresponse()

    def metric(self, name: str) -> float:
        return float(re.search(rf"^{name} (\S+)$", self.get("/metrics").read().decode(), re.MULTILINE)[1])


@contextmanager
def running(*words: str):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VISGLM_API_KEYS": KEY}
    process = subprocess.Popen(
        [sys.executable, "-m", "visglm", "serve", "--port", "0", "--device", "cpu", *words],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        yield Running(process)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
