"""Uploads: huggingface_hub's own client against a hub on this machine that keeps what it is given."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import constants

from visglm.errors import VisGLMError
from visglm.training import push


class Hub:
    """Repositories by name: what came with the request that made them, and the files that were committed."""

    def __init__(self) -> None:
        self.made: dict[str, dict[str, Any]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str] = set()
        self.url = ""

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] == "nobody":
                return 403, {"error": "you are not nobody"}
            self.made[name] = asked
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        _, _, _, owner, name, action, _ = path.split("/")
        if action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        assert action == "commit"
        parts = [json.loads(line) for line in body.splitlines()]
        self.files[f"{owner}/{name}"] = {
            part["value"]["path"]: base64.b64decode(part["value"]["content"]) for part in parts if part["key"] == "file"
        }
        return 200, {"commitUrl": f"{self.url}/{owner}/{name}/commit/1", "commitOid": "1" * 40}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hub.tokens.add(self.headers["Authorization"])
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, answer = hub.answer(self.path.partition("?")[0], body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_result_goes_up_without_what_only_training_needs(tmp_path, hub):
    for name in ("adapter_model.safetensors", "README.md", "checkpoint-4/optimizer.pt", "runs/a/events", "partial/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert push(tmp_path, "me/emoji", token="hf_secret") == f"{hub.url}/me/emoji/commit/1"
    assert hub.made["me/emoji"].get("private") or hub.made["me/emoji"].get("visibility") == "private"
    names = ("README.md", "adapter_model.safetensors")
    assert hub.files["me/emoji"] == {name: name.encode() for name in names}
    assert hub.tokens == {"Bearer hf_secret"}


def test_a_public_one_is_public(tmp_path, hub):
    (tmp_path / "README.md").write_text("x")
    push(tmp_path, "me/open", private=False, token="hf_secret")
    assert not hub.made["me/open"].get("private") and hub.made["me/open"].get("visibility") != "private"


def test_a_refusal_says_what_to_do(tmp_path, hub):
    with pytest.raises(VisGLMError, match="(?s)403.*hf auth login"):
        push(tmp_path, "nobody/emoji", token="hf_secret")


def test_without_a_network_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(VisGLMError, match="(?s)me/emoji cannot be written: .*Check the network"):
        push(tmp_path, "me/emoji", token="hf_secret")
