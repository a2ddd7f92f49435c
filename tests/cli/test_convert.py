"""`visglm convert`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters.taught import teach
from tests.tiny import GOLDEN_HF, GOLDEN_SAT
from visglm import VisGLM
from visglm.checkpoint import EXPORTS, open_source
from visglm.cli import main
from visglm.cli.convert import FORMATS
from visglm.errors import ConfigError


def test_formats_are_those_of_the_package():
    assert tuple(EXPORTS) == FORMATS


@pytest.mark.parametrize("to", FORMATS)
def test_it_converts(tmp_path, to, capsys):
    assert main(["convert", str(GOLDEN_SAT), str(tmp_path / "out"), "--to", to, "--tokenizer", str(GOLDEN_HF)]) == 0
    assert f"from sat to {to}" in capsys.readouterr().err
    assert open_source(tmp_path / "out").keys() == open_source(GOLDEN_HF).keys()


def test_a_missing_tokenizer_is_named(tmp_path, capsys):
    assert main(["convert", str(GOLDEN_SAT), str(tmp_path / "out")]) == 1
    assert "ice_text.model is not in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """An adapter `adapter` and its base `base`."""
    folder = tmp_path_factory.mktemp("taught")
    VisGLM.from_pretrained(GOLDEN_HF, device="cpu").save_pretrained(folder / "base")
    teach(VisGLM.from_pretrained(folder / "base", device="cpu"), folder / "adapter")
    (folder / "link").symlink_to("base")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["merge", "adapter", "adapter"],
        ["merge", "adapter", "adapter/../base"],
        ["merge", "adapter", "link"],
        ["merge", "adapter", "base", "--base", "link"],
        ["convert", "base", "base", "--to", "hf-legacy"],
        ["convert", "link", "base"],
        ["quantize", "base", "link", "--scheme", "int8"],
        ["export", "base", "base"],
        ["export", "adapter", "base"],
        ["export", "base", "adapter", "--adapter", "adapter"],
    ],
    ids=" ".join,
)
def test_what_is_read_stays(taught, command, monkeypatch, capsys):
    """A result in its place would leave neither the adapter nor the base that others lie over."""
    monkeypatch.chdir(taught)
    before = content(taught)
    assert main(command) == 1
    assert "Name another folder" in capsys.readouterr().err
    assert content(taught) == before


def test_a_loaded_model_is_not_exported_into_its_own_folder(taught):
    before = content(taught)
    with pytest.raises(ConfigError, match="another folder"):
        VisGLM.from_pretrained(taught / "base", device="cpu").export(taught / "base")
    assert content(taught) == before
