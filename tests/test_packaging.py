"""The wheel holds what it needs and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DESCRIPTION = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


def test_the_wheel_holds_the_model_the_types_and_the_licences(tmp_path):
    source = tmp_path / "source"
    for name in ("visglm", "tests", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    for name in DESCRIPTION:
        shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tmp_path,
        source,
    ]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    [wheel] = tmp_path.glob("visglm-*.whl")
    files = zipfile.ZipFile(wheel).namelist()

    wanted = {"model.safetensors", "config.json", "ice_text.model", "tokenizer_config.json", "processor_config.json"}
    assert {f"visglm/assets/visglm-tiny/{name}" for name in wanted} <= set(files)
    assert {"visglm/py.typed", "visglm/assets/self_test/picture.png", "visglm/cli/chat.py"} <= set(files)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "visglm").rglob("*.py")}
    assert modules <= set(files)
    assert {Path(file).name for file in files if "/licenses/" in file} == {"LICENSE", "NOTICE"}
    assert {Path(file).parts[0].split("-")[0] for file in files} == {"visglm"}
    assert wheel.stat().st_size <= 45 * 10**6
