"""A graph in several, of which the player holds one at a time: the eyes of a large model beside its words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import require
from .weights import Weights

SECTION_BYTES = 700_000_000  # of weights as they are stored; what one section adds to the player's memory


def cut_points(model: Any, weights: Weights, most_bytes: int) -> list[str]:
    """Names of the values at which a graph falls into parts of at most so many bytes of weights, where it can.

    Such a value is the only one that what comes later needs of what came before.

    Args:
        model: as `trace` gives it, its weights without values.
    """
    nodes = list(model.graph)
    needed = {value: len(nodes) for value in model.graph.outputs}
    for place, node in enumerate(nodes):
        for value in node.inputs:
            if value is not None and value not in needed:
                needed[value] = place
            elif value is not None:
                needed[value] = max(needed[value], place)
    found: list[str] = []
    seen: set[str] = set()
    alive: set[Any] = set(model.graph.inputs)
    size, latest = 0, ("", 0)  # bytes of this part, and the last place to cut with the bytes there
    for place, node in enumerate(nodes):
        for value in node.inputs:
            if value is not None and value.is_initializer() and value.const_value is None and value.name not in seen:
                seen.add(value.name)
                size += weights.find(value.name).num_bytes
        if size > most_bytes and latest[0]:
            found.append(latest[0])
            size, latest = size - latest[1], ("", 0)
        alive = {value for value in (*alive, *node.outputs) if needed.get(value, -1) > place}
        if len(alive) == 1 and place < len(nodes) - 1:
            latest = next(iter(alive)).name, size
    return found


def cut(path: Path, points: list[str]) -> list[str]:
    """Write a graph's parts in its place, and return the names of their files in order.

    Args:
        path: of the graph, whose first part takes its name. points: where to cut, in order.
    """
    onnx = require("export", "onnx")
    utils = require("export", "onnx.utils")
    whole = onnx.load(path, load_external_data=False)
    extractor = utils.Extractor(whole)
    ends = [whole.graph.input[0].name, *points, whole.graph.output[0].name]
    names = []
    for number, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True), start=1):
        names.append(path.name if number == 1 else f"{path.stem}-{number}{path.suffix}")
        part = extractor.extract_model([start], [end])
        part.producer_name = whole.producer_name
        path.with_name(names[-1]).write_bytes(part.SerializeToString())
    return names
