"""Whoever is told that a picture is too large can allow more, at the door where they stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visglm import ImageLimits, VisGLM, VisGLMImageProcessor, load_image
from visglm.cli import main
from visglm.errors import ConfigError, ImageError, VisGLMError
from visglm.pictures import DEFAULT_LIMITS

SMALL, LARGE = ImageLimits(max_pixels=2000), ImageLimits(max_pixels=2400)
REFUSAL = r"60×40 pixels, more than 2,000. Make it smaller, or allow more: --max-pixels .* ImageLimits\(max_pixels=…\)"


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained(image_limits=SMALL)


@pytest.fixture
def allow(vlm):
    """Sets the limits of the one model, and sets them back."""
    yield lambda limits: setattr(vlm, "image_limits", limits)
    vlm.image_limits = SMALL


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (60, 40), "red").save(path)
    return path


DOORS: dict[str, Callable[[VisGLM, Any], Any]] = {
    "chat": lambda vlm, picture: vlm.chat(picture, "What is this?", max_new_tokens=1),
    "stream_chat": lambda vlm, picture: list(vlm.stream_chat(picture, "What is this?", max_new_tokens=1)),
    "batch": lambda vlm, picture: vlm.batch([(picture, "What?")], max_new_tokens=1, progress=False),
    "explain": lambda vlm, picture: vlm.explain(picture, "What is this?", "A cat."),
    "encode": lambda vlm, picture: vlm.encode(picture),
    "processor": lambda vlm, picture: vlm.processor(images=picture, text="<|image|>"),
    "conversation": lambda vlm, picture: vlm.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "path": str(picture)}, {"type": "text", "text": "What?"}]}],
        tokenize=True,
    ),
    "load_image": lambda vlm, picture: load_image(picture, limits=vlm.image_limits),
}


@pytest.mark.parametrize("door", DOORS)
def test_the_limits_of_a_model_hold_at_every_door(vlm, allow, picture, door):
    with pytest.raises(ImageError, match=REFUSAL):
        DOORS[door](vlm, picture)
    allow(LARGE)
    DOORS[door](vlm, picture)


def test_arrays_go_by_them_too(vlm, allow):
    from numpy import zeros

    with pytest.raises(ImageError, match=REFUSAL):
        vlm.processor(images=[zeros((40, 60, 3), dtype="uint8")], text="<|image|>")
    allow(LARGE)
    vlm.processor(images=[zeros((40, 60, 3), dtype="uint8")], text="<|image|>")


def rows(tmp_path, picture) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"image": str(picture), "caption": f"a red square, number {number}"} for number in range(4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_fine_tuning_and_evaluation_go_by_them(tmp_path, picture):
    data = rows(tmp_path, picture)
    settings: dict[str, Any] = {
        "output_dir": tmp_path / "out", "max_steps": 1, "batch_size": 2, "num_workers": 0, "num_samples": 0,
        "held_out": 0.0, "report_to": "none",
    }  # fmt: skip
    tight = VisGLM.from_pretrained(image_limits=SMALL)
    with pytest.raises(VisGLMError, match="60×40 pixels, more than 2,000"):
        tight.evaluate(data, max_new_tokens=1, progress=False)
    with pytest.raises(VisGLMError, match="60×40 pixels, more than 2,000"):
        tight.finetune(data, **settings)
    wide = VisGLM.from_pretrained(image_limits=LARGE)
    assert not any("error" in item for item in wide.evaluate(data, max_new_tokens=1, progress=False).predictions)
    wide.finetune(data, **settings)


def test_the_command_line_has_a_flag_for_them(tmp_path, picture, capsys):
    asked = ["-q", "What is this?", "--max-new-tokens", "1", "--device", "cpu"]
    assert main(["chat", str(picture), *asked, "--max-pixels", "2000"]) == 1
    assert "allow more: --max-pixels on the command line" in capsys.readouterr().err
    assert main(["chat", str(picture), *asked, "--max-pixels", "2400"]) == 0
    describe = ["describe", str(picture), "--max-new-tokens", "1", "--device", "cpu", "--max-pixels"]
    assert (main([*describe, "2000"]), main([*describe, "2400"])) == (3, 0)
    check = ["data", "check", str(rows(tmp_path, picture)), "--max-pixels"]
    assert (main([*check, "2000"]), main([*check, "2400"])) == (3, 0)
    assert main([*describe, "0"]) == 1
    assert "--max-pixels must be positive" in capsys.readouterr().err


def test_the_help_tells_the_default(capsys):
    with pytest.raises(SystemExit):
        main(["chat", "--help"])
    assert DEFAULT_LIMITS.max_pixels == 64_000_000
    assert "default: 64 million" in " ".join(capsys.readouterr().out.split())


def test_they_are_this_machines_and_not_saved(vlm, tmp_path):
    vlm.save_pretrained(tmp_path)
    assert "2000" not in (tmp_path / "processor_config.json").read_text()
    assert VisGLM.from_pretrained(tmp_path).image_limits == DEFAULT_LIMITS
    parts = VisGLM.from_parts(text=tmp_path, image_limits=SMALL)
    assert parts.image_limits == SMALL
    assert VisGLMImageProcessor(limits=SMALL).limits == SMALL


def test_bytes_have_a_limit_of_their_own(picture):
    with pytest.raises(ImageError, match=r"over 10 bytes. Save it smaller, or allow more in Python: ImageLimits\("):
        load_image(picture, limits=ImageLimits(max_bytes=10))
    with pytest.raises(ConfigError, match="must be positive"):
        VisGLM.from_pretrained(image_limits=ImageLimits(max_pixels=0))
