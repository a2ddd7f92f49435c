"""What visglm-tiny looks with: the preset's ViT, with the whole network of its stem beside it as a recogniser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from concepts import load_photographed
from timm.data import ImageNetInfo

from visglm import PRESETS, VisGLMVisionConfig

NUM_GUESSES, NUM_QUERIES = 2, 8
VIT_SIZE, WHOLE_SIZE = 128, 256  # pixels: what the ViT sees of a picture, and the recogniser
DOGS = range(151, 269)  # ImageNet's breeds
NETWORK = "tf_efficientnet_lite2"  # the stem up to stride 16, and the recogniser whole


def known_classes() -> list[tuple[int, int]]:
    """The classes of the recogniser's head, each with the row of `photo_names.tsv` that names it: ImageNet's by number,
    then -1 for every name that ImageNet has no class for."""
    imagenet = ImageNetInfo()
    labels = [imagenet.index_to_description(number).split(", ")[0].replace(" ", "_") for number in range(1000)]
    known = [(number, index) for index, row in enumerate(load_photographed()) for number in numbers_of(row[1], labels)]
    return known + [(-1, index) for index, (_, of_name) in enumerate(load_photographed()) if not of_name]


def numbers_of(wanted: Sequence[str], labels: Sequence[str]) -> Iterator[int]:
    """ImageNet's classes of these labels; `@dogs` are the hundred and eighteen breeds."""
    for label in wanted:
        yield from DOGS if label == "@dogs" else (labels.index(label),)


def tower_config() -> VisGLMVisionConfig:
    """The preset's ViT with the recogniser beside it, which sees four times as many pixels."""
    return VisGLMVisionConfig(
        **PRESETS["visglm-tiny"]["vision_config"]
        | {
            "image_size": WHOLE_SIZE,
            "reduction": WHOLE_SIZE // VIT_SIZE,
            "recogniser": NETWORK,
            "num_classes": len(known_classes()),
            "num_names": len(load_photographed()),
            "num_guesses": NUM_GUESSES,
            "tokens_per_guess": 2,  # English and Chinese
        }
    )
