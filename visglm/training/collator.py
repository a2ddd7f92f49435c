"""Items → a batch: padded on the right, all pictures in order of appearance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..prompt import IGNORE_INDEX


@dataclass(frozen=True)
class Collator:
    """Items → a batch: ids and labels padded on the right, all pictures in order of appearance.

    Logits are asked for where some answer goes on, and nowhere else.

    Without a picture in the batch, `pixel_values` has no rows but is there: with sharded weights every process must
    run every module.

    `pictures` tells them apart by content, `is_own` says whose answers are the model's own.

    Args:
        pad_token_id: fills up ids.
        image_size: height and width of `pixel_values`; None for a text-only model.
        arrange: of a family whose pictures are of any size, what its network takes of a batch and its pictures.
    """

    pad_token_id: int
    image_size: tuple[int, int] | None
    arrange: Callable[[dict[str, Any], list[Tensor]], dict[str, Any]] | None = None

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        input_ids, labels = [item["input_ids"] for item in items], [item["labels"] for item in items]
        batch: dict[str, Any] = {
            "input_ids": pad(input_ids, self.pad_token_id),
            "attention_mask": pad([torch.ones_like(ids) for ids in input_ids], 0),
            "labels": pad(labels, IGNORE_INDEX),
            "where": [item["where"] for item in items],
            "skipped": [where for item in items for where in item["skipped"]],
            "num_cut": sum(item["is_cut"] for item in items),
            "pictures": [
                blake2b(picture.numpy().tobytes(), digest_size=16).digest()
                for item in items
                for picture in item.get("pixel_values", ())
            ],
            "is_own": [item.get("is_own", False) for item in items],
            "num_tokens": sum(map(len, input_ids)),  # counted here: a GPU would have to be waited for
        }
        is_learnt = (batch["labels"] != IGNORE_INDEX).any(0)
        if places := [item["place"] for item in items if "place" in item]:
            batch["places"] = places
            is_learnt[1] |= not bool(is_learnt.any())  # all of them broken: the model runs all the same
        elif not bool(is_learnt.any()):
            raise DataError(f"no token to learn in a whole batch: {', '.join(batch['where'])}. Check these answers.")
        # Over a whole vocabulary, logits of a long prompt would take more time and memory than all else around them.
        batch["logits_to_keep"] = is_learnt.nonzero().flatten() - 1
        pictures = [item["pixel_values"] for item in items if "pixel_values" in item]
        if self.arrange is not None:
            return batch | self.arrange(batch, [picture for some in pictures for picture in some])
        if self.image_size is not None:
            batch["pixel_values"] = torch.cat(pictures) if pictures else torch.zeros(0, 3, *self.image_size)
        elif pictures:
            raise DataError(f"{batch['where'][0]} shows a picture to a text-only model. Choose a model that can see.")
        return batch


def pad(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
