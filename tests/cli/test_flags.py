"""Settings as flags: names, types, defaults and help come from the dataclass."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

import pytest

from visglm import ImageLimits, VisGLM
from visglm.cli.flags import add_model, add_settings, docs_of, load_model, read_settings
from visglm.errors import ConfigError
from visglm.sampling import Sampling


@dataclass
class Baking:
    """How to bake.

    Args:
        minutes: how long, in
            minutes; 100% reliable.
        glaze: what to put on top.
        heat: how hot, in °C.

    Raises:
        nothing: ever.
    """

    minutes: int
    glaze: str | None = None
    heat: float = 180.0


def baking_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_settings(parser, Baking, "baking")
    return parser


def test_documentation_is_read_field_by_field():
    assert docs_of(Baking) == {
        "minutes": "how long, in minutes; 100% reliable.",
        "glaze": "what to put on top.",
        "heat": "how hot, in °C.",
    }


def test_documentation_becomes_help_with_defaults():
    shown = " ".join(baking_parser().format_help().split())
    assert "--minutes INT how long, in minutes; 100% reliable." in shown
    assert "--glaze STR what to put on top. --heat FLOAT how hot, in °C. (default: 180.0)" in shown


def test_flags_become_settings():
    parsed = baking_parser().parse_args(["--minutes", "5", "--heat", "200"])
    assert read_settings(parsed, Baking) == Baking(5, None, 200.0)


def test_every_sampling_setting_is_a_flag_with_help():
    parser = argparse.ArgumentParser()
    add_settings(parser, Sampling, "answers")
    assert read_settings(parser.parse_args([]), Sampling) == Sampling()
    assert set(docs_of(Sampling)) == {field.name for field in fields(Sampling)}
    with pytest.raises(ConfigError, match="top_p"):
        read_settings(parser.parse_args(["--top-p", "7"]), Sampling)


def test_a_model_is_loaded_as_the_flags_say(capsys, tmp_path, vlm):
    vlm.save_pretrained(tmp_path)
    parser = argparse.ArgumentParser()
    add_model(parser)
    loaded = load_model(
        parser.parse_args(
            ["--model", str(tmp_path), "--device", "cpu", "--dtype", "bfloat16", "--allow-urls"]
            + ["--max-pixels", "123"]
        )
    )
    assert str(loaded.model.dtype) == "torch.bfloat16"
    assert loaded.device.type == "cpu"
    assert loaded.allow_urls
    assert loaded.image_limits == ImageLimits(max_pixels=123)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"Loading {tmp_path}" in captured.err and "bfloat16 on cpu, loaded in" in captured.err


def test_the_size_of_a_packed_model_is_that_of_the_whole(capsys, tmp_path):
    packed = VisGLM.from_pretrained(quantize="int8")
    packed.save_pretrained(tmp_path)
    whole = VisGLM.from_pretrained().model.num_parameters()
    assert packed.model.num_parameters() < whole
    parser = argparse.ArgumentParser()
    add_model(parser)
    load_model(parser.parse_args(["--model", str(tmp_path)]))
    assert f"{whole / 1e6:,.1f} M parameters in int8 and float32 on cpu" in capsys.readouterr().err
