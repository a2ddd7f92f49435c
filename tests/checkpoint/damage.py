"""Ways to damage a folder of a checkpoint, each by a number: the same number is the same damage."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HUGE = 10**30
VALUES: tuple[Any, ...] = (
    HUGE, -HUGE, 2**31, 1_000_000, -1, 0, 1e308, float("nan"), float("inf"), "x", "", "../../etc/passwd", "12",
    "\x1b[2J", [], [1, 2], [[[]]], {}, {"a": {"b": 1}}, None, True, False, ["x"] * 1000, {"0": None},
)  # fmt: skip
NAMES = ("surprise", "attn_implementation", "num_labels", "auto_map", "\x1b]0;x\x07")


def damage_bytes(content: bytes, dice: random.Random) -> bytes:
    kind = dice.randrange(7)
    if kind == 0:
        return content[: dice.randrange(max(len(content), 1))]
    if kind == 1:
        return b""
    if kind == 2:
        flipped = bytearray(content)
        for _ in range(dice.choice((1, 8, 64))):
            flipped[dice.randrange(len(flipped))] ^= 1 << dice.randrange(8)
        return bytes(flipped)
    if kind == 3:
        start = dice.randrange(min(len(content), 400))
        return content[:start] + dice.randbytes(dice.choice((1, 8, 64))) + content[start + 8 :]
    if kind == 4:
        return content + dice.randbytes(100)
    if kind == 5:
        return dice.choice((b"[]", b"null", b"7", b'"x"', b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"\0" * 500))
    return dice.choice((b"<!doctype html><html>", b"version https://git-lfs.github.com/spec/v1\n", b"{}"))


def places(fields: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key in it."""
    for key, value in list(fields.items() if isinstance(fields, dict) else enumerate(fields)):
        yield fields, key
        if isinstance(value, dict | list):
            yield from places(value)


def damage_json(content: bytes, dice: random.Random) -> bytes:
    fields = json.loads(content)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        found = list(places(fields))
        if not found:
            break
        owner, key = dice.choice(found)
        if dice.random() < 0.3:
            del owner[key]
        elif dice.random() < 0.2 and isinstance(owner, dict):
            owner[dice.choice(("surprise", "attn_implementation", "num_labels", "auto_map", "\x1b]0;x\x07"))] = (
                copy.deepcopy(dice.choice(VALUES))
            )
        else:
            owner[key] = copy.deepcopy(dice.choice(VALUES))
    return json.dumps(fields).encode()


def damage(folder: Path, number: int) -> tuple[str, Callable[[], None]]:
    """Damage one file of the folder.

    Returns:
        What was done, and what undoes it.
    """
    dice = random.Random(number)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[number % len(files)]
    content = path.read_bytes()
    as_json = path.suffix == ".json" and dice.random() < 0.75
    path.write_bytes((damage_json if as_json else damage_bytes)(content, dice))
    return f"{path.name}, {'JSON' if as_json else 'bytes'}, number {number}", lambda: path.write_bytes(content) and None
