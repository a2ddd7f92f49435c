"""RGB image → `pixel_values`: resize to a square, scale to 0..1, normalize."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension, SizeDict, is_torch_tensor

from ..errors import ConfigError
from .limits import DEFAULT_LIMITS, ImageLimits
from .load import load_images


class VisGLMImageProcessor(PilBackend):
    """Turn pictures into the input of the vision tower, with Pillow and NumPy only.

    Each picture is loaded by `visglm.load_image`, which makes it RGB; resized to `size`, a square,
    with bicubic interpolation and no cropping, whatever its proportions; divided by 255; and normalized with
    CLIP's mean and standard deviation. VisualGLM was trained on this: https://github.com/THUDM/VisualGLM-6B.

    Takes whatever `load_image` takes, lists of it, and batches of arrays or tensors. Gives `pixel_values`:
    float32, `[num_images, 3, height, width]`, channels in RGB order. Pass `return_tensors="pt"` for a tensor.

    Args:
        limits: how much one picture may cost; not saved.

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

    def __init__(self, limits: ImageLimits = DEFAULT_LIMITS, **kwargs: Any):
        super().__init__(**kwargs)
        self.limits = limits

    def to_dict(self) -> dict[str, Any]:
        """What a file keeps of it: the limits are this machine's, not the model's."""
        return {name: value for name, value in super().to_dict().items() if name != "limits"}

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Load every picture of a possibly nested list; arrays and tensors wait until their layout is known.

        Called by `__call__` and by processors. The base class would follow redirects to any address.
        """
        images = image_url_or_urls
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if (isinstance(images, np.ndarray) or is_torch_tensor(images)) and images.ndim > 2:
            return images
        return self._load(images)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        **kwargs: Any,
    ) -> Image.Image | np.ndarray:
        """One picture that `fetch_images` let through → RGB image, or array `[3, height, width]` of floats in 0..1."""
        if not do_convert_rgb:
            raise ConfigError("do_convert_rgb=False is not possible: the vision tower takes RGB. Leave it out.")
        if isinstance(image, Image.Image):
            return image
        if input_data_format == ChannelDimension.FIRST and isinstance(image, np.ndarray):
            image = np.moveaxis(image, 0, -1)
        elif input_data_format == ChannelDimension.LAST and is_torch_tensor(image):
            image = image.movedim(-1, 0)
        picture = self._load(image)
        if not do_rescale and "float" in str(image.dtype):  # they were in 0..1 and are to stay there
            return (to_array(picture) / 255).astype(np.float32)
        return picture

    def resize(self, image: Any, size: SizeDict, resample: Any = None, **kwargs: Any) -> np.ndarray:
        """A picture or an array `[3, height, width]` → array of that size; a picture without a copy of it."""
        if isinstance(image, Image.Image) and size.height and size.width and isinstance(resample, int):
            return to_array(image.resize((size.width, size.height), resample))
        return super().resize(to_array(image), size, resample, **kwargs)

    def _preprocess(self, images: list[Any], do_resize: bool, **kwargs: Any) -> BatchFeature:
        if not do_resize:
            images = [to_array(image) for image in images]
        return super()._preprocess(images, do_resize, **kwargs)

    def _load(self, source: Any) -> Image.Image:
        return load_images([source], limits=self.limits, is_read_only=True)[0]


def to_array(image: Image.Image | np.ndarray) -> np.ndarray:
    """A picture as `[3, height, width]`; an array as it is."""
    return np.moveaxis(np.asarray(image), -1, 0) if isinstance(image, Image.Image) else image
