"""The graphs that look at pictures: one that stays open, or the parts of a large one, opened in turn for each."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from PIL import Image

from .manifest import Manifest
from .session import check_shapes, open_graph

MOST_PICTURES = 64  # that are remembered as visual tokens


class Eyes:
    """Pictures to visual tokens. Threads may use them at the same time.

    Args:
        manifest: of a model that has some.
    """

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self._names = manifest.vision_graphs
        self._whole: Any = None  # opened for the first picture: convolutions take longest to get ready
        self._lock = threading.Lock()
        self._seen: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def pixels(self, pictures: list[Image.Image]) -> np.ndarray:
        """`[num_images, 3, height, width]`, as the graphs take them."""
        settings = self.manifest.pictures
        size = settings["width"], settings["height"]
        mean, std = (np.array(settings[name], np.float32)[:, None, None] for name in ("mean", "std"))
        found = []
        for picture in pictures:
            samples = np.asarray(picture.resize(size, settings["resample"]), np.float64)
            scaled = (np.moveaxis(samples, -1, 0) * settings["rescale_factor"]).astype(np.float32)
            found.append((scaled - mean) / std)
        return np.stack(found)

    def look(self, picture: np.ndarray) -> np.ndarray:
        """Visual tokens `[1, num_query_tokens, hidden_size]` of one, remembered for a while: the next question may be
        about it, too.

        Raises:
            CheckpointError: a graph is damaged, or another model's.
        """
        key = hashlib.sha256(np.ascontiguousarray(picture).data).digest()
        with self._lock:
            if key in self._seen:
                self._seen.move_to_end(key)
                return self._seen[key]
            if len(self._names) > 1:  # one picture at a time, for two would take twice the memory
                seen = self._in_parts(picture)
            else:
                self._whole = self._whole or self._open(0, "pixel_values")[0]
        if len(self._names) == 1:
            (seen,) = self._whole.run(["image_embeds"], {"pixel_values": picture[None]})
        with self._lock:
            self._seen[key] = seen
            while len(self._seen) > MOST_PICTURES:
                self._seen.popitem(last=False)
        return seen

    def features(self, picture: np.ndarray) -> np.ndarray:
        """What the Q-Former looks at, `[1, 1 + patches (+ cells), vit hidden size]`: of models with a heat map."""
        with self._lock:
            self._whole = self._whole or self._open(0, "pixel_values")[0]
        (found,) = self._whole.run(["features"], {"pixel_values": picture[None]})
        return found

    def _in_parts(self, picture: np.ndarray) -> np.ndarray:
        value, name = picture[None], "pixel_values"
        for number in range(len(self._names)):
            session, end = self._open(number, name)
            (value,) = session.run(None, {name: value})
            name = end
            del session  # and with it the weights that it holds
        return value

    def _open(self, number: int, start: str) -> tuple[Any, str]:
        """A graph that goes on from the value called `start`, and what it calls its own."""
        manifest, settings, name = self.manifest, self.manifest.pictures, self._names[number]
        session = open_graph(manifest, name, is_held=len(self._names) == 1)
        end = session.get_outputs()[0].name if number < len(self._names) - 1 else "image_embeds"
        wanted: dict[str, list[int | None] | None] = {start: None, end: None}
        if number == 0:
            wanted[start] = [1, 3, settings["height"], settings["width"]]
        if end == "image_embeds":
            wanted[end] = [1, manifest.num_query_tokens, manifest.text_config.hidden_size]
            if "heat" in manifest.graphs:
                wanted["features"] = None
        check_shapes(manifest, name, session, wanted)
        return session, end
