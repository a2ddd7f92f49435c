"""Every method over every kind of base: taught, saved, loaded in another process, the same logits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.tiny import GOLDEN_HF
from visglm import VisGLM

from .taught import ROOT, golden, logits, teach

# Base → what makes it (in an empty folder), and how its results are loaded again.
BASES: dict[str, tuple[Callable[[Path], VisGLM], dict[str, Any]]] = {
    "embedded": (lambda folder: VisGLM.from_pretrained(device="cpu"), {}),
    "hub layout": (lambda folder: golden(), {}),
    "saved": (lambda folder: saved(folder), {}),
    "parts": (lambda folder: VisGLM.from_parts(vision=GOLDEN_HF, text=GOLDEN_HF, device="cpu"), {}),
    "bf16": (lambda folder: golden(dtype="bfloat16"), {"dtype": "bfloat16"}),
    "int4": (lambda folder: golden(quantize="int4"), {}),
    "int8, vision too": (lambda folder: golden(quantize="int8", quantize_vision=True), {}),
}
METHODS = ("lora", "ptuning", "qformer", "full")
# Packed weights do not learn themselves.
OF_PACKED = {"int4": ("lora", "ptuning", "qformer", "qlora"), "int8, vision too": ("lora", "ptuning")}
CELLS = [(base, method) for base in BASES for method in OF_PACKED.get(base, METHODS)]

LOAD = """
import json, sys
from pathlib import Path
from safetensors.torch import save_file
from tests.adapters.taught import logits
from visglm import VisGLM
found = {}
for name, (folder, options) in json.load(open(sys.argv[1])).items():
    found[name] = logits(VisGLM.from_pretrained(folder, device="cpu", **options))
save_file(found, sys.argv[2])
"""


def saved(folder: Path) -> VisGLM:
    golden().save_pretrained(folder / "model")
    return VisGLM.from_pretrained(folder / "model", device="cpu")


def forms(vlm: VisGLM, folder: Path) -> dict[str, Any]:
    """What a taught model can be turned into on disk, each with the logits it had in memory."""
    made = {"run": logits(vlm)}
    vlm.save_pretrained(folder / "saved")
    made["saved"] = made["run"]
    quantized = vlm.model.config.quantization is not None
    if vlm.adapters.names and not (quantized or vlm.adapters.has("prefix")):
        vlm.merge()
        vlm.save_pretrained(folder / "merged")
        made["merged"] = logits(vlm)
    return made


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, tuple[Any, Any]]]:
    """By cell and form: the logits in memory, and those that another process had."""
    expected, folders = {}, {}
    root = tmp_path_factory.mktemp("grid")
    for number, (base, method) in enumerate(CELLS):
        make, options = BASES[base]
        folder = root / str(number)
        folder.mkdir()
        vlm = make(folder)
        before = logits(vlm)
        teach(vlm, folder / "run", method)
        for form, found in forms(vlm, folder).items():
            assert not found.equal(before), f"{base}, {method}: nothing was learnt"
            expected[base, method, form] = found
            folders[f"{base}/{method}/{form}"] = (str(folder / form), options)
    (root / "folders.json").write_text(json.dumps(folders))
    subprocess.run(
        [sys.executable, "-c", LOAD, root / "folders.json", root / "logits.safetensors"], cwd=ROOT, check=True
    )
    loaded = load_file(root / "logits.safetensors")
    cells: dict[tuple[str, str], dict[str, tuple[Any, Any]]] = {}
    for (base, method, form), found in expected.items():
        cells.setdefault((base, method), {})[form] = (found, loaded[f"{base}/{method}/{form}"])
    return cells


@pytest.mark.timeout(900)
@pytest.mark.parametrize("base, method", CELLS)
def test_what_was_learnt_loads_again(grid, base, method):
    for form, (found, loaded) in grid[base, method].items():
        difference = float((found - loaded).abs().max())
        print(f"{base:18} {method:8} {form:8} {difference:.1e}")
        assert difference <= 1e-5, form
