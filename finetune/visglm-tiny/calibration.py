"""How far a model's probabilities are to be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visglm import VisGLM
from visglm.prompt import IGNORE_INDEX, Turn, render

NUM_BINS = 10
BATCH_SIZE = 32


@dataclass(frozen=True)
class Sure:
    """An answer's probability, whether it is right, and whether it says itself that it may be wrong."""

    probability: float
    is_right: bool
    is_unsure: bool


@torch.inference_mode()
def probabilities(vlm: VisGLM, asked: Sequence[tuple[Tensor, str, str, str]]) -> list[float]:
    """The probability of every answer, token by token, to a first question about one picture.

    Args:
        asked: visual tokens `[num_query_tokens, hidden_size]`, question, answer and language of each.
    """
    config, tokenizer = vlm.model.config, vlm.tokenizer
    found: list[float] = []
    for start in range(0, len(asked), BATCH_SIZE):
        some = asked[start : start + BATCH_SIZE]
        rows = [
            render(
                [Turn(question, answer, num_images=1)],
                tokenizer=tokenizer,
                style=config.prompt_style,
                num_query_tokens=config.num_query_tokens,
                language=language,
            )
            for _, question, answer, language in some
        ]
        length = max(len(row.input_ids) for row in rows)

        def padded(values: Sequence[Sequence[int]], padding: int, length: int = length) -> Tensor:
            return torch.tensor([[padding] * (length - len(row)) + list(row) for row in values], device=vlm.device)

        labels = padded([row.labels for row in rows], IGNORE_INDEX)
        logits = vlm.model(
            input_ids=padded([row.input_ids for row in rows], tokenizer.pad_token_id),
            attention_mask=padded([[1] * len(row.input_ids) for row in rows], 0),
            image_embeds=torch.stack([embeds for embeds, *_ in some]),
            use_cache=False,
        ).logits
        each = F.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORE_INDEX, reduction="none"
        )
        found += each.sum(1).neg().exp().tolist()
    return found


def expected_calibration_error(answers: Sequence[Sure]) -> float:
    """Mean distance of probability and share of right answers over `NUM_BINS` bins of probability, 0 to 1."""
    bins: dict[int, list[Sure]] = {}
    for answer in answers:
        bins.setdefault(min(int(answer.probability * NUM_BINS), NUM_BINS - 1), []).append(answer)
    away = 0.0
    for some in bins.values():
        away += abs(sum(one.probability for one in some) - sum(one.is_right for one in some))
    return away / len(answers)


def calibration_figures(answers: Sequence[Sure]) -> dict[str, float]:
    """The error, the share of answers that sound sure, and of those the share that is right."""
    confident = [answer for answer in answers if not answer.is_unsure]
    return {
        "num": len(answers),
        "expected_calibration_error": round(expected_calibration_error(answers), 4),
        "confident": round(len(confident) / len(answers), 4),
        "confident_right": round(sum(one.is_right for one in confident) / max(len(confident), 1), 4),
    }
