"""The answers in flight as rows of one batch: what each has read, where it stands, and the step that all take."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..families import family_of
from ..identity import Unchanged
from ..text.cache_size import bucket, power_of_two
from .cache import SlotCache

MOST_SPARE = (
    4  # times the positions that are asked for: all that are there are looked at, and those too many for nothing
)
Work = Callable[[], tuple[Tensor, Tensor]]  # a step: gives logits and positions


class Rows:
    """Keys, values and positions of the rows, and the network's step over all of them.

    Args:
        network: that computes the step.

    Attributes:
        cache: keys and values. Whoever decodes says with `keep` what of it is to stay.
        can_leap: several tokens of one row at a time cost less than one by one.
    """

    can_leap = True

    def __init__(self, network: PreTrainedModel):
        self.network: Any = network
        self.family = family_of(network.config)
        self.text: Any = self.family.text(network)
        self.clear()

    def clear(self) -> None:
        self.cache = SlotCache()
        self._positions: Any = None  # [(planes,) rows, 1] of the last token of each row
        self._next: Any = None  # the same of those that are decoded, [(planes,) rows, count]
        self._has_token_types = False

    def __len__(self) -> int:
        return len(self.cache.lengths)

    def add(
        self, layers: Sequence[tuple[Tensor, Tensor]], places: Sequence[int], lengths: Sequence[int],
        derived: Any, positions_to_come: int,
    ) -> None:  # fmt: skip
        """New last rows, of prompts that were read.

        Args:
            layers: per layer keys and values `[prompts, key heads, positions, head_dim]`.
            places: the prompt of each new row. lengths: of each prompt, without what pads it on the left.
            derived: what went with the prompts' ids. positions_to_come: of the longest answer, prompt included.
        """
        for place in places:
            self.cache.add(layers, place, lengths[place])
        positions = derived["position_ids"]
        index = torch.tensor(list(places), device=positions.device)
        positions = positions[..., -1:].index_select(-2, index)
        self._positions = positions if self._positions is None else torch.cat([self._positions, positions], dim=-2)
        self._has_token_types = "token_type_ids" in derived

    def remove(self, row: int) -> None:
        """The last row moves to its place."""
        last = len(self) - 1
        if not last:
            self.clear()
            return
        self.cache.remove(row)
        order = [last if place == row else place for place in range(last)]
        self._positions = self._positions.index_select(-2, torch.tensor(order, device=self._positions.device))

    def cut(self, rows: int) -> None:
        """Take out the last rows, those from `rows` on."""
        while len(self) > rows:
            self.remove(len(self) - 1)

    def decode(self, tokens: list[list[int]]) -> Tensor:
        """Logits `[rows, count, vocabulary]` after a token for each row, or several for a single one."""
        ids = torch.tensor(tokens, device=self.network.device)
        self.cache.begin_step(ids.shape[1])
        logits, self._next = self._step(ids, self._positions)
        return logits

    def keep(self, count: int = 1) -> None:
        """So many of the tokens that each row was given are its own."""
        self.cache.end_step(count)
        self._positions = self._next[..., count - 1 : count]

    def _step(self, ids: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and positions of `ids`, which go on from `before`."""
        count = ids.shape[1]
        embeds = self.network.get_input_embeddings()(ids)
        positions = self.family.extend_position_ids(self.network, before, count)[..., -count:]
        hidden_states = self.text(
            inputs_embeds=embeds,
            attention_mask=as_mask(self.cache.seen(count)[:, None], self.text.config, embeds.dtype),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **({"token_type_ids": torch.ones_like(ids)} if self._has_token_types else {}),
        ).last_hidden_state
        return self.network.lm_head(hidden_states), positions


class Recording(NamedTuple):
    """A step that was recorded: `replay` it, and `logits` and `positions` have what it computed."""

    replay: Callable[[], None]
    logits: Tensor
    positions: Tensor


class RecordedRows(Rows):
    """Rows whose step a GPU repeats from a recording: a CUDA graph for 1, 2, 4, … rows.

    A step is a thousand kernels. Telling a GPU of VisualGLM-6B's one by one takes an H200 25 ms, computing them 5.

    Recordings hold as long as the tensors they name: the network's, and the cache's, which is given room for whole
    answers so that it seldom moves. So they outlive the answers, until the network is another.

    Attributes:
        num_changes: of the network, as its turns counted them at first: what is added to it, no tensor of before shows.
    """

    can_leap = False

    def __init__(self, network: PreTrainedModel, record: Callable[[Work], Recording]):
        self.num_changes: int | None = None
        self._record: Callable[[Work], Recording] | None = record
        self._unchanged = Unchanged()
        self._unchanged.check(network)
        super().__init__(network)

    def is_up_to_date(self, num_changes: int) -> bool:
        """Whether the network is what was recorded, so that other answers may use it after these."""
        return self._unchanged.check(self.network) and num_changes == self.num_changes

    def clear(self) -> None:
        super().clear()
        self._recordings: dict[int, Recording | None] = {}  # None: computed once, so that everything is in place
        self._num_moves = -1  # of the cache, when these were made

    def add(self, layers: Any, places: Any, lengths: Any, derived: Any, positions_to_come: int) -> None:
        if not len(self) and self.cache.positions > MOST_SPARE * bucket(positions_to_come):
            self.clear()
        self.cache.positions_to_come = positions_to_come
        super().add(layers, places, lengths, derived, positions_to_come)

    def remove(self, row: int) -> None:
        if len(self) > 1:
            super().remove(row)
        else:
            self.cache.remove(row)
            self._positions = None

    def decode(self, tokens: list[list[int]]) -> Tensor:
        rows, room = len(tokens), power_of_two(len(tokens))
        self.cache.begin_step(1, room)
        if self._num_moves != self.cache.num_moves:
            self._recordings, self._num_moves = {}, self.cache.num_moves
            self._ids = torch.zeros(self.cache.slots, 1, dtype=torch.long, device=self.network.device)
            shape = (*self._positions.shape[:-2], self.cache.slots, 1)
            self._before = torch.zeros(shape, dtype=self._positions.dtype, device=self._positions.device)
        self._ids[:rows].copy_(torch.tensor(tokens))
        self._before[..., :rows, :].copy_(self._positions)
        work = partial(self._step, self._ids[:room], self._before[..., :room, :])
        found = self._recordings.get(room)
        if found is None and room in self._recordings:
            found = self._recordings[room] = self._try_to_record(work)
        if found is None:
            self._recordings[room] = None
            logits, positions = work()
        else:
            found.replay()
            logits, positions = found.logits, found.positions
        self._next = positions[..., :rows, :]
        return logits[:rows]

    def _try_to_record(self, work: Work) -> Recording | None:
        if self._record is None:
            return None
        try:
            return self._record(work)
        except RuntimeError as error:
            self._record = None
            warnings.warn(
                f"this model's steps cannot be recorded for the GPU ({str(error).splitlines()[0]}). Answers stay "
                "right and take several times longer.",
                stacklevel=2,
            )
            return None


def record_on_gpu(work: Work) -> Recording:
    """A CUDA graph of it."""
    graph = torch.cuda.CUDAGraph()
    # Whatever other threads do with the GPU meanwhile is none of its business.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        logits, positions = work()
    return Recording(graph.replay, logits, positions)


def rows_of(network: PreTrainedModel) -> Rows:
    """Recorded ones, where one GPU has the whole network."""
    if network.device.type != "cuda":
        return Rows(network)
    devices = {tensor.device for tensor in (*network.parameters(), *network.buffers())}
    return RecordedRows(network, record_on_gpu) if len(devices) == 1 else Rows(network)


def as_mask(seen: Tensor, config: Any, dtype: torch.dtype) -> Tensor:
    """A bool mask `[rows, 1, 1, positions]` in the form that the attention takes."""
    if config._attn_implementation == "eager":
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    return seen
