"""The vision tower: its stem, its shapes at full width, and pictures of other sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tiny import golden_model
from visglm import VisGLMConfig
from visglm.config import PRESETS
from visglm.errors import ConfigError
from visglm.vision import VisionEncoder, build_vit


@pytest.mark.parametrize("image_size", [224, 336, 448])
def test_vit_g_takes_other_resolutions(image_size):
    """Published widths, fewer layers, on the meta device: shapes without the arithmetic."""
    preset = PRESETS["visualglm-6b"]
    config = VisGLMConfig(
        **preset | {"vision_config": {"num_hidden_layers": 1}, "text_config": {"num_hidden_layers": 1}}
    )
    with torch.device("meta"):
        vision = VisionEncoder(config).eval()
        pixels = torch.zeros(2, 3, image_size, image_size)
    assert vision.vit.pos_embed.shape == (1, 257, 1408)
    assert vision.vit(pixels).shape == (2, 1 + (image_size // 14) ** 2, 1408)
    assert vision(pixels).shape == (2, 32, 4096)


@torch.no_grad()
def test_another_resolution_sees_the_same_positions():
    """Positions that rise from left to right still do, from the same least to the same greatest, on a finer grid."""
    vit = build_vit(golden_model().config.vision_config).eval()
    grid = vit.patch_embed.grid_size[0]
    ramp = torch.linspace(0, 1, grid).repeat(grid)
    vit.pos_embed.zero_()
    vit.pos_embed[0, 1:] = ramp[:, None]
    patches = torch.zeros(1, 2 * grid, 2 * grid, vit.embed_dim)
    finer = vit._pos_embed(patches)[0, 1:, 0].reshape(2 * grid, 2 * grid)
    torch.testing.assert_close(finer, finer[:1].expand_as(finer), atol=1e-5, rtol=0)
    assert (finer[0].diff() > 0).all()
    assert finer.min() < 0.15 and finer.max() > 0.85


def test_a_stem_takes_the_place_of_patches_and_keeps_its_statistics():
    config = VisGLMConfig(**PRESETS["visglm-tiny"] | {"image_token_id": 9})
    vision = VisionEncoder(config).train()
    norms = [module for module in vision.vit.patch_embed.modules() if isinstance(module, nn.BatchNorm2d)]
    before = norms[0].running_mean.clone()
    size = config.vision_config.image_size
    assert vision(torch.rand(2, 3, size, size)).shape == (2, config.num_query_tokens, config.text_config.hidden_size)
    assert vision.training and not any(norm.training for norm in norms)
    assert torch.equal(norms[0].running_mean, before)


def test_no_picture_gives_no_tokens_and_still_runs_every_module():
    """As in a batch of texts; with sharded weights, a process that left modules out would stop all others."""
    config = VisGLMConfig(**PRESETS["visglm-tiny"] | {"image_token_id": 9})
    vision = VisionEncoder(config)
    size = config.vision_config.image_size
    tokens = vision(torch.zeros(0, 3, size, size))
    assert tokens.shape == (0, config.num_query_tokens, config.text_config.hidden_size)
    tokens.sum().backward()
    assert all(parameter.grad is not None for parameter in vision.projection.parameters())


@pytest.mark.parametrize(
    "change, message", [({"patch_size": 64}, "stride"), ({"stem": "resnet_of_dreams"}, "resnet_of_dreams")]
)
def test_a_stem_that_cannot_be_is_an_error(change, message):
    tower = PRESETS["visglm-tiny"]["vision_config"] | change
    with pytest.raises(ConfigError, match=message):
        build_vit(VisGLMConfig(**PRESETS["visglm-tiny"] | {"vision_config": tower, "image_token_id": 9}).vision_config)
