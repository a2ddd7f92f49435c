"""The scripts and notebooks in examples/ run, and say what their readers are told they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from visglm import VisGLM

pytestmark = pytest.mark.timeout(300)  # each starts an interpreter that imports torch
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained(device="cpu")


@pytest.fixture
def this_python(tmp_path, monkeypatch) -> str:
    """A kernel that is the interpreter of the tests, whatever kernels a home folder has."""
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "tests", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    return "python3"


def run_script(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    return result.stdout


def texts_of(cell: nbformat.NotebookNode) -> str:
    """What a code cell printed and showed as plain text, without replies, which hold timings."""
    outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "".join(text for text in texts if not text.startswith("Reply("))


def test_first_answer_asks_in_both_languages(vlm):
    shown = run_script("first_answer.py")
    assert f"问：这是什么？\n答：{vlm.chat(EXAMPLES / 'cat.png', '这是什么？')}\n" in shown
    assert f"Q: What colour is it?\nA: {vlm.chat(EXAMPLES / 'cat.png', 'What colour is it?')}\n" in shown


def test_describe_folder_writes_a_line_for_every_picture(vlm, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "b.JPG").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("not asked about")
    shown = run_script("describe_folder.py", tmp_path, tmp_path / "out.jsonl", "--question", "What is this?")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert rows[0] == {"image": "a.png", "text": vlm.chat(tmp_path / "a.png", "What is this?").text}
    assert rows[1]["image"] == "b.JPG" and "b.JPG" in rows[1]["error"]
    assert len(rows) == 2 and shown.startswith("2 pictures")


def test_quickstart_runs_and_shows_what_it_showed(vlm, this_python):
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    stored = [texts_of(cell) for cell in notebook.cells if cell.cell_type == "code"]
    NotebookClient(notebook, timeout=280, kernel_name=this_python, resources={"metadata": {"path": EXAMPLES}}).execute()
    assert [texts_of(cell) for cell in notebook.cells if cell.cell_type == "code"] == stored
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert [output.text for output in first.outputs if output.get("name") == "stderr"] == []
    [shown] = notebook.cells[3].outputs
    assert "<img" in shown["data"]["text/html"]
    assert str(vlm.chat(EXAMPLES / "cat.png", "这是什么？")) in shown["data"]["text/html"]


def test_the_lesson_copied_elsewhere_says_what_it_needs(monkeypatch, tmp_path):
    notebook = nbformat.read(EXAMPLES / "finetune.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISGLM_EMOJI", raising=False)
    with pytest.raises(FileNotFoundError, match="run this in examples/ of the repository.*VISGLM_EMOJI"):
        exec(first.source, {})
