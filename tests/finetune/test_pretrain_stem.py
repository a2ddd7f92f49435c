"""What the stem of visglm-tiny begins with: ImageNet's weights, by timm's names and for pictures normalized as ours."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "finetune" / "visglm-tiny"))

import pretrain_stem  # noqa: E402 (a folder of scripts, found through the path above)
from classifier import pixel_values  # noqa: E402
from pretrain_vision import NUM_FROZEN, make_trainable  # noqa: E402

NETWORK = "tf_efficientnet_lite2"


@pytest.fixture
def backbone():
    return timm.create_model(NETWORK, features_only=True, out_indices=(3,))


def test_the_package_s_names_become_timm_s(tmp_path, monkeypatch):
    expected = timm.create_model(NETWORK).state_dict()
    file = tmp_path / pretrain_stem.IMAGENET_FILE
    file.parent.mkdir()
    torch.save({f"_layer_{number}.{name}": value for number, (name, value) in enumerate(expected.items())}, file)
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(pretrain_stem, "find_spec", lambda name: package)
    with pytest.raises(SystemExit, match="SHA-256"):
        pretrain_stem.imagenet_weights()
    monkeypatch.setattr(pretrain_stem, "IMAGENET_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    weights = pretrain_stem.imagenet_weights()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())


def test_the_stem_sees_our_pictures_as_imagenet_s(backbone, monkeypatch):
    trained = timm.create_model(NETWORK, features_only=True, out_indices=(3,)).eval()
    trained.bn1.running_mean.normal_()
    monkeypatch.setattr(pretrain_stem, "imagenet_weights", lambda: trained.state_dict())
    pretrain_stem.load_imagenet(backbone.eval())
    pictures = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = trained.bn1(trained.conv_stem((pictures * 255 - 127) / 128))
        seen = backbone.bn1(backbone.conv_stem(pixel_values(pictures)))
    inner = slice(1, -1)  # what pads the edge is a slightly different grey
    torch.testing.assert_close(seen[..., inner, inner], expected[..., inner, inner], atol=1e-4, rtol=1e-4)
    assert torch.equal(backbone.blocks[4][0].conv_pw.weight, trained.blocks[4][0].conv_pw.weight)


def test_first_layers_stay_as_they_are_and_depthwise_ones_in_float32(backbone):
    make_trainable(backbone)
    assert not any(parameter.requires_grad for parameter in backbone.blocks[:NUM_FROZEN].parameters())
    assert all(parameter.requires_grad for parameter in backbone.blocks[NUM_FROZEN:].parameters())
    block = backbone.blocks[NUM_FROZEN][0]
    with torch.autocast("cpu", torch.bfloat16):
        assert block.conv_pw(torch.rand(1, block.conv_pw.in_channels, 8, 8)).dtype == torch.bfloat16
        assert block.conv_dw(torch.rand(1, block.conv_dw.in_channels, 8, 8).bfloat16()).dtype == torch.float32
