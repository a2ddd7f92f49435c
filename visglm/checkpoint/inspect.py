"""What is right and wrong with a checkpoint, found without loading it whole: for `visglm doctor PATH`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import VisGLMError
from ..families import family_of
from ..untrusted import hash_of
from .assemble import build, check
from .files import READERS
from .source import Source


class Check(NamedTuple):
    """One thing that was looked at."""

    subject: str
    found: str
    good: bool = True


def inspect(source: Source) -> Iterator[Check]:
    """Format, files with their hashes, names and shapes, the tokenizer, and whether every number is finite."""
    yield Check("format", f"{source.format}, {len(source.keys()):,} tensors")
    family = family_of(source.config)
    yield Check("family", f"{family.name}, which can {', '.join(family.can)} here")
    own = family.sampling(source.generation_config())
    yield Check("answers", ", ".join(f"{name} {value:g}" for name, value in own.items()) or "by the likeliest tokens")
    for folder in dict.fromkeys((source.path, source.weights_path)):
        yield from check_hashes(folder)
    try:
        check(source, build(source.config))
        yield Check("keys and shapes", "as the network wants them")
    except VisGLMError as error:
        yield Check("keys and shapes", str(error), good=False)
        return
    if (delta := source.delta()) is not None:
        kinds = ", ".join(f"{len(tensors)} tensors of {kind}" for kind, tensors in delta.by_kind().items())
        problems = delta.problems(build(source.config))
        yield Check("adapter", "; ".join(problems) or f"{delta.method}, {kinds}, fits its base", good=not problems)
        if problems:
            return
    try:
        tokenizer = source.processor().tokenizer
        yield Check("tokenizer", f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens, fits the model")
    except VisGLMError as error:
        yield Check("tokenizer", str(error), good=False)
    broken = [
        source.name_on_disk(name)
        for name, tensor in source.tensors()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    broken += [name for name, tensor in delta.tensors.items() if not tensor.isfinite().all()] if delta else []
    listed = f"not finite in {', '.join(broken[:5])}{' and others' if len(broken) > 5 else ''}"
    yield Check("numbers", listed if broken else "all finite", good=not broken)


def check_hashes(path: Path) -> Iterator[Check]:
    """SHA-256 of every weight file; held against its name where the hub's cache has named it so."""
    found = [*path.iterdir(), *path.glob("*/mp_rank_*")]
    for file in sorted(file for file in found if file.suffix in READERS and file.is_file()):  # a pipe has no end
        digest = hash_of(file)
        expected = file.resolve().name
        if not re.fullmatch(r"[0-9a-f]{64}", expected):
            yield Check(file.name, f"sha256 {digest}")
        elif digest == expected:
            yield Check(file.name, f"sha256 {digest}, as the hub has it")
        else:
            yield Check(file.name, f"sha256 {digest}, but the hub has {expected}: download it again", good=False)
