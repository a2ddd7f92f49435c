"""`visglm convert`."""

from __future__ import annotations

import pytest

from tests.tiny import GOLDEN_HF, GOLDEN_SAT
from visglm.checkpoint import EXPORTS, open_source
from visglm.cli import main
from visglm.cli.convert import FORMATS


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
