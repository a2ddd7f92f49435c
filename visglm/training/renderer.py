"""Conversations → examples: what chat would show the model, from the same renderer, and its answer to learn."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..errors import DataError
from ..prompt import IGNORE_INDEX, Rendered, Turn, render
from ..reply import PictureShape
from .folder import Folder, open_image
from .formats import Conversation


@dataclass(frozen=True)
class Example:
    """One answer to learn.

    Args:
        rendered: ids and labels.
        images: pictures in order, RGB.
        where: file and line, for people.
        is_cut: whether the context had no room for all of it.
    """

    rendered: Rendered
    images: tuple[Image.Image, ...]
    where: str
    is_cut: bool


class Renderer:
    """Conversations → examples, for one model.

    Args:
        processor: of the model.
        max_length: longest prompt and answer, in tokens.
    """

    def __init__(self, processor: Any, max_length: int):
        self.processor = processor
        self.max_length = max_length
        self.options = processor.render_options

    def shapes(self, images: Sequence[Any], folder: Folder) -> tuple[PictureShape, ...]:
        """Of pictures that are opened for it, where their size says how many image slots they have; else nothing."""
        if self.processor.num_query_tokens is not None:
            return ()
        return tuple(self.processor.shapes([self.open(image, folder) for image in images]))

    def rendered(self, turns: Sequence[Turn], shapes: Sequence[PictureShape] = ()) -> Rendered:
        """Turns with all their pictures' image slots."""
        slots = {"num_query_tokens": [one.num_tokens for one in shapes]}
        return render(turns, **self.options | (slots if self.processor.num_query_tokens is None else {}))

    def render(self, turns: Sequence[Turn], shapes: Sequence[PictureShape] = ()) -> tuple[Rendered, int, bool]:
        """The conversation up to its last answer, how many of its first turns had to go, and whether anything had to.

        What does not fit loses its oldest turns as long as they show no picture, then the end of the answer. Image
        slots are never touched.

        Raises:
            DataError: the question alone does not fit.
        """
        num_dropped = 0
        rendered = self.rendered(turns, shapes)
        if len(rendered.input_ids) > self.max_length:
            num_dropped = self.num_to_drop(turns, shapes)
            rendered = self.rendered(turns[num_dropped:], shapes)
        length = len(rendered.input_ids)
        if length <= self.max_length:
            return rendered, num_dropped, num_dropped > 0
        num_prompt = rendered.labels.count(IGNORE_INDEX)
        if num_prompt >= self.max_length:
            raise DataError(
                f"the question takes {num_prompt} tokens, image slots included, and leaves no room for an answer "
                f"within {self.max_length}. Shorten it, show fewer pictures, or raise max_length."
            )
        cut = slice(self.max_length)
        return Rendered(rendered.input_ids[cut], rendered.labels[cut]), num_dropped, True

    def num_to_drop(self, turns: Sequence[Turn], shapes: Sequence[PictureShape] = ()) -> int:
        """How many of the first turns must go until the rest fits; all that may, where it never does.

        Searched for by halves: a row may have thousands.
        """
        most = min(next((place for place, turn in enumerate(turns) if turn.num_images), len(turns)), len(turns) - 1)
        least = min(max(1, len(turns) - self.max_length), most)  # every turn takes a token at least
        candidates = range(least, most)

        def fits(dropped: int) -> bool:
            return len(self.rendered(turns[dropped:], shapes).input_ids) <= self.max_length

        return least + bisect_left(candidates, True, key=fits)

    def example(self, conversation: Conversation, turn: int, folder: Folder, where: str) -> Example:
        """The example of one answer, its pictures read."""
        turns = conversation.turns[: turn + 1]
        num_images = sum(turn.num_images for turn in turns)  # only turns without pictures are dropped
        shown = conversation.images[:num_images]
        rendered, _, is_cut = self.render(turns, self.shapes(shown, folder))  # before all are opened: it may not fit
        images = tuple(self.open(image, folder) for image in shown)
        return Example(rendered, images, where, is_cut)

    def open(self, image: Any, folder: Folder) -> Image.Image:
        """As `open_image`, within the limits of the model's image processor."""
        return open_image(image, folder, self.processor.limits)

    def tensors(self, example: Example) -> dict[str, Any]:
        """An example as the collator takes it."""
        item: dict[str, Any] = {
            "input_ids": torch.tensor(example.rendered.input_ids),
            "labels": torch.tensor(example.rendered.labels),
            "where": example.where,
            "is_cut": example.is_cut,
            "skipped": [],
        }
        if example.images:
            item["pixel_values"] = self.processor.pixels(example.images)
        return item
