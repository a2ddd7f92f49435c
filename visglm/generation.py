"""Prompts to replies: one pass of the model over a batch of them, watched token by token."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .model import VisGLMForConditionalGeneration
from .prompt import postprocess
from .quant.products import without_contention
from .reply import History, Reply, Timings, Usage
from .request import Prompt
from .sampling import Sampling

DEFAULT_NEW_TOKENS = 512  # cap on an answer when the caller names none and the context has more room


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


class Draw(LogitsProcessor):
    """Draws the next token of each row, with the row's own generator, and leaves nothing else to choose.

    `generate` takes no generator: with its own sampling, whatever else draws numbers in the process would change the
    answers to a seed. It is told to take the likeliest token instead.
    """

    def __init__(self, generators: Sequence[torch.Generator]):
        self.generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        shares = scores.softmax(-1)
        drawn = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(shares, self.generators, strict=True)
        ]
        return torch.full_like(scores, -torch.inf).scatter(1, torch.stack(drawn), 0.0)


def processors(sampling: Sampling, num_rows: int, device: torch.device) -> list[LogitsProcessor]:
    """What makes the likeliest token the one that `sampling` asks for, in the order that `generate` has."""
    if not sampling.draws:
        return []
    found: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    found += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    found += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    return [*found, Draw([new_generator(sampling.seed, device) for _ in range(num_rows)])]


def new_generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()  # from the operating system
    else:
        generator.manual_seed(seed)
    return generator


@torch.inference_mode()
def answer(
    model: VisGLMForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    watch: Watch,
) -> list[Reply]:
    """Generate for a left-padded batch. One thread at a time may use a model.

    With a seed, each row draws as it would alone.
    """
    length = max(len(prompt.rendered.input_ids) for prompt in prompts)
    pad = model.config.text_config.pad_token_id or 0
    rows = [prompt.rendered.input_ids for prompt in prompts]
    input_ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=model.device)
    embeds = [prompt.image_embeds for prompt in prompts if prompt.image_embeds is not None]
    context = model.config.text_config.max_position_embeddings
    room = [sampling.max_new_tokens or min(DEFAULT_NEW_TOKENS, context - len(row)) for row in rows]
    with without_contention(model.model.text):
        watch.started = time.perf_counter()
        output = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            image_embeds=torch.cat([e.to(model.device) for e in embeds]) if embeds else None,
            max_new_tokens=max(room),
            stopping_criteria=[watch],
            do_sample=False,
            repetition_penalty=sampling.repetition_penalty,
            logits_processor=processors(sampling, len(rows), model.device),
        )
    total = time.perf_counter() - watch.started
    end = model.generation_config.eos_token_id
    end_ids = set(end if isinstance(end, list) else [end])
    return [
        to_reply(prompt, ids[:limit], end_ids, tokenizer, model.config.prompt_style, watch, total)
        for prompt, ids, limit in zip(prompts, output[:, length:].tolist(), room, strict=True)
    ]


def to_reply(
    prompt: Prompt,
    ids: list[int],
    end_ids: set[int],
    tokenizer: PreTrainedTokenizerBase,
    style: str,
    watch: Watch,
    total: float,
) -> Reply:
    """What the generated `ids` say, up to the first that ends an answer."""
    ends = [place for place, token in enumerate(ids) if token in end_ids]
    completion = ids[: ends[0] + 1] if ends else ids
    text = postprocess(tokenizer.decode(completion, skip_special_tokens=True), style)
    turns = (*prompt.turns[:-1], replace(prompt.turns[-1], answer=text))
    unfinished = "cancelled" if watch.cancelled.is_set() else "length"
    return Reply(
        text=text,
        history=History(turns, prompt.image_embeds, prompt.language, prompt.source),
        usage=Usage(len(prompt.rendered.input_ids), len(completion)),
        timings=Timings(prompt.encode_seconds, watch.first_token or total, total),
        finish_reason="stop" if ends else unfinished,
        images=prompt.images,
    )
