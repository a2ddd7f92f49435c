"""Text models in 8 and 4 bits, packed as they are read; what looks at pictures stays as it is."""

from __future__ import annotations

import random

import pytest
import torch

from tests.families.made import load, picture
from visglm.cli import main
from visglm.quant import QuantizedLinear

SCHEMES = ("int8", "int4", "nf4")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_text_model_is_packed_and_the_eyes_are_not(folders, models, scheme, tmp_path):
    family = {"int8": "glm4v", "int4": "glm46v", "nf4": "glm_ocr"}[scheme]
    packed, shown = load(folders[family], quantize=scheme), picture(random.Random(2))
    kinds = {name: isinstance(part, QuantizedLinear) for name, part in packed.model.named_modules()}
    linear = {name for name, part in models[family].model.named_modules() if isinstance(part, torch.nn.Linear)}
    in_text = {name for name in linear if name.startswith("model.language_model")}
    assert {name for name in linear if kinds[name]} - {"lm_head"} == in_text != set()
    assert torch.equal(packed.encode(shown)[0], models[family].encode(shown)[0])
    reply = packed.chat(shown, "What is this?", max_new_tokens=6)
    packed.save_pretrained(tmp_path / "packed")
    again = load(tmp_path / "packed")
    assert again.chat(shown, "What is this?", max_new_tokens=6).ids == reply.ids and scheme in repr(again)


def test_estimate_tells_what_pictures_take(folders, capsys):
    assert main(["estimate", str(folders["glm4v"]), "--quantize", "int4"]) == 0
    told = capsys.readouterr().out
    assert "a picture takes 4 to 20, by its size, of the context's tokens" in told
    assert all(part in told for part in ("ViT", "embeddings", "text layers", "head", "cache"))
