"""RGB image → `pixel_values`: resize to a square, scale to 0..1, normalize."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension, is_torch_tensor

from ..errors import ConfigError
from .load import load_image


class VisGLMImageProcessor(PilBackend):
    """Turn pictures into the input of the vision tower, with Pillow and NumPy only.

    Each picture is loaded by `visglm.load_image`, which makes it RGB; resized to `size`, a square,
    with bicubic interpolation and no cropping, whatever its proportions; divided by 255; and normalized with
    CLIP's mean and standard deviation. VisualGLM was trained on this: https://github.com/THUDM/VisualGLM-6B.

    Takes whatever `load_image` takes, lists of it, and batches of arrays or tensors. Gives `pixel_values`:
    float32, `[num_images, 3, height, width]`, channels in RGB order. Pass `return_tensors="pt"` for a tensor.

    Raises:
        ImageError: a picture was refused or could not be read.
    """

    model_input_names = ["pixel_values"]
    do_resize = True
    size = {"height": 224, "width": 224}
    resample = Image.Resampling.BICUBIC
    do_rescale = True
    do_normalize = True
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    do_convert_rgb = True

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Load every picture of a possibly nested list; arrays and tensors wait until their layout is known.

        Called by `__call__` and by processors. The base class would follow redirects to any address.
        """
        images = image_url_or_urls
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if (isinstance(images, np.ndarray) or is_torch_tensor(images)) and images.ndim > 2:
            return images
        return load_image(images)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """One picture that `fetch_images` let through → array `[3, height, width]`, RGB."""
        if not do_convert_rgb:
            raise ConfigError("do_convert_rgb=False is not possible: the vision tower takes RGB. Leave it out.")
        if isinstance(image, Image.Image):
            return np.moveaxis(np.asarray(image), -1, 0)
        if input_data_format == ChannelDimension.FIRST and isinstance(image, np.ndarray):
            image = np.moveaxis(image, 0, -1)
        elif input_data_format == ChannelDimension.LAST and is_torch_tensor(image):
            image = image.movedim(-1, 0)
        pixels = np.moveaxis(np.asarray(load_image(image)), -1, 0)
        if not do_rescale and "float" in str(image.dtype):  # they were in 0..1 and are to stay there
            return (pixels / 255).astype(np.float32)
        return pixels
