"""A picture is decoded once and made RGB once on its way to the vision tower, whoever asks."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from visglm import VisGLM, VisGLMImageProcessor
from visglm.training.containers import ObjectRows
from visglm.training.data import TrainingData
from visglm.training.index import build_index
from visglm.training.renderer import Renderer

SIZE = (700, 500)  # larger than anything else that is counted
NUM_PIXELS = SIZE[0] * SIZE[1]


def encode(format: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def count(monkeypatch) -> Counter[str]:
    """How often something was done to a picture of the size given: each takes time, and most take its memory again."""
    counted: Counter[str] = Counter()

    def watch(owner: type, name: str) -> None:
        original = getattr(owner, name)

        @wraps(original)
        def counting(self: Image.Image, *args: Any, **kwargs: Any) -> Any:
            is_lazy = name == "load" and not self.tile and not getattr(self, "_decoder", None)
            if self.width * self.height == NUM_PIXELS and not is_lazy:
                counted[name] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    for name in ("convert", "copy", "transpose", "tobytes", "resize"):
        watch(Image.Image, name)
    watch(ImageFile.ImageFile, "load")
    from_array = Image.fromarray

    def counting_from_array(array: np.ndarray, *args: Any) -> Image.Image:
        counted["fromarray"] += array.size >= NUM_PIXELS
        return from_array(array, *args)

    monkeypatch.setattr(Image, "fromarray", counting_from_array)
    # Which rows share a picture is found out before training, and is no part of a picture's way.
    monkeypatch.setattr("visglm.training.index._group", lambda conversation: 0)
    return counted


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained()


def chat(vlm: VisGLM, picture: Any) -> None:
    vlm.chat(picture, "What is this?", max_new_tokens=1)


def stream(vlm: VisGLM, picture: Any) -> None:
    list(vlm.stream_chat(picture, "What is this?", max_new_tokens=1))


def batch(vlm: VisGLM, picture: Any) -> None:
    vlm.batch([(picture, "What is this?")], max_new_tokens=1, progress=False)


def encode_only(vlm: VisGLM, picture: Any) -> None:
    vlm.encode(picture)


def explain(vlm: VisGLM, picture: Any) -> None:
    vlm.explain(picture, "What is this?", "A cat.")


def train(vlm: VisGLM, picture: Any) -> None:
    rows = ObjectRows([{"image": picture, "caption": "a cat"}])
    index = build_index(rows)
    data = TrainingData(rows, index, np.arange(len(index.rows)), Renderer(vlm.processor, 200))
    assert "pixel_values" in data[0]


def converse(vlm: VisGLM, picture: Any) -> None:
    message = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}
    vlm.processor.apply_chat_template([message], tokenize=True, return_dict=True)


def preprocess(vlm: VisGLM, picture: Any) -> None:
    VisGLMImageProcessor(size=64)(picture)


DOORS: list[Callable[[VisGLM, Any], None]] = [
    chat, stream, batch, encode_only, explain, train, converse, preprocess,
]  # fmt: skip
doors = pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)

# What a file holds → what must be done to get RGB from it, beside decoding and resizing it once.
FILES = {
    "jpeg": (encode("JPEG"), {"copy": 1}),  # out of the hands of the reader
    "png": (encode("PNG"), {"copy": 1}),
    "grey": (encode("JPEG", "L"), {"convert": 1}),
    "palette": (encode("PNG", "P"), {"convert": 1}),
}


@doors
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_decoded_made_rgb_and_resized_once(vlm, count, door, name):
    data, wanted = FILES[name]
    door(vlm, data)
    assert dict(count) == {"load": 1, "resize": 1, **wanted}


@doors
def test_a_turned_photograph_is_turned_and_not_copied_besides(vlm, count, door):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode("JPEG", exif=exif)
    count.clear()
    door(vlm, data)
    assert dict(count) == {"load": 1, "transpose": 1, "resize": 1}


KEEPS = {chat, stream, batch, explain}  # the reply, or the explanation, has the picture


@doors
def test_a_picture_in_memory_is_copied_only_by_those_who_keep_it(vlm, count, door):
    picture = Image.open(io.BytesIO(encode("PNG"))).convert("RGB")
    count.clear()
    door(vlm, picture)
    assert dict(count) == {"resize": 1, **({"copy": 1} if door in KEEPS else {})}


@pytest.mark.parametrize("format", ["channels last", "channels first"])
def test_an_array_becomes_a_picture_once(vlm, count, format):
    pixels = np.zeros((SIZE[1], SIZE[0], 3), dtype=np.uint8)
    chat(vlm, pixels if format == "channels last" else np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    assert dict(count) == {"fromarray": 1, "resize": 1}


def test_a_reply_keeps_the_picture_as_it_was_shown(vlm):
    picture = Image.new("RGB", (60, 40), "red")
    reply = vlm.chat(picture, "What is this?", max_new_tokens=1)
    picture.putpixel((0, 0), (1, 2, 3))
    assert reply.images[0].getpixel((0, 0)) == (255, 0, 0)
