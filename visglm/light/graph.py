"""Which files an ONNX graph would read, told from its bytes before ONNX Runtime opens any.

A graph may name files for its weights, and those of a stranger's folder could lie anywhere. Only the fields on the way
to such names are read (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..untrusted import DamagedFile

# Message → number of a field → the message in it, on every way from the model to the entry that names a file.
FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
KEY, VALUE = 1, 2  # fields of an entry
MOST_LEVELS = 64


def locations(path: Path) -> set[str]:
    """The names of files that a graph takes weights from.

    Raises:
        DamagedFile: it is no ONNX graph.
    """
    data = memoryview(path.read_bytes())
    try:
        return set(find(data, "model", 0))
    except (IndexError, ValueError) as error:
        raise DamagedFile(f"file {path.name}: no ONNX graph ({error})") from error


def find(data: memoryview, kind: str, level: int) -> Iterator[str]:
    if level > MOST_LEVELS:
        raise ValueError("graphs within graphs without end")
    if kind == "entry":
        entry = dict(parts(data))
        if bytes(entry.get(KEY, b"")) == b"location":
            yield bytes(entry.get(VALUE, b"")).decode()
        return
    for number, part in parts(data):
        if number in FIELDS[kind]:
            yield from find(part, FIELDS[kind][number], level + 1)


def parts(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of every field of a message that has a length."""
    place = 0
    while place < len(data):
        tag, place = varint(data, place)
        wire = tag & 7
        if wire == 0:
            _, place = varint(data, place)
        elif wire in (1, 5):
            place += 8 if wire == 1 else 4
        elif wire == 2:
            length, place = varint(data, place)
            if place + length > len(data):
                raise ValueError("it ends early")
            yield tag >> 3, data[place : place + length]
            place += length
        else:
            raise ValueError(f"a field of kind {wire}")


def varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits to the byte, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
