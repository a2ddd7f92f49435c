"""`VisGLM`: load once, then ask about pictures: one answer, a stream of text, or many at a time."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import checkpoint, generation, request
from .batch import answer_all
from .errors import PromptError, VisGLMError
from .model import VisGLMForConditionalGeneration
from .pictures import ImageLimits, load_images
from .processor import VisGLMProcessor
from .prompt import Turn
from .recipe import FinetuneArguments, check_names
from .reply import History, Reply
from .sampling import Sampling
from .stream import ReplyStream, pieces
from .tokenizers import ChatGLMTokenizer

if TYPE_CHECKING:
    from .explain import Explanation
    from .training import Evaluation, FinetuneReport, Stop

PICTURES_AT_ONCE = 8  # of one question that are encoded together; memory grows with them


class VisGLM:
    """Chat about pictures in Chinese and English.

    Use `VisGLM.from_pretrained()`. `model`, `processor` and `tokenizer` are the Hugging Face layer below. Threads that
    share one instance take turns.

    Args:
        model: the network.
        processor: image processor and tokenizer that belong to it.
        allow_urls: fetch pictures named by a URL; public addresses only.
        image_limits: how much one picture may cost; by default what the image processor says.

    Raises:
        ConfigError: model and processor do not belong together.
    """

    def __init__(
        self,
        model: VisGLMForConditionalGeneration,
        processor: VisGLMProcessor,
        *,
        allow_urls: bool = False,
        image_limits: ImageLimits | None = None,
    ):
        processor.check(model.config)
        self.model = model.eval()
        self.processor = processor
        self.allow_urls = allow_urls
        if image_limits is not None:
            self.image_limits = image_limits
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> ChatGLMTokenizer:
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def image_limits(self) -> ImageLimits:
        """How much one picture may cost; the image processor's, by which fine-tuning goes as well."""
        return self.processor.image_processor.limits

    @image_limits.setter
    def image_limits(self, limits: ImageLimits) -> None:
        self.processor.image_processor.limits = limits

    @property
    def context_length(self) -> int:
        """Longest prompt plus answer, in tokens."""
        return self.model.config.text_config.max_position_embeddings

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        image_size: int | None = None,
        tokenizer: str | Path | None = None,
        quantize: str | None = None,
        quantize_vision: bool = False,
        allow_urls: bool = False,
        image_limits: ImageLimits | None = None,
    ) -> VisGLM:
        """Load a model.

        Args:
            name_or_path: folder or hub id; None for the embedded visglm-tiny, which needs no network.
            device: "auto" (CUDA, then Apple's MPS, then CPU), or a torch device.
            dtype: "auto" (bfloat16 on GPUs, and on CPUs from a billion parameters on; float32 below), or a torch dtype.
            image_size: side of the square pictures are resized to, in pixels; other sizes than the model's own are
                reached by interpolating its position embedding.
            tokenizer: folder to take the tokenizer from, for checkpoints that come without (SwissArmyTransformer's).
            quantize: "int8", "int4" or "nf4": pack the text model's weights as they are read (`visglm.quant`). A
                quantized checkpoint, THUDM's own among them, is loaded as it is, without this; with its own scheme
                here, what it keeps in 16 bits (THUDM's: embeddings and head) is packed too.
            quantize_vision: pack the ViT and the Q-Former too.
            allow_urls: fetch pictures named by a URL; public addresses only.
            image_limits: how much one picture may cost, in chat as in fine-tuning; by default `ImageLimits()`.

        Raises:
            CheckpointError: weights are missing, unexpected or of the wrong shape; all problems are listed.
            ConfigError: an unknown scheme, a checkpoint that is quantized to another one already, or an image size that
                the model cannot cut into its patches.
        """
        model, processor = checkpoint.load(
            name_or_path, device=device, dtype=dtype, image_size=image_size, tokenizer=tokenizer, quantize=quantize,
            quantize_vision=quantize_vision,
        )  # fmt: skip
        return cls(model, processor, allow_urls=allow_urls, image_limits=image_limits)

    @classmethod
    def from_parts(
        cls, *, vision: str | Path | None = None, text: str | Path, tokenizer: str | Path | None = None, **options: Any
    ) -> VisGLM:
        """The ViT and Q-Former of one checkpoint in front of the text model of another, ChatGLM2 say.

        The projection between them is new and random: answers about pictures make sense after `finetune` only.

        Args:
            vision: folder or hub id whose vision tower is taken; None for the embedded visglm-tiny.
            text: folder or hub id whose text model, tokenizer and prompt style are taken.
            tokenizer: folder of the tokenizer, if `text` comes without.
            options: device, dtype, image_size, quantize, allow_urls and image_limits of `from_pretrained`.

        Raises:
            CheckpointError: `vision` has no vision tower, or one of them is broken.
        """
        own = {name: options.pop(name) for name in ("allow_urls", "image_limits") if name in options}
        source = checkpoint.PartsSource(checkpoint.open_source(vision), checkpoint.open_source(text, tokenizer))
        model, processor = checkpoint.realize(source, **options)
        return cls(model, processor, **own)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, configuration, tokenizer and processor into `folder`; `from_pretrained` needs nothing else."""
        name = checkpoint.active(self.model)
        if name is None or checkpoint.attached(self.model)[name].beside_base:
            checkpoint.save(self.model, self.processor, folder)
        else:
            checkpoint.save_adapter(folder, self.model, name)
            self.processor.save_pretrained(folder)

    def finetune(
        self, data: Any, method: str = "lora", output_dir: str | Path = "finetuned", stop: Stop = None, **settings: Any
    ) -> FinetuneReport:
        """Learn from pictures and captions; this model answers with what it learnt afterwards.

        Args:
            data: a file (JSONL, JSON, CSV, WebDataset shards, a folder with metadata.jsonl), a list of rows, or a
                `datasets` object; `visglm data check` tells whether a file can be used.
            method: "lora", "qlora", "ptuning", "qformer" or "full".
            output_dir: `from_pretrained` loads it, and report.html in it shows curves and answers.
            stop: asked after every step; true ends the run there, with what was learnt so far as its result.
            settings: as the fields of `visglm.recipe.FinetuneArguments`.

        Raises:
            DataError: too much of the data is unusable. ConfigError: a setting is wrong.
            TrainingError: it does not fit into memory, or the loss is zero or not a number.
        """
        from . import training

        check_names(settings)
        arguments = FinetuneArguments(method=method, output_dir=str(output_dir), **settings)
        return training.finetune(self.model, self.processor, data, arguments, self.batch, stop)

    def load_adapter(self, folder: str | Path, name: str) -> None:
        """Put a fine-tuning result beside those that are loaded, and use it."""
        checkpoint.attach(self.model, folder, name)

    def use_adapter(self, name: str | None) -> None:
        """Answer with the adapter `name`, or with None as the base model. The first one is called "default"."""
        checkpoint.activate(self.model, name)

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Answer as the base model, inside a `with`."""
        return checkpoint.disabled(self.model)

    def merge(self) -> None:
        """Make the adapter in use part of the weights: the same answers, nothing to add up, `save_pretrained` whole."""
        checkpoint.merge(self.model)

    def push_to_hub(self, repository: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes; the commit's address. `visglm.training.push` uploads a whole run."""
        from .training import push

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push(folder, repository, private=private, token=token)

    def chat(
        self,
        images: Any,
        prompt: str,
        history: History | Sequence[tuple[str, str]] | None = None,
        *,
        language: str = "auto",
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> Reply:
        """Answer one question.

        Args:
            images: one picture, a list of them, or None; each a path, data URL, base64 text, bytes, PIL image, array
                or tensor, or with `allow_urls` a URL (see `visglm.load_image`).
            prompt: the question. Plain text: nothing in it is read as a control token or opened as a file.
            history: `reply.history` of the turn before; its pictures are not encoded again.
            language: of the prompt's frame: "zh", "en", or "auto" for the language of the first question.
            max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed: see `Sampling`.

        Raises:
            ImageError: a picture was refused or cannot be read.
            ContextLengthError: the conversation does not fit; nothing is ever cut.
            ConfigError: a setting is out of its range.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
        ready = self._prepare(images, prompt, history, language, sampling)
        return self._answer([ready], sampling)[0]

    def stream_chat(
        self,
        images: Any,
        prompt: str,
        history: History | Sequence[tuple[str, str]] | None = None,
        *,
        language: str = "auto",
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> ReplyStream:
        """As `chat`, but an iterator over text as it is decoded, never half a character; then `.reply`.

        The joined pieces are `.reply.text`. Leaving the loop early stops the model.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
        ready = self._prepare(images, prompt, history, language, sampling)
        return ReplyStream(pieces(lambda watch: self._answer([ready], sampling, watch)[0], self.tokenizer))

    def explain(
        self,
        images: Any,
        prompt: str,
        answer: str | None = None,
        history: History | Sequence[tuple[str, str]] | None = None,
        *,
        language: str = "auto",
        picture: int = -1,
    ) -> Explanation:
        """Show where in a picture an answer comes from: `.heat` per patch, `.overlay()` over the picture.

        Args:
            images: all pictures of the conversation, those of `history` first: they are looked at again.
            prompt: the question.
            answer: the answer to explain; None for the one `chat` gives.
            history: the turns before.
            picture: index in `images` of the one to explain.

        Raises:
            PromptError: fewer pictures than the history has, or none at all.
        """
        from .explain import count_new, explain

        pictures = load_images(images, limits=self.image_limits, allow_urls=self.allow_urls)
        past = History.of(history)
        num_new = count_new(pictures, past.turns)
        language = past.language if language == "auto" else language
        if answer is None:
            answer = self.chat(pictures[len(pictures) - num_new :], prompt, past, language=language).text
        turns = (*past.turns, Turn(prompt, answer, num_images=num_new))
        with self._lock:
            return explain(self.model, self.processor, turns, pictures, language=language, picture=picture)

    def batch(
        self,
        requests: Sequence[Sequence[Any]],
        *,
        batch_size: int = 8,
        on_error: str = "raise",
        progress: bool = True,
        language: str = "auto",
        **settings: Any,
    ) -> list[Reply | VisGLMError]:
        """Answer many questions; greedy answers are those of one-by-one calls.

        Args:
            requests: `(images, prompt)` or `(images, prompt, history)` each.
            batch_size: questions that share a pass through the model, and pictures that are encoded together.
            on_error: "raise" stops at the first bad request; "return" puts its error in its place.
            progress: show a progress bar on stderr.
            settings: as the keyword arguments of `chat`.
        """
        sampling = Sampling(**settings)
        prepare = partial(self._compose, language=language, sampling=sampling)

        def answer(prompts: Sequence[request.Prompt]) -> list[Reply]:
            return self._answer(request.look(prompts, self.encode, batch_size), sampling)

        return answer_all(requests, prepare, answer, batch_size=batch_size, on_error=on_error, progress=progress)

    def evaluate(
        self,
        data: Any,
        *,
        question: str | None = None,
        batch_size: int = 8,
        max_new_tokens: int | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> Evaluation:
        """Ask every question of a data set and score the answers: see `visglm.training.evaluate`."""
        from .training import evaluate

        return evaluate(
            data, self.batch, question=question, batch_size=batch_size, max_new_tokens=max_new_tokens, seed=seed,
            progress=progress,
        )  # fmt: skip

    def fill(self, text: str, *, max_new_tokens: int | None = None, temperature: float = 0.0) -> Reply:
        """Fill the blank in a text, `[MASK]` for a few words or `[gMASK]` for many: `fill("北京是[MASK]的首都")`.

        Only the first generation (ChatGLM-6B, VisualGLM) learned to. `text` is a developer's, not a user's: the blank
        in it is read as a control token.

        Returns:
            What belongs into the blank, as a reply without history.

        Raises:
            PromptError: there is not exactly one blank, or the model cannot fill any.
        """
        if not self.model.model.text.reads_prefix_both_ways:
            raise PromptError(
                "this text model writes on from a text and cannot fill blanks in it. Ask with chat instead."
            )
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)
        prompt = request.prepare_blank(text, max_new_tokens or 1, config=self.model.config, tokenizer=self.tokenizer)
        return replace(self._answer([prompt], sampling)[0], history=History())

    def _compose(self, images: Any, prompt: Any, history: Any, language: str, sampling: Sampling) -> request.Prompt:
        return request.prepare(
            images, prompt, history, language=language, max_new_tokens=sampling.max_new_tokens or 1,
            config=self.model.config, tokenizer=self.tokenizer, limits=self.image_limits,
            allow_urls=self.allow_urls,
        )  # fmt: skip

    def _prepare(self, images: Any, prompt: Any, history: Any, language: str, sampling: Sampling) -> request.Prompt:
        prompt = self._compose(images, prompt, history, language, sampling)
        return request.look([prompt], self.encode, PICTURES_AT_ONCE)[0]

    @torch.inference_mode()
    def encode(self, images: Any) -> Tensor:
        """Visual tokens `[num_images, num_query_tokens, hidden_size]` of one picture or several."""
        pictures = load_images(images, limits=self.image_limits, allow_urls=self.allow_urls, is_read_only=True)
        pixel_values = self.processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
        with self._lock:
            return self.model.get_image_features(pixel_values.to(self.device)).pooler_output

    def _answer(
        self, prompts: Sequence[request.Prompt], sampling: Sampling, watch: generation.Watch | None = None
    ) -> list[Reply]:
        with self._lock:
            return generation.answer(self.model, self.tokenizer, prompts, sampling, watch or generation.Watch())
