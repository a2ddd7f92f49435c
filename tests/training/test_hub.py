"""Uploads, against a stand-in for the hub that keeps what it is given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from visglm.errors import VisGLMError
from visglm.training import push


class StandIn:
    repositories: dict[str, Any] = {}

    def __init__(self, token: str | None = None):
        self.token = token

    def create_repo(self, repository: str, private: bool, exist_ok: bool) -> None:
        if repository.startswith("nobody/"):
            raise OSError("403 Forbidden")
        self.repositories[repository] = {"private": private, "files": set()}

    def upload_folder(self, repo_id: str, folder_path: str, ignore_patterns: list[str], commit_message: str) -> Any:
        names = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        self.repositories[repo_id]["files"] = set(filter_repo_objects(names, ignore_patterns=ignore_patterns))
        return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visglm.training.hub.HfApi", StandIn)


def test_a_result_goes_up_without_what_only_training_needs(tmp_path):
    for name in ("adapter_model.safetensors", "README.md", "checkpoint-4/optimizer.pt", "runs/a/events", "partial/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert push(tmp_path, "me/emoji") == "hub/me/emoji/commit/1"
    assert StandIn.repositories["me/emoji"] == {"private": True, "files": {"adapter_model.safetensors", "README.md"}}


def test_a_refusal_says_what_to_do(tmp_path):
    with pytest.raises(VisGLMError, match="403 Forbidden.*hf auth login"):
        push(tmp_path, "nobody/emoji")
