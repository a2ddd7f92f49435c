"""`Composer`: what people pass to `VisGLM`, made ready for its network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from .. import request
from ..engine import Engine
from ..errors import BusyError
from ..families import manner_of
from ..pictures import load_images
from ..prompt import Reference
from ..quant.products import uses_onnx
from ..sampling import Sampling
from ..settings import Rule, check_call

ADAPTER = {"adapter": Rule(str, optional=True)}


@dataclass(frozen=True)
class Composer:
    """Pictures in any form and questions in, prompts out.

    Args:
        engine: of the network.
        network, processor: that the prompts are for.
        allow_urls: fetch pictures named by a URL.
    """

    engine: Engine
    network: PreTrainedModel
    processor: Any
    allow_urls: bool

    def pictures(self, images: Any, *, is_read_only: bool = False) -> tuple[Image.Image, ...]:
        """Pictures in any form, within the processor's limits.

        Args:
            is_read_only: as of `load_images`.

        Raises:
            ImageError: one was refused or cannot be read.
        """
        return load_images(
            images, limits=self.processor.limits, allow_urls=self.allow_urls, is_read_only=is_read_only
        )  # fmt: skip

    def prompt(
        self,
        images: Any,
        question: Any,
        history: Any,
        language: str,
        sampling: Sampling,
        adapter: str | None = None,
        references: tuple[Reference, ...] = (),
    ) -> request.Prompt:
        """A question ready to answer; arguments and errors of `VisGLM.chat`.

        Raises:
            BusyError: something long has the network, or this process cannot use it.
        """
        self.check_process()
        self.engine.turns.refuse_if_busy()
        check_call(ADAPTER, adapter=adapter)
        return request.prepare(
            images, question, history, language=language, max_new_tokens=sampling.max_new_tokens or 1,
            config=manner_of(self.network.config), tokenizer=self.processor.tokenizer, to_pixels=self.processor.pixels,
            limits=self.processor.limits, allow_urls=self.allow_urls,
            fingerprint=self.fingerprint if adapter is None else None, references=references,
            to_shapes=self.processor.shapes, thinks=sampling.thinks,
        )  # fmt: skip

    def fingerprint(self) -> str:
        """Of what looks at pictures now."""
        with self.engine.turns.read():
            return self.engine.fingerprint(self.network)

    def check_process(self) -> None:
        """Raise `BusyError` where this process was forked and there is nothing to compute with in it."""
        if self.engine.turns.was_forked and (self.network.device.type != "cpu" or uses_onnx(self.network)):
            raise BusyError(
                "this process was forked, and what the model computes with (a GPU, or ONNX Runtime) does not survive "
                'that. Start processes with multiprocessing.get_context("spawn"), or load the model in this one.'
            )
