"""Sources made as they are read: random weights, and packed ones."""

from __future__ import annotations

import pytest
import torch

from visglm import VisGLM, checkpoint
from visglm.checkpoint import EMBEDDED_MODEL, QuantizedSource, RandomSource
from visglm.cli import main
from visglm.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:int4 is several times slower")


def source(seed: int = 0, preset: str = "visglm-tiny") -> RandomSource:
    return RandomSource(preset, EMBEDDED_MODEL, seed, torch.float32)


def test_a_seed_decides_every_weight():
    first, same, other = (dict(source(seed).tensors()) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert not torch.equal(first["lm_head.weight"], first["model.text.embed_tokens.weight"])


def test_the_shapes_are_the_presets_and_the_ids_the_tokenizers():
    full = source(preset="visualglm-6b")
    assert full.keys()["lm_head.weight"].shape == (130528, 4096)
    assert 7.7e9 < checkpoint.count_parameters(full) < 7.9e9
    assert full.config.text_config.eos_token_id == full.tokenizer.eos_token_id
    assert full.config.image_token_id == full.tokenizer.image_token_id


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="the presets are visglm-tiny, visualglm-6b"):
        source(preset="huge")


@pytest.mark.parametrize("layout", ["native", "hf-legacy"])
def test_new_writes_what_loads(tmp_path, layout):
    preset = "chatglm-tiny" if layout == "hf-legacy" else "visglm-tiny"
    if layout == "hf-legacy":  # which holds a plain ViT only
        with pytest.MonkeyPatch.context() as patch:
            from visglm.config import PRESETS

            tiny = PRESETS["visglm-tiny"]
            patch.setitem(PRESETS, preset, {**tiny, "vision_config": {**tiny["vision_config"], "stem": None}})
            assert main(["new", str(tmp_path / "out"), "--preset", preset, "--random", "--layout", layout]) == 0
    else:
        assert main(["new", str(tmp_path / "out"), "--preset", preset, "--random"]) == 0
    vlm = VisGLM.from_pretrained(tmp_path / "out", dtype="float32")
    side = vlm.model.config.vision_config.image_size
    assert torch.isfinite(vlm.model.get_image_features(torch.zeros(1, 3, side, side)).pooler_output).all()
    assert vlm.chat(None, "hello", max_new_tokens=2).usage.completion_tokens >= 1


def test_quantizing_a_folder_equals_quantizing_at_load(tmp_path):
    assert main(["new", str(tmp_path / "whole"), "--preset", "visglm-tiny", "--random"]) == 0
    assert main(["quantize", str(tmp_path / "whole"), str(tmp_path / "packed"), "--scheme", "int4"]) == 0
    at_load = VisGLM.from_pretrained(tmp_path / "whole", quantize="int4").model.state_dict()
    stored = VisGLM.from_pretrained(tmp_path / "packed").model.state_dict()
    assert at_load.keys() == stored.keys()
    assert all(torch.equal(at_load[name], stored[name]) for name in at_load)


def test_twice_is_refused():
    with pytest.raises(ConfigError, match="quantized to int8 already"):
        QuantizedSource(QuantizedSource(source(), "int8"), "int4")


@pytest.mark.parametrize(("scheme", "bits"), [("int8", 8.1), ("int4", 4.6)])
def test_names_and_shapes_are_known_before_the_tensors(scheme, bits):
    packed = QuantizedSource(source(), scheme)
    infos, tensors = packed.keys(), dict(packed.tensors())
    assert infos.keys() == tensors.keys()
    assert all(checkpoint.TensorInfo.of(tensors[name]) == infos[name] for name in infos)
    head = sum(info.num_bytes for name, info in infos.items() if name.startswith("lm_head."))
    assert head * 8 / torch.Size(source().keys()["lm_head.weight"].shape).numel() < bits
