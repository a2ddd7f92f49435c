"""`pixel_values` against a computation with Pillow and NumPy alone, and the way pictures come in."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.web import serve
from visglm.errors import ConfigError, ImageError
from visglm.pictures.preprocess import VisGLMImageProcessor

# As published with VisualGLM-6B.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
PIXELS = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)


def reference(pixels: np.ndarray, size: int = 224) -> np.ndarray:
    resized = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    return ((resized / 255 - MEAN) / STD).transpose(2, 0, 1)


def values(images, processor=None, **kwargs) -> np.ndarray:
    processor = processor or VisGLMImageProcessor()
    return processor(images, return_tensors="pt", **kwargs)["pixel_values"].numpy()


@pytest.mark.parametrize("size", [224, 56, 32])
def test_values_are_those_of_the_reference(size):
    given = VisGLMImageProcessor(size=size)(Image.fromarray(PIXELS), return_tensors="pt")["pixel_values"]
    assert (given.shape, given.dtype) == ((1, 3, size, size), torch.float32)
    assert np.abs(given.numpy()[0] - reference(PIXELS, size)).max() <= 1e-6


def test_nothing_is_cropped():
    """A frame of another colour stays visible on all four sides, whatever the proportions."""
    framed = np.zeros((60, 300, 3), dtype=np.uint8)
    framed[10:-10, 50:-50] = 255
    pixels = values(Image.fromarray(framed))[0, 0]
    assert all(edge.max() < 0 for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    assert pixels[112, 112] > 1


def test_several_pictures_of_different_sizes():
    other = PIXELS[:20, :30]
    given = values([Image.fromarray(PIXELS), Image.fromarray(other)])
    assert given.shape == (2, 3, 224, 224)
    assert np.abs(given - np.stack([reference(PIXELS), reference(other)])).max() <= 1e-6


def sources():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    channels_first = PIXELS.transpose(2, 0, 1)
    floats = (PIXELS / 255).astype(np.float32)
    return {
        "bytes": file.getvalue(),
        "list": [file.getvalue()],
        "nested list": [[Image.fromarray(PIXELS)]],
        "array": PIXELS,
        "array, channels first": channels_first,
        "batch of arrays": PIXELS[None],
        "float array": floats,
        "tensor": torch.from_numpy(channels_first.copy()),
        "tensor, channels last": torch.from_numpy(PIXELS),
        "batch of float tensors": torch.from_numpy(floats).permute(2, 0, 1)[None],
    }


@pytest.mark.parametrize("name", sources())
def test_whatever_holds_the_picture_the_values_are_the_same(name):
    assert np.abs(values(sources()[name]) - reference(PIXELS)).max() <= 1e-6


def test_paths_go_through_the_loader_of_visglm(tmp_path):
    pixels = np.concatenate([PIXELS, np.full((50, 80, 1), 128, dtype=np.uint8)], axis=-1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(np.round(PIXELS * (128 / 255) + 127).astype(np.uint8), -1)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(tmp_path / "a.png")):
        assert np.abs(values(source) - reference(upright)).max() <= 0.02  # one step of rounding, after / std
    with pytest.raises(ImageError, match="no such file"):
        values(str(tmp_path / "b.png"))
    with pytest.raises(ImageError, match="Cannot use a dict"):
        values([{"path": "a.png"}])


def test_urls_go_through_the_loader_of_visglm():
    with serve() as web:
        url = web.page("/a.png", sources()["bytes"])
        processor = VisGLMImageProcessor()
        for call in (processor, processor.fetch_images):
            with pytest.raises(ImageError, match="allow_urls"):
                call([url])
        assert web.connections == 0


def test_the_layout_can_be_given_where_the_shape_does_not_tell():
    channels_first = PIXELS[:3, :3].transpose(2, 0, 1)  # 3 × 3 × 3
    expected = reference(PIXELS[:3, :3])
    assert np.abs(values(channels_first.copy(), input_data_format="channels_first") - expected).max() <= 1e-6
    tensor = torch.from_numpy(PIXELS[:3, :3].copy())
    assert np.abs(values(tensor, input_data_format="channels_last") - expected).max() <= 1e-6


def test_grey_pictures():
    assert values(PIXELS[..., 0]).shape == (1, 3, 224, 224)
    assert np.array_equal(values(PIXELS[..., 0]), values(Image.fromarray(PIXELS[..., 0])))


def test_values_in_0_to_1_may_be_kept_from_rescaling():
    floats = PIXELS / 255
    assert np.abs(values(floats, do_rescale=False) - reference(PIXELS)).max() <= 1e-6


def test_a_picture_is_always_made_rgb():
    with pytest.raises(ConfigError, match="do_convert_rgb"):
        values(PIXELS, do_convert_rgb=False)


def test_round_trip(tmp_path):
    processor = VisGLMImageProcessor(size=48, image_mean=[0.5, 0.5, 0.5])
    processor.save_pretrained(tmp_path)
    loaded = VisGLMImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert np.array_equal(values(PIXELS, loaded), values(PIXELS, processor))
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "VisGLMImageProcessor"
    assert saved["size"] == {"height": 48, "width": 48}


def test_what_a_model_takes():
    assert VisGLMImageProcessor().model_input_names == ["pixel_values"]
    assert list(VisGLMImageProcessor()(PIXELS)) == ["pixel_values"]
