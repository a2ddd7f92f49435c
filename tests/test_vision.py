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


# A recogniser of a few thousand numbers per layer: what is tested is how it stands in the tower, not what it knows.
RECOGNISER = {"recogniser": "mobilenetv3_small_050", "num_classes": 12, "num_names": 5, "num_guesses": 2}


def seeing(**change) -> VisGLMConfig:
    """visglm-tiny with a recogniser, four of whose visual tokens are its."""
    tower = PRESETS["visglm-tiny"]["vision_config"] | RECOGNISER | {"tokens_per_guess": 2} | change
    return VisGLMConfig(
        **PRESETS["visglm-tiny"] | {"vision_config": tower, "image_token_id": 9, "num_query_tokens": 12}
    )


def test_a_recogniser_adds_tokens_and_cells_and_moves_no_tensor():
    config = seeing()
    plain = VisionEncoder(VisGLMConfig(**PRESETS["visglm-tiny"] | {"image_token_id": 9}))
    vision = VisionEncoder(config).eval()
    own = {name: value.shape for name, value in vision.state_dict().items() if not name.startswith("recogniser.")}
    assert own == {name: value.shape for name, value in plain.state_dict().items()}
    pixels = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        seen = vision.see(pixels)
        tokens = vision(pixels)
    assert seen.features.shape == (2, 1 + 8 * 8 + 4 * 4, config.vision_config.hidden_size)
    assert seen.guesses.shape == (2, 4, config.text_config.hidden_size)
    assert tokens.shape == (2, config.num_query_tokens, config.text_config.hidden_size)
    assert torch.equal(tokens[:, -4:], seen.guesses)


def test_a_tower_without_a_recogniser_computes_what_it_did():
    vision = VisionEncoder(VisGLMConfig(**PRESETS["visglm-tiny"] | {"image_token_id": 9})).eval()
    nn.init.normal_(vision.query_tokens)
    pixels = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(vision(pixels), vision.bridge(vision.vit(pixels)))


@torch.no_grad()
def test_the_vit_sees_a_picture_reduced_and_the_recogniser_all_of_it():
    config = seeing(image_size=256, reduction=2)
    vision = VisionEncoder(config).eval()
    own = {name: value.shape for name, value in VisionEncoder(seeing()).state_dict().items()}
    assert {name: value.shape for name, value in vision.state_dict().items()} == own  # the ViT of 128 pixels
    nn.init.normal_(vision.recogniser.gate.weight)
    pixels = torch.rand(2, 3, 256, 256)
    seen = vision.see(pixels)
    quarters = pixels.unflatten(2, (128, 2)).unflatten(4, (128, 2)).mean((3, 5))
    guesses, cells = vision.recogniser(pixels)
    assert cells.shape[1] == 8 * 8
    torch.testing.assert_close(seen.features, torch.cat([vision.vit(quarters), cells], 1), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen.guesses, guesses)
    with pytest.raises(ConfigError, match=r"image_size=48 is not a multiple of patch_size × reduction=32.*32 or 64"):
        config.vision_config.check_image_size(48)
    with pytest.raises(ConfigError, match="reduction must be a whole number"):
        seeing(reduction=0)


@torch.no_grad()
def test_a_recogniser_tells_its_likeliest_names_as_sure_as_it_is():
    recogniser = VisionEncoder(seeing()).recogniser
    hidden = recogniser.nothing.numel()
    recogniser.name_of_class.copy_(torch.tensor([0, 1, 2, 3, 4] + [4] * 7))
    recogniser.sure[1].normal_()
    probability = torch.tensor([[0.1, 0.6, 0.0, 0.3, 0.0]])
    impression = torch.zeros(1, hidden)
    told = recogniser.tell(probability, impression, torch.ones(1, 1))[0]
    # The first tokens of both guesses, then the second ones: two languages, say.
    for place, (guess, part) in enumerate([(1, 0), (3, 0), (1, 1), (3, 1)]):
        words = recogniser.names.weight[guess, part * hidden : (part + 1) * hidden]
        torch.testing.assert_close(told[place], words + probability[0, guess] * recogniser.sure[1])
    # Of what it does not know it says nothing, whatever the picture.
    recogniser.nothing.normal_()
    silent = recogniser.tell(probability, torch.randn(1, hidden), torch.zeros(1, 1))[0]
    assert torch.equal(silent, recogniser.nothing.expand_as(silent))


@torch.no_grad()
def test_classes_of_one_name_are_told_together():
    recogniser = VisionEncoder(seeing()).recogniser.eval()
    recogniser.name_of_class.copy_(torch.tensor([0, 1, 2, 3] + [4] * 8))
    pooled = torch.randn(3, recogniser.network.head_hidden_size)
    of_class = recogniser.network.get_classifier()(pooled).softmax(-1)
    of_name = recogniser.probabilities(pooled)
    torch.testing.assert_close(of_name[:, :4], of_class[:, :4])
    torch.testing.assert_close(of_name[:, 4], of_class[:, 4:].sum(-1))
    recogniser.temperature.fill_(1000.0)
    flat = recogniser.probabilities(pooled)
    assert torch.equal(flat.argmax(-1), of_name.argmax(-1))  # a name of many classes gains nothing by doubt
    torch.testing.assert_close(flat, torch.full_like(flat, 1 / 5), atol=0.02, rtol=0)


def test_a_recogniser_keeps_its_statistics_and_learns():
    vision = VisionEncoder(seeing()).train()
    norms = [module for module in vision.recogniser.modules() if isinstance(module, nn.BatchNorm2d)]
    before = norms[0].running_mean.clone()
    vision(torch.rand(2, 3, 128, 128)).square().sum().backward()
    assert torch.equal(norms[0].running_mean, before)
    missing = [name for name, parameter in vision.recogniser.named_parameters() if parameter.grad is None]
    assert not missing


@pytest.mark.parametrize(
    "change, message",
    [
        ({"recogniser": "resnet_of_dreams"}, "resnet_of_dreams"),
        ({"num_names": 13}, "num_names=13"),
        ({"num_guesses": 6}, "num_guesses=6"),
        ({"num_guesses": 5, "tokens_per_guess": 3}, "leaves none for the Q-Former"),
    ],
)
def test_a_recogniser_that_cannot_be_is_an_error(change, message):
    with pytest.raises(ConfigError, match=message):
        VisionEncoder(seeing(**change))


def test_a_model_with_a_recogniser_is_saved_chats_and_explains(tmp_path):
    from PIL import Image

    from visglm import VisGLM, VisGLMForConditionalGeneration, VisGLMProcessor

    embedded = VisGLM.from_pretrained()
    fields = embedded.model.config.to_dict()
    fields["vision_config"] |= RECOGNISER | {"tokens_per_guess": 2}
    model = VisGLMForConditionalGeneration(VisGLMConfig(**fields | {"num_query_tokens": 12})).eval()
    state = embedded.model.state_dict()
    own = {name: value for name, value in state.items() if not name.startswith("model.vision.recogniser.")}
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected and all(name.startswith("model.vision.recogniser.") for name in missing)
    model.model.vision.recogniser.name_of_class.copy_(torch.arange(12) % 3)
    processor = VisGLMProcessor(
        embedded.processor.image_processor, embedded.tokenizer, num_query_tokens=12, prompt_style="visualglm"
    )
    vlm = VisGLM(model, processor)
    vlm.save_pretrained(tmp_path / "saved")
    again = VisGLM.from_pretrained(tmp_path / "saved")
    assert again.model.config.vision_config.num_recogniser_tokens == 4
    assert torch.equal(again.model.model.vision.recogniser.name_of_class, torch.arange(12) % 3)
    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    assert torch.equal(vlm.encode(picture), again.encode(picture))
    assert (
        again.chat(picture, "What is this?", max_new_tokens=5).text
        == vlm.chat(picture, "What is this?", max_new_tokens=5).text
    )
    assert again.explain(picture, "What is this?", "It is a cat.").heat.shape == (8, 8)
    # Another text model has other words: what speaks to it is new, what sees is not.
    other = VisGLM.from_parts(vision=tmp_path / "saved", text=tmp_path / "saved")
    mine, new = (one.model.model.vision.state_dict() for one in (again, other))
    assert torch.equal(mine["recogniser.gate.weight"], new["recogniser.gate.weight"])
    for name in ("projection.weight", "recogniser.names.weight", "recogniser.impression.weight"):
        assert mine[name].shape == new[name].shape and not torch.equal(mine[name], new[name])
    packed = VisGLM.from_pretrained(tmp_path / "saved", quantize="int8", quantize_vision=True)
    assert packed.chat(picture, "What is this?", max_new_tokens=5).text
