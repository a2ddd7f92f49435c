"""`VisGLM`: the face that everything below has for people."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import checkpoint, request
from ..adapters import Adapters
from ..engine import Answer, Asker, Engine, Turns, answer_all, engine_of
from ..errors import PromptError, VisGLMError, counted
from ..families import FamilyProcessor, check_can, family_of, manner_of
from ..pictures import ImageLimits
from ..processor import VisGLMProcessor
from ..prompt import Reference, Turn
from ..quant import count_weights
from ..recipe import FinetuneArguments, check_names
from ..reply import History, Reply
from ..sampling import GREEDY, Sampling
from ..settings import Rule, check_call
from ..stream import ReplyStream
from .composer import Composer
from .loading import OF_CHAT, load, load_parts
from .sources import answer_from

if TYPE_CHECKING:
    from ..explanation import Explanation
    from ..library import Library, Page, Web
    from ..training import Evaluation, FinetuneReport, Stop

# What a conversation may look like to go on from.
Past = History | Iterable[Sequence[str]] | Iterable[Mapping[str, Any]] | None


class VisGLM:
    """Chat about pictures in Chinese and English.

    Use `VisGLM.from_pretrained()`. `model`, `processor` and `tokenizer` are the Hugging Face layer below.

    Threads may share a network. Their answers are given together, by one thread, the `engine`'s: each joins between two
    tokens of the others and is what it would be alone. A switch of adapters, a merge and saving wait for what is in
    flight, and an answer is by one state of the model from its first picture to its last token. `finetune` waits
    likewise; once it runs, whoever else asks is told at once, by `BusyError`, and what it calls itself works. Others
    wait until `with adapter_disabled()` is left, so that no thread may be waited for in there. Copies and forked
    processes have an engine of their own; forked, torch computes on one thread, as its others stay behind. What works
    on `model` directly, asks nobody.

    Args:
        model: the network.
        processor: image processor and tokenizer that belong to it.
        adapters: what is attached to it; by default nothing, over a base that no folder holds.
        allow_urls: fetch pictures named by a URL; public addresses only.
        image_limits: how much one picture may cost; by default what the image processor says.

    Raises:
        ConfigError: model and processor do not belong together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: VisGLMProcessor | FamilyProcessor,
        *,
        adapters: Adapters | None = None,
        allow_urls: bool = False,
        image_limits: ImageLimits | None = None,
    ):
        processor.check(model.config)
        self.model = model
        self.processor: Any = processor
        self.adapters = Adapters(model) if adapters is None else adapters
        self.allow_urls = allow_urls
        if image_limits is not None:
            self.image_limits = image_limits
        engine = engine_of(model)  # from here on a fork is noticed
        if model.training:
            with engine.turns.take(changes=True):
                model.eval()

    @property
    def engine(self) -> Engine:
        """What answers: how many at a time, and what it remembers of pictures."""
        return engine_of(self.model)

    @property
    def _turns(self) -> Turns:
        return self.engine.turns

    def __deepcopy__(self, memo: dict[int, Any]) -> VisGLM:
        with self._turns.take():
            model, processor, adapters = copy.deepcopy((self.model, self.processor, self.adapters), memo)
        return type(self)(model, processor, adapters=adapters, allow_urls=self.allow_urls)

    def __repr__(self) -> str:
        name = Path(self.model.config._name_or_path).name or type(self.model).__name__
        kinds = [str(self.model.dtype).removeprefix("torch.")]
        if (quantization := getattr(self.model.config, "quantization", None)) is not None:
            kinds.insert(0, quantization["scheme"])
        learnt = f", adapter {self.adapters.active!r}" if self.adapters.active is not None else ""
        size = f"{count_weights(self.model) / 1e6:,.1f} M parameters"
        return f"VisGLM({name}: {size}, {' and '.join(kinds)} on {self.device}{learnt})"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the text model; the processor's."""
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    @property
    def image_limits(self) -> ImageLimits:
        """How much one picture may cost; the image processor's, by which fine-tuning goes as well."""
        return self.processor.limits

    @image_limits.setter
    def image_limits(self, limits: ImageLimits) -> None:
        self.processor.limits = limits

    @property
    def abilities(self) -> tuple[str, ...]:
        """What models of this family do here, such as "explain"."""
        return family_of(self.model.config).can

    @property
    def max_pictures(self) -> int | None:
        """In a conversation, as the model was taught; None for any number."""
        return manner_of(self.model.config).max_pictures

    @property
    def defaults(self) -> dict[str, float]:
        """What `chat` takes for settings that are not given: `temperature` 0, so that the likeliest token comes, unless
        the files of a GLM-4.1V, GLM-4.6V or GLM-OCR say that it draws, and how."""
        return {**GREEDY, **self._asker.own}

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
        base: str | Path | None = None,
        quantize: str | None = None,
        quantize_vision: bool = False,
        allow_urls: bool = False,
        image_limits: ImageLimits | None = None,
    ) -> VisGLM:
        """Load a model.

        Args:
            name_or_path: folder or hub id, of a model or of what fine-tuning made; None for the embedded visglm-tiny,
                which needs no network.
            device: "auto" (CUDA, then Apple's MPS, then CPU), or a torch device.
            dtype: "auto" (bfloat16 on GPUs, and on CPUs from a billion parameters on; float32 below), or a torch dtype.
            image_size: side of the square pictures are resized to, in pixels; other sizes than the model's own are
                reached by interpolating its position embedding.
            tokenizer: folder to take the tokenizer from, for checkpoints that come without (SwissArmyTransformer's).
            base: folder or hub id of the model that an adapter was trained over, where the one that the adapter names
                is not on this machine.
            quantize: "int8", "int4" or "nf4": pack the text model's weights as they are read (`visglm.quant`). A
                quantized checkpoint, THUDM's own among them, is loaded as it is, without this (and read from its files
                as long as the model lives: replace them, but do not write into them); with its own scheme
                here, what it keeps in 16 bits (THUDM's: embeddings and head) is packed too.
            quantize_vision: pack the ViT and the Q-Former too.
            allow_urls: fetch pictures named by a URL; public addresses only.
            image_limits: how much one picture may cost, in chat as in fine-tuning; by default `ImageLimits()`.

        Raises:
            CheckpointError: weights are missing, unexpected or of the wrong shape; all problems are listed.
            ConfigError: an argument is of the wrong type or out of range, the scheme is unknown, the checkpoint is
                quantized to another one already, or the model cannot cut pictures of `image_size` into its patches.
        """
        loaded = load(
            name_or_path, device=device, dtype=dtype, image_size=image_size, tokenizer=tokenizer, base=base,
            quantize=quantize, quantize_vision=quantize_vision, allow_urls=allow_urls, image_limits=image_limits,
        )  # fmt: skip
        return cls(
            loaded.model, loaded.processor, adapters=loaded.adapters, allow_urls=allow_urls, image_limits=image_limits
        )

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
            ConfigError: as `from_pretrained`, or an option that is none of these.
        """
        loaded = load_parts(vision, text, tokenizer, **options)
        own = {name: options[name] for name in OF_CHAT if name in options}
        return cls(loaded.model, loaded.processor, adapters=loaded.adapters, **own)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what this model is into `folder`; `from_pretrained` gives it back.

        The adapter in use is written alone where its base can be found again, else with its base beside it; without
        one, the whole model. Files in the folder that are no part of a checkpoint stay.

        Raises:
            CheckpointError: the folder cannot be written.
            ConfigError: it is the folder of the adapter's own base.
        """
        with self._turns.take():
            checkpoint.save(self.adapters, self.processor, folder)

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
            DataError: too much of the data is unusable.
            ConfigError: a setting is wrong.
            TrainingError: it does not fit into memory, or the loss is zero or not a number.
            BusyError: it is being fine-tuned already, in another thread.
        """
        check_can(self.model.config, "finetune")
        from .. import training

        check_names(settings)
        arguments = FinetuneArguments(method=method, output_dir=output_dir, **settings)  # type: ignore[arg-type]
        with self._turns.take("being fine-tuned", changes=True):
            answer = partial(self.batch, temperature=0)
            return training.finetune(self.adapters, self.processor, data, arguments, answer, stop)

    def load_adapter(self, folder: str | Path, name: str) -> None:
        """Put a fine-tuning result, a folder or hub id, beside those that are loaded, and use it.

        Raises:
            CheckpointError: it does not fit this model, or belongs to another one; nothing was changed.
            ConfigError: there is one of that name already.
        """
        delta = checkpoint.find_delta(folder)
        with self._turns.take(changes=True):
            self.adapters.attach(delta, name, where=folder)

    def use_adapter(self, name: str | None) -> None:
        """Answer with the adapter `name`, or with None as the base model. The first one is called "default"."""
        with self._turns.take(changes=True):
            self.adapters.activate(name)

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """Answer as the base model, inside a `with`. Other threads wait until it is left."""
        with self._turns.take(changes=True), self.adapters.disabled():
            try:
                yield
            finally:
                self._turns.wait_for_answers()  # they are the base model's to their end

    def merge(self) -> None:
        """Make the adapter in use part of the weights: the same answers, nothing to add up, `save_pretrained` whole."""
        with self._turns.take(changes=True):
            self.adapters.merge()

    def push_to_hub(self, repository: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes; the commit's address. `visglm.training.push` uploads a whole run."""
        from ..training import push

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push(folder, repository, private=private, token=token)

    def chat(
        self,
        images: Any,
        prompt: str,
        history: Past = None,
        *,
        language: str = "auto",
        adapter: str | None = None,
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
        """Answer one question.

        Args:
            images: one picture, a list of them, or None; each a path, data URL, base64 text, bytes, PIL image, array
                or tensor, or with `allow_urls` a URL (see `visglm.load_image`).
            prompt: the question. Plain text: nothing in it is read as a control token or opened as a file.
            history: `reply.history` of the turn before; its pictures are not encoded again.
            language: of the prompt's frame: "zh", "en", or "auto" for the language of the first question.
            adapter: that answers, by name, whichever is in use; "" for the base alone, None for the one in use.
            max_new_tokens: longest answer, in tokens; None for what the context leaves, at most 512, or 8,192 where the
                model thinks before it answers.
            max_thinking_tokens: of such a model, the most tokens for that; 0 has it answer at once, None leaves it to
                the model.
            temperature: 0 takes the likeliest token every time; from 0.01 to 5 samples, flatter the higher. None, of
                this and the next four, is the model's own: see `defaults`.
            top_p: sample among the likeliest tokens that hold this share of the probability, 0 to 1.
            top_k: sample among this many likeliest tokens; 0 for all.
            min_p: sample among tokens at least this share as likely as the likeliest, 0 to 1; 0 for all.
            repetition_penalty: above 1 makes tokens that occurred before less likely.
            min_new_tokens: shortest answer, in tokens.
            seed: makes sampling repeatable.
            n: answers to the same question, by `seed`, `seed + 1` …; the others are the reply's `others`.
            logprobs: how many of the likeliest tokens are told at each place, in the reply's `alternatives`.
            stop: texts that end the answer; they are not part of it.
            choices: the answer is the likeliest of these; the reply's `scores` say how likely each is.
            json_schema: the answer is JSON of this schema, and what it says the reply's `parsed`.
            regex: the answer matches this regular expression as a whole.
            logit_bias: what is added to the logit of a token, by its id; -100 rules it out.

        Raises:
            ImageError: a picture was refused or cannot be read.
            ContextLengthError: the conversation does not fit; nothing is ever cut.
            ConfigError: a setting is out of its range.
        """
        sampling = Sampling(
            max_new_tokens=max_new_tokens, max_thinking_tokens=max_thinking_tokens, temperature=temperature,
            top_p=top_p, top_k=top_k, min_p=min_p,
            repetition_penalty=repetition_penalty, min_new_tokens=min_new_tokens, seed=seed, logprobs=logprobs,
            stop=stop, json_schema=json_schema, regex=regex, logit_bias=logit_bias or (), n=n, choices=choices,
        )  # fmt: skip
        ready = self._compose(images, prompt, history, language, sampling, adapter)
        return self._ask([ready], sampling, adapter)[0].reply()

    def stream_chat(
        self,
        images: Any,
        prompt: str,
        history: Past = None,
        *,
        language: str = "auto",
        adapter: str | None = None,
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
        """As `chat`, but an iterator over text as it is decoded, never half a character; then `.reply`.

        The joined pieces are `.reply.text`; what a model thinks before comes by `.parts()`. Leaving the loop early, or
        `close()` from any thread, stops the model.
        """
        sampling = Sampling(
            max_new_tokens=max_new_tokens, max_thinking_tokens=max_thinking_tokens, temperature=temperature,
            top_p=top_p, top_k=top_k, min_p=min_p,
            repetition_penalty=repetition_penalty, min_new_tokens=min_new_tokens, seed=seed, logprobs=logprobs,
            stop=stop, json_schema=json_schema, regex=regex, logit_bias=logit_bias or (),
        )  # fmt: skip
        ready = self._compose(images, prompt, history, language, sampling, adapter)
        return ReplyStream(
            lambda: self._ask([ready], sampling, adapter)[0],
            self._asker.writer(sampling),
        )

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
        check_can(self.model.config, "explain")
        from ..explain import explain
        from ..explanation import count_new

        check_call({"picture": Rule(int)}, picture=picture)
        pictures = self._composer.pictures(images)
        past = History.of(history)
        num_new = count_new(pictures, past.turns)
        language = past.language if language == "auto" else language
        if answer is None:
            answer = self.chat(pictures[len(pictures) - num_new :], prompt, past, language=language).text
        turns = (*past.turns, Turn(prompt, answer, num_images=num_new))
        with self._turns.take():
            return explain(self.model, self.processor, turns, pictures, language=language, picture=picture)

    def batch(
        self,
        requests: Iterable[Sequence[Any]],
        *,
        batch_size: int = 8,
        on_error: str = "raise",
        progress: bool = True,
        language: str = "auto",
        adapter: str | None = None,
        **settings: Any,
    ) -> list[Reply | VisGLMError]:
        """Answer many questions; greedy answers are those of one-by-one calls.

        Args:
            requests: `(images, prompt)` or `(images, prompt, history)` each, as `chat` takes them.
            batch_size: questions that are on their way at a time.
            on_error: "raise" stops at the first bad request; "return" puts its error in its place.
            progress: show a progress bar on stderr.
            settings: as the keyword arguments of `chat`. With a seed, too, each answer is that of `chat`.
        """
        sampling = Sampling.of(settings)
        prepare = partial(self._compose, language=language, sampling=sampling, adapter=adapter)
        submit = partial(self._ask, sampling=sampling, adapter=adapter)
        return answer_all(requests, prepare, submit, batch_size=batch_size, on_error=on_error, progress=progress)

    def evaluate(
        self,
        data: Any,
        *,
        question: str | None = None,
        batch_size: int = 8,
        max_new_tokens: int | None = None,
        seed: int = 0,
        progress: bool = True,
        allow_outside: bool = False,
    ) -> Evaluation:
        """Ask every question of a data set and score the answers: see `visglm.training.evaluate`."""
        from ..training import evaluate

        answer = partial(self.batch, temperature=0)
        return evaluate(
            data, answer, question=question, batch_size=batch_size, max_new_tokens=max_new_tokens, seed=seed,
            progress=progress, allow_outside=allow_outside,
        )  # fmt: skip

    def export(self, folder: str | Path, quantize: str | None = None) -> None:
        """Write what answers now as a folder that `visglm.light.VisGLM` plays without torch.

        What fine-tuning changed in weights becomes part of them; a P-Tuning prefix stays beside them.

        Args:
            folder: to write; it appears whole or not at all.
            quantize: "int4" or "int8" for the text model; None as it is.

        Raises:
            ConfigError: there is no such scheme, the adapter has no form without torch, or the folder holds this model.
            CheckpointError: the folder cannot be written.
            MissingDependencyError: the extra "export" is not installed.
        """
        check_can(self.model.config, "export")
        from ..export import export

        if (home := self.adapters.home) is not None:
            checkpoint.refuse_source(folder, home.name)
        with tempfile.TemporaryDirectory() as saved:
            self.save_pretrained(saved)
            export(checkpoint.open_source(saved), folder, quantize)

    def ask(
        self,
        question: str,
        *,
        library: Library | str | Path | None = None,
        web: bool | str | Web = False,
        images: Any = None,
        history: Past = None,
        limit: int = 3,
        language: str = "auto",
        extract: bool | None = None,
        files: str | Iterable[str] | None = None,
        kinds: str | Iterable[str] | None = None,
        after: Any = None,
        before: Any = None,
        **settings: Any,
    ) -> Reply:
        """Answer from documents and pictures, and say where the answer comes from: `reply.citations`.

        A model that reads writes its answer from as many references as its context holds; what none of them says is
        marked. One that cannot, such as visglm-tiny, answers by extracts, word for word. Where the library has nothing
        about it, the reply says so, has no citations, and no model was asked.

        Args:
            question: what to answer.
            library: a `visglm.Library`, or where one lies.
            web: in place of a library, what a search engine finds: True for the one that the environment names, its
                name or the address of a SearXNG, or a `visglm.library.Web`. The question is sent there, and pages that
                it names are fetched.
            images: a picture to look for, besides the words.
            history: the turns before; a model that reads is shown them.
            limit: sources of an answer, at most.
            language: of the answer's frame; "auto": the question's.
            extract: True for extracts, False to have the model write; None: as it can.
            files: what may be cited, as in `Library.search`.
            kinds: there, too.
            after: there, too.
            before: there, too.
            settings: as the keyword arguments of `chat`, for a model that writes.

        Raises:
            LibraryError: there is no library; as `WebError`, no search engine that answers.
            ConfigError: neither library nor web was given, or both.
            PromptError: the question is empty.
            ContextLengthError: not even one reference fits into the context.
        """
        from .. import library as shelves

        sampling = Sampling.of(settings)
        if extract is None:
            extract = self.context_length < shelves.READING_CONTEXT

        def write(asked: str, references: tuple[Reference, ...]) -> Reply:
            room = sampling.max_new_tokens or shelves.ANSWER_TOKENS
            ready = self._compose(
                None, asked, history, language, replace(sampling, max_new_tokens=room), references=references
            )
            return self._ask([ready], replace(sampling, max_new_tokens=room))[0].reply()

        def answer(opened: Library) -> Reply:
            return shelves.answer(
                question, opened, image=images, past=History.of(history), language=language, limit=limit,
                write=None if extract else write, files=files, kinds=kinds, after=after, before=before,
            )  # fmt: skip

        return answer_from(library, web, question, answer)

    def read(
        self,
        source: Any,
        kind: str = "text",
        *,
        first_page: int = 1,
        batch_size: int = 4,
        adapter: str | None = None,
        **settings: Any,
    ) -> Iterator[Page]:
        """Read a scan, as Markdown: `for page in vlm.read("contract.pdf"): print(page)`. Of GLM-OCR's family.

        Args:
            source: the path of a PDF or TIFF or its bytes, whose pages are drawn and read whatever text lies in them;
                or a picture in any form that `chat` takes, which is one page.
            kind: "text" for all that is there; "table" (as HTML, the way it was taught) or "formula" (as LaTeX) where
                there is nothing else.
            first_page: where to begin, to go on with a long document; nothing comes where there are fewer.
            batch_size: pages that are on their way at a time.
            adapter: as of `chat`.
            settings: as the keyword arguments of `chat`; without a `temperature`, the likeliest tokens are taken.

        Returns:
            Pages in their order, as they are read. What cannot be read says why in its `problem`; the others come.

        Raises:
            ConfigError: the model does not read, or a setting is wrong.
            ImageError: the picture was refused.
            DocumentError: the PDF or TIFF was, as a whole.
        """
        config = self.model.config
        check_can(config, "read")
        from ..library import LibraryLimits
        from ..library.scans import pages_of, read_pages

        asks = family_of(config).reads
        rules = {
            "kind": Rule(str, names=tuple(asks)), "batch_size": Rule(int, 1, 65_536), "first_page": Rule(int, 1)
        }  # fmt: skip
        check_call(rules, kind=kind, batch_size=batch_size, first_page=first_page)
        Sampling.of(settings)
        settings["temperature"] = settings.get("temperature") or 0.0
        limits = LibraryLimits(images=self.image_limits)

        def ask(images: Sequence[Any]) -> list[Any]:
            return self.batch(
                [(image, asks[kind]) for image in images], batch_size=batch_size, on_error="return", progress=False,
                adapter=adapter, **settings,
            )  # fmt: skip

        return read_pages(pages_of(source, limits, self.allow_urls, first_page), ask, kind, batch_size)

    def fill(self, text: str, *, max_new_tokens: int | None = None, temperature: float = 0.0) -> Reply:
        """Fill the blank in a text, `[MASK]` for a few words or `[gMASK]` for many: `fill("北京是[MASK]的首都")`.

        Only the first generation (ChatGLM-6B, VisualGLM) learned to. `text` is a developer's, not a user's: the blank
        in it is read as a control token.

        Returns:
            What belongs into the blank, as a reply without history.

        Raises:
            PromptError: there is not exactly one blank, or the model cannot fill any.
        """
        if not isinstance(text, str):
            raise PromptError(f"the text to fill must be a string with [MASK] or [gMASK] in it; got {text!r:.80}.")
        if not family_of(self.model.config).reads_prefix_both_ways(self.model):
            raise PromptError(
                "this text model writes on from a text and cannot fill blanks in it. Ask with chat instead."
            )
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)
        prompt = request.prepare_blank(text, max_new_tokens or 1, config=self.model.config, tokenizer=self.tokenizer)
        return replace(self._ask([prompt], sampling)[0].reply(), history=History())

    def encode(self, images: Any) -> Any:
        """Visual tokens `[tokens, hidden_size]` of each picture, of one or several; a tensor where all have as many."""
        self._composer.check_process()
        pictures = self._composer.pictures(images, is_read_only=True)
        request.check_some(pictures)
        return self._asker.look(self.processor.pixels(pictures))

    def recall(self, turns: Iterable[Turn], images: Any) -> History:
        """A history to go on from, of turns that another model or a file brought: this one looks at their pictures.

        Args:
            images: the pictures of all turns, in order.

        Raises:
            PromptError: there are more pictures or fewer than the turns say.
        """
        self._composer.check_process()
        pictures = self._composer.pictures(images, is_read_only=True)
        past = History(tuple(turns))
        if len(pictures) != past.num_images:
            raise PromptError(
                f"the turns show {counted(past.num_images, 'picture')}, and {len(pictures)} came with them."
            )
        if not pictures:
            return past
        embeds = self._asker.look(self.processor.pixels(pictures))
        return replace(past, image_embeds=embeds, shapes=tuple(self.processor.shapes(pictures)))

    def _compose(
        self, images: Any, prompt: Any, history: Any, language: str, sampling: Sampling, adapter: str | None = None,
        references: tuple[Reference, ...] = (),
    ) -> request.Prompt:  # fmt: skip
        return self._composer.prompt(images, prompt, history, language, sampling, adapter, references)

    def _ask(self, prompts: Sequence[request.Prompt], sampling: Sampling, adapter: str | None = None) -> list[Answer]:
        return self._asker.submit(prompts, sampling, adapter=adapter)

    @property
    def _asker(self) -> Asker:
        return Asker(self.engine, self.model, self.tokenizer, self.adapters)

    @property
    def _composer(self) -> Composer:
        return Composer(self.engine, self.model, self.processor, self.allow_urls)
