"""What a picture shows: its visual tokens as one vector, and its description in both languages, by a visglm model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from .. import checkpoint, request
from ..engine import Asker, engine_of
from ..model import VisGLMForConditionalGeneration
from ..processor import VisGLMProcessor
from ..sampling import Sampling

QUESTIONS = {"en": "Describe the picture.", "zh": "描述这张图片。"}
EMBEDDED_NAME = "visglm-tiny"
MAX_WORDS = 96  # tokens of a description
TOGETHER = 16  # pictures


class Eyes:
    """Looks at pictures.

    Args:
        model: the network. processor: that belongs to it.
        name: by which a library knows who looked; the same pictures look different to others.
    """

    def __init__(self, model: VisGLMForConditionalGeneration, processor: VisGLMProcessor, name: str = ""):
        self.model, self.processor = model, processor
        self.name = name or engine_of(model).fingerprint(model)

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return self.model.config.text_config.hidden_size

    @property
    def _asker(self) -> Asker:
        return Asker(engine_of(self.model), self.model, self.processor.tokenizer)

    def look(self, images: Sequence[Image.Image]) -> np.ndarray:
        """`[num_images, size]` of length 1: the mean of the visual tokens of each."""
        found = []
        for start in range(0, len(images), TOGETHER):
            some = list(images[start : start + TOGETHER])
            found.append(self._asker.look(self.processor.pixels(some)).float().mean(dim=1).cpu().numpy())
        means = np.concatenate(found) if found else np.zeros((0, self.size), np.float32)
        return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)

    def describe(self, images: Sequence[Image.Image]) -> list[str]:
        """What each shows, in English and Chinese, one line each."""
        sampling = Sampling(max_new_tokens=MAX_WORDS, temperature=0)
        prompts = [self._prompt(image, language) for image in images for language in QUESTIONS]
        said = [answer.reply().text for answer in self._asker.submit(prompts, sampling)] if prompts else []
        step = len(QUESTIONS)
        return ["\n".join(said[start : start + step]) for start in range(0, len(said), step)]

    def _prompt(self, image: Image.Image, language: str) -> request.Prompt:
        engine = engine_of(self.model)
        return request.prepare(
            image, QUESTIONS[language], None, language=language, max_new_tokens=MAX_WORDS, config=self.model.config,
            tokenizer=self.processor.tokenizer, to_pixels=self.processor.pixels,
            limits=self.processor.image_processor.limits, allow_urls=False,
            fingerprint=lambda: engine.fingerprint(self.model),
        )  # fmt: skip


@cache
def embedded_eyes() -> Eyes:
    """Those of the embedded visglm-tiny; loaded once a process."""
    loaded = checkpoint.load(None, device="cpu")
    return Eyes(loaded.model.eval(), loaded.processor, EMBEDDED_NAME)


def embedded_size() -> int:
    """Numbers of a vector of the embedded model's, which is not loaded for this."""
    return checkpoint.open_source(None).config.text_config.hidden_size
