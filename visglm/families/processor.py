"""Pictures of any size and a tokenizer, for families whose image processor is transformers' own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize

from ..errors import ConfigError, ImageError
from ..pictures import DEFAULT_LIMITS, ImageLimits
from ..prompt import PromptStyle
from ..reply import PictureShape

SETTINGS, VIDEOS = "preprocessor_config.json", "video_preprocessor_config.json"


class FamilyProcessor:
    """Prepares pictures for a family's network, and has its tokenizer.

    Args:
        image_processor: transformers' own, of the checkpoint.
        tokenizer: of the text model.
        style: of its prompts.
        processor_class: name of transformers' processor, for the files.
        videos: settings for videos, which the files keep for others; none are looked at here.
        limits: how much one picture may cost.
    """

    num_query_tokens = None

    def __init__(
        self, image_processor: Any, tokenizer: Any, style: PromptStyle, processor_class: str,
        videos: Mapping[str, Any] | None = None, limits: ImageLimits = DEFAULT_LIMITS,
    ):  # fmt: skip
        self.image_processor, self.tokenizer, self.style = image_processor, tokenizer, style
        self.processor_class, self.videos, self.limits = processor_class, videos, limits

    def shapes(self, images: Sequence[Image.Image]) -> list[PictureShape]:
        """What becomes of pictures: their visual tokens in frames, rows and columns.

        Raises:
            ImageError: one is too narrow to be looked at.
        """
        return [self.shape(image.size) for image in images]

    def shape(self, size: tuple[int, int]) -> PictureShape:
        """The same of a picture of this width and height, in pixels."""
        (width, height), images = size, self.image_processor
        side = images.patch_size * images.merge_size
        try:
            resized = smart_resize(
                images.temporal_patch_size, height, width, images.temporal_patch_size, side,
                images.size["shortest_edge"], images.size["longest_edge"],
            )  # fmt: skip
        except ValueError as error:
            raise ImageError(
                f"a picture of {width}×{height} pixels cannot be looked at: {error}. Cut it into shorter parts."
            ) from None
        return PictureShape((1, resized[0] // side, resized[1] // side), size)

    def set_image_size(self, side: int, config: Any) -> None:
        """Have no picture take more room than a square of this side, in pixels; but for long strips, which take one row
        of visual tokens at least.

        Raises:
            ConfigError: not even one visual token would be left.
        """
        images = self.image_processor
        smallest = images.patch_size * images.merge_size
        if side < smallest:
            raise ConfigError(f"image_size={side} is less than the {smallest} pixels of one visual token.")
        most = images.temporal_patch_size * side * side
        images.size = {"shortest_edge": min(images.size["shortest_edge"], most), "longest_edge": most}

    def pixels(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """Of each picture `[frames, rows, columns, numbers of a patch]`: patches in the order that the network takes
        them, block by block.

        Raises:
            ImageError: one is too narrow to be looked at.
        """
        self.shapes(images)
        found = self.image_processor(list(images), return_tensors="pt")
        grids = found["image_grid_thw"].tolist()
        parts = found["pixel_values"].split([prod(grid) for grid in grids])
        return [part.reshape(*grid, -1) for part, grid in zip(parts, grids, strict=True)]

    def check(self, config: Any) -> None:
        """Whether processor and model belong together.

        Raises:
            ConfigError: they contradict each other; everything is listed.
        """
        if problems := self.problems(config):
            raise ConfigError(f"processor and model do not belong together: {'; '.join(problems)}.")

    def problems(self, config: Any) -> list[str]:
        """What the processor and a model's configuration say differently, one line each."""
        vision, images = config.vision_config, self.image_processor
        pairs = {
            "patch_size": (images.patch_size, vision.patch_size),
            "merge_size": (images.merge_size, vision.spatial_merge_size),
            "temporal_patch_size": (images.temporal_patch_size, vision.temporal_patch_size),
            "<|image|>": (self.tokenizer.convert_tokens_to_ids("<|image|>"), config.image_token_id),
            "<|begin_of_image|>": (
                self.tokenizer.convert_tokens_to_ids("<|begin_of_image|>"), config.image_start_token_id,
            ),
            "<|end_of_image|>": (self.tokenizer.convert_tokens_to_ids("<|end_of_image|>"), config.image_end_token_id),
        }  # fmt: skip
        return [
            f"{name} is {own} in the processor, and {models} in the model's configuration"
            for name, (own, models) in pairs.items()
            if own != models
        ]

    @property
    def render_options(self) -> dict[str, Any]:
        """What `visglm.prompt.render` has to know of the model, beside the image slots."""
        return {"tokenizer": self.tokenizer, "style": self.style}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write files that transformers' own processor reads."""
        self.tokenizer.save_pretrained(folder)
        images = self.image_processor.to_json_string()
        contents = {SETTINGS: json.loads(images) | {"processor_class": self.processor_class}, VIDEOS: self.videos}
        for name, content in contents.items():
            if content is not None:
                (Path(folder) / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
