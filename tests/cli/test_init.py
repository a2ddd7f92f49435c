"""The table of commands: help without torch, and how errors reach the shell."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from visglm import cli
from visglm.cli import COMMANDS, main
from visglm.errors import ImageError

HEAVY = ("torch", "transformers", "timm", "numpy", "PIL", "tqdm")


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, encoding="utf-8")


def run_module(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "visglm", *arguments], capture_output=True, text=True, encoding="utf-8", **options
    )


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_loads_nothing_heavy(command):
    """Under half a second follows from that; time itself is measured by benchmarks/tiny.py."""
    code = f"""
import sys
sys.orig_argv = [sys.executable, "-m", "visglm"]
from visglm.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print([name for name in {HEAVY} if name in sys.modules], end.code)
"""
    result = run_python(code, *filter(None, (command, "--help")))
    *shown, last = result.stdout.splitlines()
    assert last == "[] 0", result.stderr
    assert shown[0].startswith("usage: visglm")
    assert COMMANDS.get(command, "Chinese and English").lower()[1:] in result.stdout.lower().replace("\n", " ")


def test_importing_the_package_elsewhere_registers_the_auto_classes():
    assert run_python("import sys, visglm; print('visglm.auto' in sys.modules)").stdout.strip() == "True"


@pytest.mark.parametrize(
    "program", [[sys.executable, "-m", "visglm"], ["/usr/bin/python3", "/home/me/.venv/bin/visglm"]]
)
def test_the_command_line_is_recognized(program):
    code = f"import sys; sys.orig_argv = {[*program, '--help']}; import visglm; print('torch' in sys.modules)"
    assert run_python(code).stdout.strip() == "False"


def test_every_command_is_listed_and_has_its_module(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for name, help_line in COMMANDS.items():
        assert name in shown and " ".join(help_line.split()[:3]) in shown
        assert ast.get_docstring(ast.parse((Path(cli.__file__).parent / f"{name}.py").read_text("utf-8")))


def test_the_module_is_the_program():
    result = run_module("--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: visglm")


@pytest.mark.parametrize("arguments", [[], ["paint"], ["describe"], ["chat", "--temperature", "hot"]])
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: visglm" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, status, shown",
    [(ImageError("no such picture"), 1, "visglm: no such picture"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_errors_become_a_line_and_a_status(error, status, shown, capsys, monkeypatch):
    def fail(arguments):
        raise error

    monkeypatch.setattr("visglm.cli.chat.run", fail)
    assert main(["chat"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert shown in captured.err


def test_a_reader_that_has_seen_enough_is_no_error(pictures):
    """As `visglm describe … | head -1` is."""
    code = "import sys, time; print(sys.stdin.readline(), end='')"
    command = f'"{sys.executable}" -m visglm describe {" ".join(map(str, pictures))} --batch-size 1 --max-new-tokens 2'
    result = subprocess.run(
        ["bash", "-c", f'set -o pipefail; {command} | "{sys.executable}" -c "{code}"'], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stdout.splitlines()) == 1
