"""Where in a picture an answer comes from, by the graph that has torch's gradient written down."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import VisGLMError
from ..prompt import IGNORE_INDEX, Rendered
from .network import Network, Place
from .session import check_shapes, open_graph

INPUTS = ("features", "inputs_embeds", "slots", "rows", "ids", "position_ids", "reach")


class Heat:
    """The heat maps of one model.

    Args:
        network: whose graphs it stands beside.
    """

    def __init__(self, network: Network):
        self.network, self.manifest = network, network.manifest
        self._graph: Any = None  # opened when somebody asks
        self._num_slots = 0  # that the Q-Former fills; a recogniser's are behind them

    def of(self, row: Rendered, pixel_values: np.ndarray, picture: int) -> np.ndarray:
        """Heat `[rows, columns]`, 0 to 1.

        Args:
            row: a conversation with its answer.
            pixel_values: all its pictures `[num_images, 3, height, width]`. picture: index of the one to explain.

        Raises:
            VisGLMError: the model was exported without this graph. CheckpointError: the graph cannot be used.
        """
        self._graph = self._graph or self._open()
        network, manifest = self.network, self.manifest
        ids, labels = np.array(row.input_ids), np.array(row.labels)
        (slots,) = np.nonzero(ids == manifest.image_token_id)
        start = picture % len(pixel_values) * manifest.num_query_tokens
        (answer,) = np.nonzero(labels != IGNORE_INDEX)
        place, cache = Place(manifest.positions, row.input_ids), network.empty_cache()
        feeds = dict(zip(network.past_names, (part.numpy() for part in cache), strict=True))
        feeds |= {
            "features": network.eyes.features(pixel_values[picture]),
            "inputs_embeds": network.embed(row.input_ids, network.look(pixel_values)),
            "slots": slots[start : start + self._num_slots],
            "rows": answer - 1,
            "ids": labels[answer],
            "position_ids": np.concatenate([positions for _, positions in place.pieces()], -1),
            "reach": place.reach() + cache[0].shape()[2],
        }
        (heat,) = self._graph.run(["heat"], feeds)
        return heat

    def _open(self) -> Any:
        manifest = self.manifest
        if "heat" not in manifest.graphs:
            raise VisGLMError(
                "this model was exported without the graph of the heat map, which packed weights and very large eyes "
                "do not have. Export it without `quantize`, or ask visglm.VisGLM, with torch."
            )
        session = open_graph(manifest, "heat")
        wanted: dict[str, list[int | None] | None] = dict.fromkeys([*INPUTS, *self.network.past_names, "heat"])
        wanted["inputs_embeds"] = [1, None, manifest.text_config.hidden_size]
        check_shapes(manifest, "heat", session, wanted)
        [self._num_slots] = next(end.shape for end in session.get_inputs() if end.name == "slots")
        return session
