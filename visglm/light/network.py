"""The graphs of an exported model at work: pictures to visual tokens, ids to logits, a cache that grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..errors import require
from .eyes import Eyes
from .manifest import Manifest
from .session import check_locations, check_shapes, open_graph

Cache = list[Any]  # per layer keys and values `[1, heads, positions, head_dim]`, as ONNX Runtime's values


class Network:
    """What torch's network is elsewhere. Threads may use it at the same time: nothing in it changes.

    Args:
        manifest: of the folder.

    Raises:
        CheckpointError: a graph is damaged, does not fit the manifest, or would read files that are none of its own.
    """

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self._value = require("light", "onnxruntime").OrtValue.ortvalue_from_numpy
        for name in manifest.graphs:  # before any is opened
            check_locations(manifest, name)
        self.eyes: Any = None if manifest.pictures is None else Eyes(manifest)
        self._decoder = open_graph(manifest, "decoder")
        self._tables = {name: table.open() for name, table in manifest.tables.items()}
        layers = manifest.cache_shape[0]
        names = [f"{part}_{number}" for number in range(layers) for part in ("key", "value")]
        self.past_names = [f"past_{name}" for name in names]
        self._outputs = ["logits", *(f"present_{name}" for name in names)]
        heads, width = manifest.cache_shape[1:]
        hidden = manifest.text_config.hidden_size
        cache = dict.fromkeys([*self.past_names, *self._outputs[1:]], [1, heads, None, width])
        check_shapes(manifest, "decoder", self._decoder, {
            "inputs_embeds": [1, None, hidden], "logits": [1, 1, manifest.vocab_size], "position_ids": None, **cache,
        })  # fmt: skip

    def pixels(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """`[num_images, 3, height, width]`, of a model that has eyes."""
        return self.eyes.pixels(list(pictures))

    def look(self, pixel_values: np.ndarray) -> np.ndarray:
        """Visual tokens `[num_images, num_query_tokens, hidden_size]`."""
        return np.concatenate([self.eyes.look(picture) for picture in pixel_values])

    def embed(self, ids: Sequence[int], image_embeds: np.ndarray | None = None) -> np.ndarray:
        """`[1, length, hidden_size]`, with visual tokens at the image slots in order of appearance."""
        manifest, rows = self.manifest, np.asarray(ids)
        table, scales = manifest.tables["embeddings"], manifest.tables.get("embedding_scales")
        numbers = self._tables["embeddings"][rows]
        if scales is not None:
            steps = numbers.astype(np.float32)
            if table.dtype == "U8":  # two to a byte, the even column in the low half; 8 stands for 0
                steps = np.stack([numbers & 15, numbers >> 4], -1).reshape(len(rows), -1).astype(np.float32) - 8
            wide = scales.widen(self._tables["embedding_scales"][rows])
            embeds = (steps.reshape(*wide.shape, -1) * wide[..., None]).reshape(len(rows), -1)
        else:
            embeds = table.widen(numbers)
        if image_embeds is not None:
            embeds[rows == manifest.image_token_id] = image_embeds.reshape(-1, embeds.shape[-1])
        return embeds[None]

    def empty_cache(self) -> Cache:
        """Where every answer starts: nothing, or the prefix that fine-tuning has put there."""
        layers, heads, width = self.manifest.cache_shape
        if "prefix_0" not in self.manifest.tables:
            nothing = self._value(np.zeros((1, heads, 0, width), np.float32))
            return [nothing] * (2 * layers)
        found = []
        for number in range(layers):
            name = f"prefix_{number}"
            pair = self.manifest.tables[name].widen(self._tables[name])
            found += [self._value(np.ascontiguousarray(part[None])) for part in pair]
        return found

    def step(self, embeds: np.ndarray, positions: np.ndarray, cache: Cache) -> tuple[np.ndarray, Cache]:
        """Logits `[vocabulary]` behind the last of these tokens, and the longer cache; the shorter stays as it is."""
        feeds = dict(zip(self.past_names, cache, strict=True))
        feeds["inputs_embeds"] = self._value(embeds)
        feeds["position_ids"] = self._value(positions)
        logits, *longer = self._decoder.run_with_ort_values(self._outputs, feeds)
        return logits.numpy()[0, -1], longer


class Place:
    """Where in its context an answer is, in the terms of the model's family.

    Args:
        positions: of the manifest. ids: of the prompt.
    """

    def __init__(self, positions: dict[str, Any], ids: Sequence[int]):
        self._ids = list(ids)
        self._planes = positions["kind"] == "two planes"
        self._next = len(self._ids)
        if self._planes:
            start = self._ids.index(positions["start"])
            prefix = self._ids[:start]
            # [gMASK] wins over a [MASK] inside the text, and the first of its kind; without either, the last token.
            blanks = [prefix.index(id_) for id_ in positions["blanks"] if id_ in prefix]
            self._blank, self._start = (blanks or [max(start - 1, 0)])[0], start

    def pieces(self) -> list[tuple[list[int], np.ndarray]]:
        """The prompt as the graph takes it, piece by piece, with positions `[planes, 1, length]` or `[1, length]`.

        What a prefix-LM reads both ways is one piece; behind it, every token sees only what came before.
        """
        if not self._planes:
            return [(self._ids, np.arange(len(self._ids))[None])]
        index = np.arange(self._start)
        found = [(self._ids[: self._start], np.stack([index, np.zeros_like(index)])[:, None])] if self._start else []
        for number in range(self._start, len(self._ids)):
            found.append(([self._ids[number]], self._at(number)))
        return found

    def reach(self) -> np.ndarray:
        """How many positions each of the ids sees: all of the prefix together, what comes behind it one by one."""
        seen = np.arange(1, len(self._ids) + 1)
        return np.maximum(seen, self._start) if self._planes else seen

    def go_on(self) -> np.ndarray:
        """The position of the next token."""
        self._next += 1
        return self._at(self._next - 1)

    def _at(self, number: int) -> np.ndarray:
        if not self._planes:
            return np.array([[number]])
        return np.array([[[self._blank]], [[number - self._start + 1]]])
