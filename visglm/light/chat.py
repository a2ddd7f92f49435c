"""`VisGLM` without torch: a folder that `visglm export` wrote, and the same calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import request
from ..errors import PromptError, VisGLMError
from ..explanation import Explanation, check_pictures, count_new
from ..pictures import DEFAULT_LIMITS, ImageLimits, load_images
from ..prompt import Turn
from ..reply import History, Reply
from ..sampling import GREEDY, Sampling
from ..settings import Rule, check_call
from ..stream import ReplyStream
from ..tokenizers import load_plain
from .answer import Answer, Asker
from .heat import Heat
from .manifest import Manifest
from .network import Network
from .words import check_words

EMBEDDED_MODEL = Path(__file__).parents[1] / "assets" / "visglm-tiny"
RULES: Mapping[str, Rule] = {
    "folder": Rule(Path, optional=True),
    "allow_urls": Rule(bool),
    "image_limits": Rule(ImageLimits, optional=True),
}
Past = History | Iterable[Sequence[str]] | Iterable[Mapping[str, Any]] | None


class VisGLM:
    """Chat about pictures in Chinese and English, with NumPy and ONNX Runtime in place of torch.

    Use `VisGLM.from_pretrained()`. Calls, settings, limits and errors are those of `visglm.VisGLM`, and so are greedy
    answers; what is drawn by a `seed` comes again here, but is not what torch would draw by it. Threads may share one.

    Args:
        manifest: what the model's folder says of itself.
        allow_urls: fetch pictures named by a URL; public addresses only.
        image_limits: how much one picture may cost.
    """

    def __init__(self, manifest: Manifest, *, allow_urls: bool = False, image_limits: ImageLimits = DEFAULT_LIMITS):
        self.manifest = manifest
        self.allow_urls = allow_urls
        self.image_limits = image_limits
        self.tokenizer = load_plain(manifest.folder / manifest.tokenizer["file"], manifest.tokenizer)
        check_words(manifest, self.tokenizer)
        self.network = Network(manifest)
        self._asker = Asker(self.network, self.tokenizer)
        self._heat = Heat(self.network)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None = None,
        *,
        allow_urls: bool = False,
        image_limits: ImageLimits | None = None,
    ) -> VisGLM:
        """Load a model that `visglm export` wrote.

        Args:
            folder: where it is; None for the embedded visglm-tiny.
            allow_urls: fetch pictures named by a URL; public addresses only.
            image_limits: how much one picture may cost; None for what is usual.

        Raises:
            CheckpointError: there is no exported model, or it is damaged: every file is compared with its hash.
        """
        check_call(RULES, folder=folder, allow_urls=allow_urls, image_limits=image_limits)
        path = EMBEDDED_MODEL if folder is None else Path(folder).expanduser()
        return cls(Manifest(path), allow_urls=allow_urls, image_limits=image_limits or DEFAULT_LIMITS)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or one in another process, opens the folder anew: what ONNX Runtime holds stays where it is."""
        opened = partial(type(self).from_pretrained, allow_urls=self.allow_urls, image_limits=self.image_limits)
        return opened, (self.manifest.folder.absolute(),)

    def __repr__(self) -> str:
        bits = self.manifest.scheme or "float32"
        return f"VisGLM({self.manifest.folder.name}: {bits} on ONNX Runtime)"

    @property
    def context_length(self) -> int:
        """Longest prompt plus answer, in tokens."""
        return self.manifest.text_config.max_position_embeddings

    @property
    def max_pictures(self) -> int | None:
        """In a conversation, as the model was taught; None for any number."""
        return self.manifest.max_pictures

    @property
    def defaults(self) -> dict[str, float]:
        """What `chat` takes for settings that are not given: `temperature` 0, so that the likeliest token comes."""
        return dict(GREEDY)

    @property
    def abilities(self) -> tuple[str, ...]:
        """What this model does here: "chat", and "explain" where it was exported with the heat map."""
        return ("chat", "explain") if "heat" in self.manifest.graphs else ("chat",)

    def chat(
        self,
        images: Any,
        prompt: str,
        history: Past = None,
        *,
        language: str = "auto",
        max_new_tokens: int | None = None,
        max_thinking_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        min_new_tokens: int = 0,
        seed: int | None = None,
        n: int = 1,
        logprobs: int = 0,
        stop: str | Sequence[str] = (),
        choices: Sequence[str] = (),
        json_schema: Mapping[str, Any] | str = "",
        regex: str = "",
        logit_bias: Mapping[int, float] | None = None,
    ) -> Reply:
        """Answer one question: arguments and errors as of `visglm.VisGLM.chat`."""
        sampling = Sampling(
            max_new_tokens=max_new_tokens, max_thinking_tokens=max_thinking_tokens, temperature=temperature,
            top_p=top_p, top_k=top_k, min_p=min_p,
            repetition_penalty=repetition_penalty, min_new_tokens=min_new_tokens, seed=seed, logprobs=logprobs,
            stop=stop, json_schema=json_schema, regex=regex, logit_bias=logit_bias or (), n=n, choices=choices,
        )  # fmt: skip
        return self._ask(self._compose(images, prompt, history, language, sampling), sampling).reply()

    def stream_chat(
        self,
        images: Any,
        prompt: str,
        history: Past = None,
        *,
        language: str = "auto",
        max_new_tokens: int | None = None,
        max_thinking_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        min_new_tokens: int = 0,
        seed: int | None = None,
        logprobs: int = 0,
        stop: str | Sequence[str] = (),
        json_schema: Mapping[str, Any] | str = "",
        regex: str = "",
        logit_bias: Mapping[int, float] | None = None,
    ) -> ReplyStream:
        """As `chat`, but an iterator over text as it is decoded, never half a character; then `.reply`."""
        sampling = Sampling(
            max_new_tokens=max_new_tokens, max_thinking_tokens=max_thinking_tokens, temperature=temperature,
            top_p=top_p, top_k=top_k, min_p=min_p,
            repetition_penalty=repetition_penalty, min_new_tokens=min_new_tokens, seed=seed, logprobs=logprobs,
            stop=stop, json_schema=json_schema, regex=regex, logit_bias=logit_bias or (),
        )  # fmt: skip
        ready = self._compose(images, prompt, history, language, sampling)
        return ReplyStream(lambda: self._ask(ready, sampling), self._asker.writer(sampling))

    def batch(
        self, requests: Iterable[Sequence[Any]], *, on_error: str = "raise", language: str = "auto", **settings: Any
    ) -> list[Reply | VisGLMError]:
        """Answer many questions, one after the other.

        Args:
            requests: `(images, prompt)` or `(images, prompt, history)` each, as `chat` takes them.
            on_error: "raise" stops at the first bad request; "return" puts its error in its place.
            settings: as the keyword arguments of `chat`.

        Raises:
            PromptError: `requests` is no list, or one of them is no request.
        """
        check_call({"on_error": Rule(str, names=("raise", "return"))}, on_error=on_error)
        Sampling.of(settings)
        found: list[Reply | VisGLMError] = []
        for asked in request.check_requests(requests):
            try:
                found.append(self.chat(*request.take_apart(asked), language=language, **settings))
            except VisGLMError as error:
                if on_error == "raise":
                    raise
                found.append(error)
        return found

    def explain(
        self,
        images: Any,
        prompt: str,
        answer: str | None = None,
        history: Past = None,
        *,
        language: str = "auto",
        picture: int = -1,
    ) -> Explanation:
        """Show where in a picture an answer comes from: arguments and errors as of `visglm.VisGLM.explain`.

        Raises:
            VisGLMError: the model was exported in fewer bits, or its eyes are very large.
        """
        check_call({"picture": Rule(int)}, picture=picture)
        pictures = load_images(images, limits=self.image_limits, allow_urls=self.allow_urls)
        past = History.of(history)
        num_new = count_new(pictures, past.turns)
        language = past.language if language == "auto" else language
        if answer is None:
            answer = self.chat(pictures[len(pictures) - num_new :], prompt, past, language=language).text
        turns = (*past.turns, Turn(prompt, answer, num_images=num_new))
        check_pictures(turns, pictures, picture, has_eyes=self.manifest.pictures is not None)
        row = request.lay_out(
            turns, language=language, max_new_tokens=0, config=self.manifest, tokenizer=self.tokenizer
        )
        heat = self._heat.of(row, self.network.pixels(pictures), picture)
        return Explanation(heat, pictures[picture], answer)

    def fill(self, text: str, *, max_new_tokens: int | None = None, temperature: float = 0.0) -> Reply:
        """Fill the blank in a text, as `visglm.VisGLM.fill`."""
        if not isinstance(text, str):
            raise PromptError(f"the text to fill must be a string with [MASK] or [gMASK] in it; got {text!r:.80}.")
        if self.manifest.positions["kind"] != "two planes":
            raise PromptError(
                "this text model writes on from a text and cannot fill blanks in it. Ask with chat instead."
            )
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)
        prompt = request.prepare_blank(text, max_new_tokens or 1, config=self.manifest, tokenizer=self.tokenizer)
        return replace(self._ask(prompt, sampling).reply(), history=History())

    def encode(self, images: Any) -> np.ndarray:
        """Visual tokens `[num_images, num_query_tokens, hidden_size]` of one picture or several."""
        if self.manifest.pictures is None:
            raise PromptError("this is a text-only model: it has no vision tower to look at a picture with.")
        pictures = load_images(images, limits=self.image_limits, allow_urls=self.allow_urls, is_read_only=True)
        request.check_some(pictures)
        return self.network.look(self.network.pixels(pictures))

    def _compose(self, images: Any, prompt: Any, history: Any, language: str, sampling: Sampling) -> request.Prompt:
        return request.prepare(
            images, prompt, history, language=language, max_new_tokens=sampling.max_new_tokens or 1,
            config=self.manifest, tokenizer=self.tokenizer, to_pixels=self.network.pixels,
            limits=self.image_limits, allow_urls=self.allow_urls, fingerprint=lambda: self.manifest.fingerprint,
        )  # fmt: skip

    def _ask(self, prompt: request.Prompt, sampling: Sampling) -> Answer:
        return self._asker.ask(prompt, sampling)
