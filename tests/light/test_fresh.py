"""`visglm-light` where nothing else is installed: its size, its start, its answer, and no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.light.talks import EXAMPLES

ROOT = Path(__file__).parents[2]
ASK = f"""
import sys, time
started = time.perf_counter()
from visglm.light import VisGLM
imported = time.perf_counter()
vlm = VisGLM.from_pretrained()
loaded = time.perf_counter()
print(vlm.chat({str(EXAMPLES / "cat.png")!r}, "描述这张图片。"))
answered = time.perf_counter()
print([name for name in ("torch", "transformers", "timm", "onnx") if name in sys.modules])
memory = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1e3
print(f"imports {{imported - started:.2f}} s, start {{loaded - imported:.2f}} s, first answer "
      f"{{answered - loaded:.2f}} s, at most {{memory:.0f}} MB of memory")
"""


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


@pytest.mark.fresh
def test_a_picture_is_talked_about_where_torch_is_not(tmp_path, vlm):
    subprocess.run([sys.executable, ROOT / ".ci/light.py", tmp_path / "wheels"], check=True, cwd=ROOT)
    [wheel] = (tmp_path / "wheels").glob("visglm_light-*.whl")
    environment = tmp_path / "environment"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", wheel], check=True, cwd=tmp_path)
    seconds = time.perf_counter() - started

    run = subprocess.run([python, "-I", "-c", ASK], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    answer, loaded, told = run.stdout.splitlines()
    assert answer == vlm.chat(EXAMPLES / "cat.png", "描述这张图片。").text
    assert loaded == "[]"
    words = [environment / "bin/visglm-light", EXAMPLES / "cat.png", "-q", "描述这张图片。"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=alone)
    assert command.stdout.strip() == answer, command.stderr
    missing = subprocess.run([python, "-I", "-c", "import visglm; visglm.VisGLM"], capture_output=True, text=True)
    assert "from visglm.light import VisGLM" in missing.stderr

    installed = megabytes(next((environment / "lib").glob("python*/site-packages")))
    full = sum(megabytes(Path(place)) for place in sys.path if place.endswith("site-packages"))
    print(
        f"\nvisglm-light: {wheel.stat().st_size / 1e6:.0f} MB to download of its own, {installed:.0f} MB installed in "
        f"{seconds:.0f} s; {told}. This environment, with torch: {full:.0f} MB."
    )
    assert installed < 400
