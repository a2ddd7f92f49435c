"""Where in a picture an answer comes from: the Q-Former's cross-attention, weighed by what it did for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import repeat
from PIL import Image
from torch import Tensor

from .errors import VisGLMError
from .explanation import Explanation, check_pictures
from .model import VisGLMForConditionalGeneration
from .processor import VisGLMProcessor
from .prompt import IGNORE_INDEX, Turn, render
from .vision import VisionEncoder


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
    vision: Any = model.model.vision
    check_pictures(turns, images, picture, has_eyes=vision is not None)
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
    stride = model.config.vision_config.stride
    rows, columns = (side // stride for side in pixel_values.shape[-2:])
    maps = [attention[picture] for attention in attentions]
    heat = heat_of(maps, [gradient[picture] for gradient in gradients], rows, columns).cpu().numpy()
    return Explanation(heat, images[picture], turns[-1].answer or "")


def look(vision: VisionEncoder, pixel_values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Visual tokens, and the cross-attention maps `[num_images, heads, queries, 1 + patches (+ cells)]` they came
    from."""
    with torch.no_grad():
        seen = vision.see(pixel_values)
    tokens, attentions = bridge(vision, seen.features)
    return torch.cat([tokens, seen.guesses], 1), attentions


def bridge(vision: VisionEncoder, features: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The Q-Former's visual tokens, and the maps they came from."""
    queries = repeat(vision.query_tokens.detach(), "1 query hidden -> image query hidden", image=len(features))
    queries.requires_grad_()  # the maps have gradients then, whether or not all of the model is frozen, as LoRA does
    usual = vision.qformer.config._attn_implementation
    vision.qformer.set_attn_implementation("eager")  # the others never hold the maps
    try:
        outputs = vision.qformer(queries, encoder_hidden_states=features, output_attentions=True)
    finally:
        vision.qformer.set_attn_implementation(usual)
    return vision.projection(outputs.last_hidden_state), outputs.cross_attentions


def heat_of(attentions: Sequence[Tensor], gradients: Sequence[Tensor], rows: int, columns: int) -> Tensor:
    """`[rows, columns]`, 0 to 1, of a picture's maps and their gradients `[heads, queries, 1 + patches (+ cells)]`."""
    layers = torch.stack([attention * gradient for attention, gradient in zip(attentions, gradients, strict=True)])
    # The class token stands before the patches, and what a recogniser sees behind them.
    relevance = layers[..., 1 : 1 + rows * columns].clamp(min=0).float().mean(1).sum((0, 1))
    grid = relevance.detach().view(rows, columns)
    return grid / grid.max().clamp(min=torch.finfo(torch.float32).tiny)


def answer_log_likelihood(
    model: VisGLMForConditionalGeneration, input_ids: list[int], labels: list[int], image_embeds: Tensor
) -> Tensor:
    """Sum over the answer's tokens, its end token included."""
    ids = torch.tensor([input_ids], device=model.device)
    logits = model(input_ids=ids, image_embeds=image_embeds, use_cache=False).logits[0, :-1]
    targets = torch.tensor(labels[1:], device=model.device)
    scored = targets != IGNORE_INDEX
    return logits[scored].float().log_softmax(-1).gather(-1, targets[scored, None]).sum()
