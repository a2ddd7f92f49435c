"""What each door loads, told by names and not by time: who asks for help must not wait for torch, nor who asks about a
picture for what teaches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import GOLDEN_HF
from visglm import __version__, adapters
from visglm.cli.flags import ADAPTER_FILES

PICTURE = Path(__file__).parents[2] / "examples" / "cat.png"
HEAVY = {"torch", "transformers", "timm", "torchvision", "numpy", "PIL", "sentencepiece", "tqdm", "onnxruntime"}
# What a question about a picture with the embedded model has no use for. What transformers and timm load by themselves
# (torchvision, and scipy or accelerate where they are installed) is theirs.
UNUSED = {
    "onnx", "onnxruntime", "peft", "datasets", "sacrebleu", "tensorboard", "streamlit", "pillow_heif", "IPython",
    "transformers.trainer", "transformers.pipelines", "visglm.training", "visglm.explain", "visglm.drop_in",
}  # fmt: skip


def loaded_by(*words: object, hidden: str = "") -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """The modules that are there once the command line has ended, and what it said.

    Args:
        hidden: a package that cannot be imported.
    """
    code = """
import sys
sys.orig_argv = [sys.executable, "-m", "visglm"]
sys.modules.update(dict.fromkeys(sys.argv[1].split(), None))
from visglm.cli import main
try:
    status = main(sys.argv[2:])
except SystemExit as end:
    status = end.code
print(*(name for name, module in sys.modules.items() if module is not None), file=sys.stderr)
sys.exit(status)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, hidden, *map(str, words)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    *told, modules = result.stderr.splitlines()
    result.stderr = "\n".join(told)
    return set(modules.split()), result


@pytest.fixture(params=["lora", "ptuning"])
def adapter(request, tmp_path) -> Path:
    """A folder that fine-tuning might have made, as far as one can see without its weights."""
    folder = tmp_path / "my taught"
    folder.mkdir()
    (folder / ADAPTER_FILES[0]).write_text(json.dumps({"method": request.param}), "utf-8")
    return folder


def test_the_version_loads_nothing():
    modules, result = loaded_by("--version")
    assert result.stdout == f"visglm {__version__}\n" and result.returncode == 0
    assert not HEAVY & modules


def test_doctor_answers_without_torch_what_it_can():
    """Where an installation is broken, there is nothing to import."""
    modules, result = loaded_by("doctor", hidden="torch")
    assert "Traceback" not in result.stderr
    assert "Python" in result.stdout
    assert not HEAVY & modules


def test_a_question_loads_what_answers_it():
    modules, result = loaded_by("chat", PICTURE, "-q", "What is this?")
    assert result.returncode == 0 and "cat" in result.stdout
    assert not UNUSED & modules


@pytest.mark.parametrize("command", [["quantize", "--scheme", "int4"], ["convert"]])
def test_an_adapter_is_told_before_anything_is_loaded(adapter, tmp_path, command):
    modules, result = loaded_by(command[0], adapter, tmp_path / "out", *command[1:])
    assert result.returncode == 1 and not (tmp_path / "out").exists()
    if "lora" in (adapter / ADAPTER_FILES[0]).read_text("utf-8"):
        assert "is an adapter: merge it first" in result.stderr
        assert f"visglm merge '{adapter}' MERGED" in result.stderr  # quoted, to be pasted
        assert f"visglm {command[0]} MERGED" in result.stderr
    else:
        assert "cannot be merged" in result.stderr
    assert not HEAVY & modules


@pytest.mark.parametrize("notes", ["[" * 100_000, "[]", "\0", '{"method": ["ptuning"]}'])
def test_an_adapter_with_damaged_notes_is_told_as_one(adapter, tmp_path, notes):
    (adapter / ADAPTER_FILES[0]).write_text(notes, "utf-8")
    _, result = loaded_by("quantize", adapter, tmp_path / "out", "--scheme", "int4")
    assert result.returncode == 1
    assert result.stderr.startswith("visglm: ") and "merge it first" in result.stderr


def test_notes_that_are_a_pipe_are_not_waited_for(adapter, tmp_path):
    (adapter / ADAPTER_FILES[0]).rename(adapter / ADAPTER_FILES[1])
    os.mkfifo(adapter / ADAPTER_FILES[0])
    _, result = loaded_by("quantize", adapter, tmp_path / "out", "--scheme", "int4")
    assert result.returncode == 1 and "merge it first" in result.stderr


def test_adapters_are_known_by_the_files_they_have():
    assert ADAPTER_FILES == (adapters.METADATA_NAME, adapters.LORA_CONFIG_NAME)


def test_importing_from_the_package_leaves_the_garbage_collector_on():
    code = "import gc, visglm; visglm.VisGLM; print(gc.isenabled())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"


def test_a_second_picture_is_told_in_a_sentence():
    _, result = loaded_by("chat", PICTURE, PICTURE, "-q", "What?", "--max-new-tokens", 1, "--model", GOLDEN_HF)
    assert result.returncode == 0
    [told] = [line for line in result.stderr.splitlines() if "taught with" in line]
    assert told.startswith("visglm: this model was taught with one picture")
