"""Where in a picture an answer comes from: the Q-Former's cross-attention, weighed by what it did for the answer."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import repeat
from PIL import Image
from torch import Tensor

from .errors import PromptError, VisGLMError
from .model import VisGLMForConditionalGeneration
from .processor import VisGLMProcessor
from .prompt import IGNORE_INDEX, Turn, render
from .reply import thumbnail_url
from .vision import VisionEncoder

# Heat 0 to 1 → RGB, evenly spaced: dark blue, violet, orange, pale yellow. Light grows with heat throughout, so that
# the map reads without colour vision too.
PALETTE = np.array([(13, 8, 75), (110, 20, 140), (200, 60, 100), (248, 140, 50), (252, 235, 110)], np.float32)
OVERLAY_SIZE = 1024  # longest side of an overlay, in pixels: a few dozen patches lie on it, whatever the picture's size


@dataclass(frozen=True)
class Explanation:
    """A heat map over one picture. Notebooks show it over the picture.

    Args:
        heat: `[rows, columns]`, one value per patch of the image encoder, 0 to 1: how much the answer drew on it,
            relative to the patch it drew on most. The grid lies over the whole picture, stretched to its shape.
        image: the picture, RGB.
        answer: the answer that is explained.
    """

    heat: np.ndarray
    image: Image.Image
    answer: str

    def overlay(self, image: Image.Image | None = None, strength: float = 0.75) -> Image.Image:
        """The heat map over the picture, RGB, in the picture's size, its longer side `OVERLAY_SIZE` at most.

        Args:
            image: what to lay it over; None for the picture that was explained.
            strength: opacity of the hottest place, 0 to 1; cold places leave the picture nearly as it is.
        """
        picture = self.image if image is None else image
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        largest = max(picture.size)
        if largest > OVERLAY_SIZE:
            size = [max(1, round(side * OVERLAY_SIZE / largest)) for side in picture.size]
            picture = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC, reducing_gap=2.0)
        heat = np.asarray(Image.fromarray(self.heat).resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)
        place = heat * (len(PALETTE) - 1)
        low = np.minimum(place.astype(int), len(PALETTE) - 2)
        colour = PALETTE[low] + (PALETTE[low + 1] - PALETTE[low]) * (place - low)[..., None]
        opacity = strength * (0.35 + 0.65 * heat)[..., None]
        return Image.fromarray((np.asarray(picture) * (1 - opacity) + colour * opacity).round().astype(np.uint8))

    def _repr_html_(self) -> str:
        overlay = thumbnail_url(self.overlay())
        return f'<figure><img src="{overlay}"><figcaption>{html.escape(self.answer)}</figcaption></figure>'


def explain(
    model: VisGLMForConditionalGeneration,
    processor: VisGLMProcessor,
    turns: Sequence[Turn],
    images: Sequence[Image.Image],
    *,
    language: str = "auto",
    picture: int = -1,
) -> Explanation:
    """Explain the last answer of a conversation.

    Each cross-attention map is multiplied by the gradient of the answer's log-likelihood with respect to it. What is
    positive spoke for the answer; it is averaged over heads and summed over queries and layers. So a query counts by
    what its visual token did for the answer, through whatever text model. The class token's column is left out.

    Args:
        turns: the conversation; the last turn has an answer.
        images: all of its pictures in order, RGB.
        picture: index of the one to explain.

    Source: Chefer, Gur, Wolf, "Generic Attention-model Explainability" (https://arxiv.org/abs/2103.15679), equation 5.

    Raises:
        PromptError: there is no such picture, or their number is not that of the turns.
        VisGLMError: the weights are in a format that gradients do not pass.
    """
    vision = model.model.vision
    if vision is None:
        raise PromptError("this is a text-only model: it looked at no picture, so there is nothing to explain.")
    num_images = sum(turn.num_images for turn in turns)
    if len(images) != num_images or not -num_images <= picture < num_images:
        raise PromptError(
            f"the conversation has {num_images} pictures; got {len(images)}, and number {picture} to explain. "
            "Pass all of them in order, those of the history first."
        )
    row = render(turns, language=language, **processor.render_options)
    pixel_values = processor.pixels(images).to(model.device)
    with torch.enable_grad():
        image_embeds, attentions = look(vision, pixel_values)
        try:
            likelihood = answer_log_likelihood(model, row.input_ids, row.labels, image_embeds)
            gradients = torch.autograd.grad(likelihood, attentions)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # some kernels for packed weights have no derivative
            raise VisGLMError(
                f"the heat map needs gradients, and this model's weights do not pass them ({error}). Load it in 16 "
                "bits: without `quantize`, or, where the folder itself is quantized, from the one it was made of."
            ) from None
    layers = [attention * gradient for attention, gradient in zip(attentions, gradients, strict=True)]
    patch_size = model.config.vision_config.patch_size
    rows, columns = (side // patch_size for side in pixel_values.shape[-2:])
    # The class token stands before the patches, and what a recogniser sees behind them.
    relevance = torch.stack(layers)[:, picture, :, :, 1 : 1 + rows * columns].clamp(min=0).float().mean(1).sum((0, 1))
    grid = relevance.detach().view(rows, columns)
    heat = (grid / grid.max().clamp(min=torch.finfo(torch.float32).tiny)).cpu().numpy()
    return Explanation(heat, images[picture], turns[-1].answer or "")


def count_new(images: Sequence[Image.Image], turns: Sequence[Turn]) -> int:
    """How many of a conversation's pictures came with its last question, behind those of the `turns` before.

    Raises:
        PromptError: there are fewer than the turns had, or none at all.
    """
    num_past = sum(turn.num_images for turn in turns)
    if not images or len(images) < num_past:
        raise PromptError(
            f"explain needs all pictures of the conversation, at least one; got {len(images)}, and the history "
            f"has {num_past}. Pass those of the history first, then the new ones."
        )
    return len(images) - num_past


def look(vision: VisionEncoder, pixel_values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Visual tokens, and the cross-attention maps `[num_images, heads, queries, 1 + patches (+ cells)]` they came
    from."""
    with torch.no_grad():
        seen = vision.see(pixel_values)
    queries = repeat(vision.query_tokens.detach(), "1 query hidden -> image query hidden", image=len(seen.features))
    queries.requires_grad_()  # the maps have gradients then, whether or not all of the model is frozen, as LoRA does
    usual = vision.qformer.config._attn_implementation
    vision.qformer.set_attn_implementation("eager")  # the others never hold the maps
    try:
        outputs = vision.qformer(queries, encoder_hidden_states=seen.features, output_attentions=True)
    finally:
        vision.qformer.set_attn_implementation(usual)
    return torch.cat([vision.projection(outputs.last_hidden_state), seen.guesses], 1), outputs.cross_attentions


def answer_log_likelihood(
    model: VisGLMForConditionalGeneration, input_ids: list[int], labels: list[int], image_embeds: Tensor
) -> Tensor:
    """Sum over the answer's tokens, its end token included."""
    ids = torch.tensor([input_ids], device=model.device)
    logits = model(input_ids=ids, image_embeds=image_embeds, use_cache=False).logits[0, :-1]
    targets = torch.tensor(labels[1:], device=model.device)
    scored = targets != IGNORE_INDEX
    return logits[scored].float().log_softmax(-1).gather(-1, targets[scored, None]).sum()
