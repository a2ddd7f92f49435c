"""`VisGLM`: load once, then ask about pictures: one answer, a stream of text, or many at a time."""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import StoppingCriteria

from . import checkpoint
from .errors import ConfigError, PromptError, VisGLMError
from .images import load_image
from .model import VisGLMForConditionalGeneration
from .processor import VisGLMProcessor
from .prompt import Rendered, Turn, fit, postprocess, render, render_blank, settled
from .recipe import FinetuneArguments, check_names
from .reply import History, Reply, Timings, Usage
from .sampling import Sampling
from .tokenizer import ChatGLMTokenizer, StreamDecoder

if TYPE_CHECKING:
    from .explain import Explanation
    from .training import Evaluation, FinetuneReport

ANSWER_TOKENS = 128  # of an answer that is compared with a caption
DEFAULT_NEW_TOKENS = 512  # cap on an answer when the caller names none and the context has more room


@dataclass(frozen=True)
class Prompt:
    """A request ready to generate from."""

    turns: tuple[Turn, ...]
    rendered: Rendered
    image_embeds: Tensor | None
    images: tuple[Image.Image, ...]
    language: str
    encode_seconds: float


class Watch(StoppingCriteria):
    """Sees every new token: notes when the first came, hands it on, and ends the answer when told to."""

    def __init__(self, on_tokens: Callable[[Tensor], None] | None = None):
        self.on_tokens = on_tokens
        self.cancelled = threading.Event()
        self.started = time.perf_counter()
        self.first_token: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        if self.first_token is None:
            self.first_token = time.perf_counter() - self.started
        if self.on_tokens is not None:
            self.on_tokens(input_ids[:, -1].cpu())
        return torch.full((input_ids.shape[0],), self.cancelled.is_set(), device=input_ids.device)


class ReplyStream(Iterator[str]):
    """Iterate over the pieces of an answer as they are decoded; `.reply` is the whole when it has ended.

    Closing it, or leaving the loop and dropping it, stops the model after the token in flight.
    """

    def __init__(self, pieces: Generator[str, None, Reply]):
        self._pieces = pieces
        self._reply: Reply | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._reply = end.value or self._reply
            raise

    def close(self) -> None:
        """End the answer here. There will be no `.reply`."""
        self._pieces.close()

    @property
    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            VisGLMError: the stream has not ended yet, or was closed.
        """
        if self._reply is None:
            raise VisGLMError("there is no reply before the stream has ended; read it to its end, then ask for .reply.")
        return self._reply


class VisGLM:
    """Chat about pictures in Chinese and English.

    Use `VisGLM.from_pretrained()`. `model`, `processor` and `tokenizer` are the Hugging Face layer below. Threads that
    share one instance take turns.

    Args:
        model: the network.
        processor: image processor and tokenizer that belong to it.
        allow_urls: fetch pictures named by a URL; public addresses only.
    """

    def __init__(self, model: VisGLMForConditionalGeneration, processor: VisGLMProcessor, *, allow_urls: bool = False):
        self.model = model.eval()
        self.processor = processor
        self.allow_urls = allow_urls
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> ChatGLMTokenizer:
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

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
                quantized checkpoint is loaded as it is, without this.
            quantize_vision: pack the ViT and the Q-Former too.
            allow_urls: fetch pictures named by a URL; public addresses only.

        Raises:
            CheckpointError: weights are missing, unexpected or of the wrong shape; all problems are listed.
            ConfigError: an unknown scheme, or a checkpoint that is quantized already.
        """
        model, processor = checkpoint.load(
            name_or_path, device=device, dtype=dtype, image_size=image_size, tokenizer=tokenizer, quantize=quantize,
            quantize_vision=quantize_vision,
        )  # fmt: skip
        return cls(model, processor, allow_urls=allow_urls)

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
            options: device, dtype, image_size, quantize and allow_urls of `from_pretrained`.

        Raises:
            CheckpointError: `vision` has no vision tower, or one of them is broken.
        """
        allow_urls = options.pop("allow_urls", False)
        source = checkpoint.PartsSource(checkpoint.open_source(vision), checkpoint.open_source(text, tokenizer))
        model, processor = checkpoint.realize(source, **options)
        return cls(model, processor, allow_urls=allow_urls)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, configuration, tokenizer and processor into `folder`; `from_pretrained` needs nothing else."""
        name = checkpoint.active(self.model)
        if name is None or checkpoint.attached(self.model)[name].beside_base:
            checkpoint.save(self.model, self.processor, folder)
        else:
            checkpoint.save_adapter(folder, self.model, name)
            self.processor.save_pretrained(folder)

    def finetune(
        self, data: Any, method: str = "lora", output_dir: str | Path = "finetuned", **settings: Any
    ) -> FinetuneReport:
        """Learn from pictures and captions; this model answers with what it learnt afterwards.

        Args:
            data: a file (JSONL, JSON, CSV, WebDataset shards, a folder with metadata.jsonl), a list of rows, or a
                `datasets` object; `visglm data check` tells whether a file can be used.
            method: "lora", "qlora", "ptuning", "qformer" or "full".
            output_dir: `from_pretrained` loads it, and report.html in it shows curves and answers.
            settings: as the fields of `visglm.recipe.FinetuneArguments`.

        Raises:
            DataError: too much of the data is unusable. ConfigError: a setting is wrong.
            TrainingError: it does not fit into memory, or the loss is zero or not a number.
        """
        from . import training

        check_names(settings)
        arguments = FinetuneArguments(method=method, output_dir=str(output_dir), **settings)
        return training.finetune(self.model, self.processor, data, arguments, self._texts)

    def _texts(self, requests: Sequence[Sequence[Any]]) -> list[str]:
        """Short greedy answers; an empty one where a question does not fit."""
        replies = self.batch(requests, on_error="return", progress=False, max_new_tokens=ANSWER_TOKENS)
        return [reply.text if isinstance(reply, Reply) else "" for reply in replies]

    def load_adapter(self, folder: str | Path, name: str) -> None:
        """Put a fine-tuning result beside those that are loaded, and use it."""
        checkpoint.attach(self.model, folder, name)

    def use_adapter(self, name: str | None) -> None:
        """Answer with the adapter `name`, or with None as the base model. The first one is called "default"."""
        checkpoint.activate(self.model, name)

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """Answer as the base model, inside a `with`."""
        with checkpoint.disabled(self.model):
            yield

    def merge(self) -> None:
        """Make the adapter in use part of the weights: the same answers, nothing to add up, `save_pretrained` whole."""
        checkpoint.merge(self.model)

    def push_to_hub(self, repository: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes; the address of the commit. A run's own folder, with report and model
        card, goes up by `visglm.training.push`."""
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
        return self._answer([ready], sampling, Watch())[0]

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
        return ReplyStream(self._stream(ready, sampling))

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
        from .explain import explain

        pictures, past = self._load(images), History.of(history)
        num_new = len(pictures) - sum(turn.num_images for turn in past.turns)
        if not pictures or num_new < 0:
            raise PromptError(
                f"explain needs all pictures of the conversation, at least one; got {len(pictures)}, and the history "
                f"has {len(pictures) - num_new}. Pass those of the history first, then the new ones."
            )
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
            batch_size: questions that share a pass through the model.
            on_error: "raise" stops at the first bad request; "return" puts its error in its place.
            progress: show a progress bar on stderr.
            settings: as the keyword arguments of `chat`.
        """
        if on_error not in ("raise", "return"):
            raise ConfigError(f'on_error must be "raise" or "return"; got {on_error!r}.')
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1; got {batch_size}.")
        sampling = Sampling(**settings)
        results: list[Reply | VisGLMError] = []
        with tqdm(total=len(requests), unit="answer", disable=not progress) as bar:
            for start in range(0, len(requests), batch_size):
                prepared = [
                    self._prepare_or_error(request, language, sampling, on_error)
                    for request in requests[start : start + batch_size]
                ]
                good = [item for item in prepared if isinstance(item, Prompt)]
                replies = iter(self._answer(good, sampling, Watch()) if good else ())
                results += [next(replies) if isinstance(item, Prompt) else item for item in prepared]
                bar.update(len(prepared))
        return results

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
            data,
            self.batch,
            question=question,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            seed=seed,
            progress=progress,
        )

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
        rendered = render_blank(text, tokenizer=self.tokenizer)
        fit(rendered, self.context_length, max_new_tokens or 1)
        prompt = Prompt((Turn(text),), rendered, None, (), "zh", 0.0)
        return replace(self._answer([prompt], sampling, Watch())[0], history=History())

    def _prepare_or_error(
        self, request: Sequence[Any], language: str, sampling: Sampling, on_error: str
    ) -> Prompt | VisGLMError:
        try:
            if isinstance(request, str) or len(request) not in (2, 3):
                raise PromptError(f"a request is (images, prompt) or (images, prompt, history); got {request!r}.")
            images, prompt, history = (*request, None)[:3]
            return self._prepare(images, prompt, history, language, sampling)
        except VisGLMError as error:
            if on_error == "raise":
                raise
            return error

    def _prepare(self, images: Any, prompt: Any, history: Any, language: str, sampling: Sampling) -> Prompt:
        """Load and encode the new pictures, and render the conversation."""
        if not isinstance(prompt, str) or not prompt.strip():
            raise PromptError(f"the question must be a string that is not empty; got {prompt!r}.")
        past = History.of(history)
        pictures = self._load(images)
        if pictures and self.model.config.vision_config is None:
            raise PromptError(
                f"{len(pictures)} pictures came with the question, but this is a text-only model. Leave them out."
            )
        turns = (*past.turns, Turn(prompt, None, num_images=len(pictures)))
        language = past.language if language == "auto" else language
        rendered = render(
            turns,
            tokenizer=self.tokenizer,
            style=self.model.config.prompt_style,
            num_query_tokens=self.model.config.num_query_tokens,
            language=language,
        )
        fit(rendered, self.context_length, sampling.max_new_tokens or 1)
        started = time.perf_counter()
        embeds = past.image_embeds
        if pictures:
            new = self.encode(pictures)
            embeds = new if embeds is None else torch.cat([embeds.to(new), new])
        return Prompt(turns, rendered, embeds, pictures, language, time.perf_counter() - started)

    def _load(self, images: Any) -> tuple[Image.Image, ...]:
        return tuple(load_image(image, allow_urls=self.allow_urls) for image in as_list(images))

    @torch.inference_mode()
    def encode(self, images: Any) -> Tensor:
        """Visual tokens `[num_images, num_query_tokens, hidden_size]` of one picture or several."""
        pixel_values = self.processor.image_processor(list(self._load(images)), return_tensors="pt")["pixel_values"]
        with self._lock:
            return self.model.get_image_features(pixel_values.to(self.device)).pooler_output

    @torch.inference_mode()
    def _answer(self, prompts: Sequence[Prompt], sampling: Sampling, watch: Watch) -> list[Reply]:
        """Generate for a left-padded batch."""
        length = max(len(prompt.rendered.input_ids) for prompt in prompts)
        pad = self.model.config.text_config.pad_token_id or 0
        rows = [prompt.rendered.input_ids for prompt in prompts]
        input_ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=self.device)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=self.device)
        embeds = [prompt.image_embeds for prompt in prompts if prompt.image_embeds is not None]
        room = [sampling.max_new_tokens or min(DEFAULT_NEW_TOKENS, self.context_length - len(row)) for row in rows]
        with self._lock, torch.random.fork_rng(enabled=sampling.seed is not None):
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            watch.started = time.perf_counter()
            output = self.model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                image_embeds=torch.cat([e.to(self.device) for e in embeds]) if embeds else None,
                max_new_tokens=max(room),
                stopping_criteria=[watch],
                **sampling.generate_arguments(),
            )
        total = time.perf_counter() - watch.started
        return [
            self._reply(prompt, ids[:limit], watch, total)
            for prompt, ids, limit in zip(prompts, output[:, length:].tolist(), room, strict=True)
        ]

    def _reply(self, prompt: Prompt, ids: list[int], watch: Watch, total: float) -> Reply:
        ends = [place for place, token in enumerate(ids) if token in self._end_ids]
        completion = ids[: ends[0] + 1] if ends else ids
        text = postprocess(self.tokenizer.decode(completion, skip_special_tokens=True))
        turns = (*prompt.turns[:-1], replace(prompt.turns[-1], answer=text))
        unfinished = "cancelled" if watch.cancelled.is_set() else "length"
        return Reply(
            text=text,
            history=History(turns, prompt.image_embeds, prompt.language),
            usage=Usage(len(prompt.rendered.input_ids), len(completion)),
            timings=Timings(prompt.encode_seconds, watch.first_token or total, total),
            finish_reason="stop" if ends else unfinished,
            images=prompt.images,
        )

    @property
    def _end_ids(self) -> set[int]:
        end = self.model.generation_config.eos_token_id
        return set(end if isinstance(end, list) else [end])

    def _stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Reply]:
        """Generate in a thread of its own, yield what its tokens spell, and return the reply."""
        done = object()
        tokens: queue.SimpleQueue[Any] = queue.SimpleQueue()
        watch = Watch(tokens.put)
        outcome: list[Reply | BaseException] = []

        def work() -> None:
            try:
                outcome.append(self._answer([prompt], sampling, watch)[0])
            except BaseException as error:  # handed to the reader, who raises it
                outcome.append(error)
            finally:
                tokens.put(done)

        worker = threading.Thread(target=work, name="visglm-stream", daemon=True)
        worker.start()
        decoder, text, num_shown = StreamDecoder(self.tokenizer), "", 0
        try:
            while (token := tokens.get()) is not done:
                text += decoder.push(token.tolist())
                ready = settled(text)
                if len(ready) > num_shown:
                    yield ready[num_shown:]
                    num_shown = len(ready)
            if rest := postprocess(text + decoder.finish())[num_shown:]:
                yield rest
        finally:
            watch.cancelled.set()
            worker.join()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]


def as_list(images: Any) -> list[Any]:
    """No picture, one, or several, as a list."""
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]
