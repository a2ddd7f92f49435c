"""What a run writes for people, and what of it leaves this machine."""

from __future__ import annotations

import json
import os
import re

import pytest

from tests.adapters.taught import ROWS, golden, teach
from visglm.training import hub, push


def test_reports_replace_files_and_not_what_they_are_links_to(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("report.html", "report.json", "README.md"):
        (tmp_path / f"my {name}").write_text("mine")
        (folder / name).symlink_to(tmp_path / f"my {name}")
    teach(golden(), folder)
    for name in ("report.html", "report.json", "README.md"):
        assert (tmp_path / f"my {name}").read_text() == "mine"
    assert json.loads((folder / "report.json").read_text())["samples"] == []


def test_a_readme_of_the_user_stays_and_a_card_is_brought_up_to_date(tmp_path):
    (tmp_path / "README.md").write_text("# My notes\n")
    teach(golden(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My notes\n"
    teach(golden(), tmp_path / "other")
    first = (tmp_path / "other/README.md").read_text()
    assert first.startswith("---\nlibrary_name: visglm\n")
    teach(golden(), tmp_path / "other", max_steps=4, resume=True)
    assert "4 steps" in (tmp_path / "other/README.md").read_text() and "4 steps" not in first


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_readme_that_is_no_file_stays_too(tmp_path, make):
    make(tmp_path / "README.md")
    teach(golden(), tmp_path)
    assert (tmp_path / "README.md").exists() and not (tmp_path / "README.md").is_file()
    assert (tmp_path / "report.html").is_file()


def test_the_name_of_a_data_file_cannot_break_the_card(tmp_path):
    data = tmp_path / "a```\n# Evil <img src=x>\n````.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    folder = tmp_path / 'run"); print("x'
    vlm = golden()
    settings = {"max_steps": 1, "held_out": 0.0, "num_workers": 0, "report_to": "none", "allow_outside": True}
    vlm.finetune(data, output_dir=folder, **settings)
    card = (folder / "README.md").read_text()
    fence = re.search(r"^(`{3,})\nvisglm finetune", card, re.MULTILINE)[1]
    inside = card.partition(f"{fence}\nvisglm")[2].partition(f"\n{fence}\n")[0]
    assert "# Evil" in inside and "# Evil" not in card.replace(inside, "") and fence not in inside
    assert str(tmp_path) not in card  # it is read elsewhere
    compile(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], "card", "exec")
    assert 'print("x' not in card.partition("```python")[2].partition("```")[0]


def test_only_what_answers_is_uploaded(tmp_path, monkeypatch):
    """Reports hold held-out pictures and this machine's paths."""
    sent = {}

    class Api:
        def __init__(self, token):
            pass

        def create_repo(self, *arguments, **options):
            pass

        def upload_folder(self, folder_path, allow_patterns, **options):
            from huggingface_hub.utils import filter_repo_objects

            paths = [str(p.relative_to(folder_path)) for p in (tmp_path / "run").rglob("*") if p.is_file()]
            sent["names"] = set(filter_repo_objects(paths, allow_patterns=allow_patterns))
            return type("Commit", (), {"commit_url": "url"})

    monkeypatch.setattr(hub, "HfApi", Api)
    vlm = golden()
    teach(vlm, tmp_path / "first")
    vlm.merge()
    teach(vlm, tmp_path / "run")  # with its base in it
    (tmp_path / "run/key.json").write_text("{}")
    push(tmp_path / "run", "me/run")
    assert {"adapter_model.safetensors", "visglm_adapter.json", "README.md", "base/model.safetensors"} <= sent["names"]
    assert not {name for name in sent["names"] if "report" in name or "key" in name or "checkpoint-" in name}
