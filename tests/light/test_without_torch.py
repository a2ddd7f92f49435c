"""The player and its command load nothing of torch, in an environment that has it, too."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.light.talks import EXAMPLES
from visglm.cli import main
from visglm.cli.light import main as light_main

ROOT = Path(__file__).parents[2]
BLOCKED = """
import sys
for name in ("torch", "transformers", "timm", "tokenizers", "einops", "safetensors", "onnx", "tqdm", "huggingface_hub"):
    sys.modules[name] = None
sys.orig_argv[1:2] = ["visglm-light"]  # as its command is started
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True)


def test_nothing_else_is_needed(light):
    asked = f"VisGLM.from_pretrained().chat({str(EXAMPLES / 'cat.png')!r}, '这是什么？')"
    result = run(f"from visglm.light import VisGLM; print({asked})")
    assert result.stdout.strip() == light.chat(EXAMPLES / "cat.png", "这是什么？").text, result.stderr


def test_the_command_answers(light):
    words = [str(EXAMPLES / "cat.png"), "-q", "这是什么？"]
    result = run(f"from visglm.cli.light import main; sys.exit(main({words!r}))")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == light.chat(EXAMPLES / "cat.png", "这是什么？").text
    assert "on ONNX Runtime, loaded in" in result.stderr


def test_the_wheel_holds_all_that_its_command_imports(tmp_path):
    parts = runpy.run_path(str(ROOT / ".ci" / "light.py"))["PARTS"]
    for name in (name for name in parts if not name.startswith("assets")):
        target = tmp_path / "visglm" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(ROOT / "visglm" / name)
    # What is missing there is found in the checkout, where this environment has it from.
    files = "[sys.modules[name].__file__ for name in sys.modules if name.split('.')[0] == 'visglm']"
    command = [sys.executable, "-c", BLOCKED + f"import visglm.cli.light, visglm.light; print(*{files}, sep='\\n')"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    imported = result.stdout.splitlines()
    assert len(imported) > 20, result.stderr
    assert [file for file in imported if not file.startswith(str(tmp_path))] == []


def test_threads_that_somebody_set_up_for_all_sessions_are_used():
    """As visglm's own products of packed weights do, in the same process."""
    code = "import onnxruntime; onnxruntime.set_global_thread_pool_sizes(1, 1)\n"
    result = run(code + "from visglm.light import VisGLM; print(VisGLM.from_pretrained().chat(None, '你好'))")
    assert result.returncode == 0 and len(result.stdout.splitlines()) == 1, result.stdout + result.stderr


def test_both_commands_say_the_same(capsys):
    words = [str(EXAMPLES / "cat.png"), "-q", "What is it?", "--max-new-tokens", "4"]
    assert light_main(words) == 0 and main(["chat", "--light", *words]) == 0
    one, other = capsys.readouterr().out.splitlines()
    assert one == other


@pytest.mark.parametrize("words", [["--device", "cpu"], ["--dtype", "float16"], ["--base", "x"], ["--tokenizer", "x"]])
def test_what_only_torch_heeds_is_told(words, capsys):
    assert main(["chat", "--light", "-q", "What?", *words]) == 1
    assert f"--light answers without torch, to which {words[0]}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        light_main(["-q", "What?", *words])


def test_a_folder_that_was_not_exported_is_told(tmp_path, capsys):
    assert light_main(["--model", str(tmp_path), "-q", "What?"]) == 1
    assert "visglm-light: " in capsys.readouterr().err
