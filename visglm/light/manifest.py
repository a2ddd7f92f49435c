"""`light.json`: what a folder that `visglm export` wrote says of itself, checked before anything is believed."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..errors import CheckpointError, ConfigError, shown
from ..prompt import PROMPT_STYLES
from ..settings import Rule
from ..untrusted import DamagedFile, hash_of, read_json

NAME, FORMAT = "light.json", 1
NEXT_STEP = "Nothing was loaded. Export the model again with `visglm export`, or copy the folder again, whole."
MAX_GRAPH_BYTES = 2**26  # of a graph without its weights; the largest are a few million
# Number formats of tables → NumPy's; it has no bfloat16.
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8, "I8": np.int8}
TOKENIZERS = ("sentencepiece with whitespace", "plain sentencepiece", "byte pairs")
SCHEMES = ("int8", "int4")

ID = Rule(int, 0, 2**31)
# Field → what it may be; those with a dot are inside of another.
RULES: Mapping[str, Rule] = {
    "prompt_style": Rule(str, names=tuple(PROMPT_STYLES)),
    "num_query_tokens": Rule(int, 1, 2**14),
    "image_token_id": Rule(int, 0, 2**31, optional=True),
    "max_pictures": Rule(int, 1, 2**31, optional=True),
    "context_length": Rule(int, 1, 2**24),
    "hidden_size": Rule(int, 1, 2**17),
    "vocab_size": Rule(int, 1, 2**24),
    "cache": Rule(dict),
    "cache.layers": Rule(int, 1, 512),
    "cache.heads": Rule(int, 1, 2**12),
    "cache.head_dim": Rule(int, 1, 2**12),
    "positions": Rule(dict),
    "quantization": Rule(dict, optional=True),
    "positions.kind": Rule(str, names=("two planes", "count")),
    "answers": Rule(dict),
    "answers.end_ids": Rule(list),
    "answers.repetition_penalty": Rule(float, 0.1, 10.0, optional=True),
    "answers.no_repeat_ngram_size": Rule(int, 0, 1_000_000, optional=True),
    "answers.min_new_tokens": Rule(int, 0, 1_000_000, optional=True),
    "pictures": Rule(dict, optional=True),
    "tokenizer": Rule(dict),
    "tokenizer.kind": Rule(str, names=TOKENIZERS),
    "tokenizer.file": Rule(str),
    "tokenizer.tokens": Rule(dict),
    "tokenizer.special_ids": Rule(list),
    "tokenizer.num_image_tokens": Rule(int, 0, 2**16),
    "tokenizer.eos_token_id": ID,
    "tokenizer.unk_token_id": Rule(int, 0, 2**31, optional=True),
    "tokenizer.image_token_id": Rule(int, 0, 2**31, optional=True),
    "graphs": Rule(dict),
    "tables": Rule(dict),
    "files": Rule(dict),
}
PICTURE_RULES: Mapping[str, Rule] = {
    "height": Rule(int, 1, 2**13),
    "width": Rule(int, 1, 2**13),
    "resample": Rule(int, 0, 5),
    "rescale_factor": Rule(float, 1e-6, 1e3),
    "mean": Rule(list),
    "std": Rule(list),
}
# The same of each number in "mean" and "std".
COLOURS: Mapping[str, Rule] = {"mean": Rule(float, -1e3, 1e3), "std": Rule(float, 1e-6, 1e3)}


@dataclass(frozen=True)
class Table:
    """Numbers in a file: row by row, from `offset` bytes on."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def open(self) -> np.ndarray:
        """The numbers as a view of the file; those in bfloat16 as they lie there, in 16 bits."""
        return np.memmap(self.path, DTYPES[self.dtype], "r", self.offset, self.shape)

    def widen(self, numbers: np.ndarray) -> np.ndarray:
        """A selection of them as float32."""
        if self.dtype == "BF16":
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers.astype(np.float32)


class Manifest:
    """What the folder says, in the words of the configuration that `visglm.request` reads.

    Attributes:
        vision_config: None for a model without eyes.
        text_config: `hidden_size` and `max_position_embeddings`.
        fingerprint: of the model, which histories are told apart by.
        vision_graphs: names of the graphs that look at a picture, one after the other.

    Raises:
        CheckpointError: the folder holds no exported model, or one that is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        if not folder.is_dir():
            problem = "it is no folder" if folder.exists() else "there is no such folder"
            raise CheckpointError(folder, [problem], "Name a folder that an exported model is in.")
        if not (folder / NAME).is_file():
            source = shlex.quote(str(folder)) if any(folder.glob("*.json")) else "SRC"
            raise CheckpointError(
                folder, [f"there is no {NAME} in it"], f"`visglm export {source} DST` writes a folder that has one."
            )
        try:
            fields = read_json(folder / NAME)
            if fields.get("format") is True or fields.get("format") != FORMAT:
                raise DamagedFile(f"its format is {shown(fields.get('format'))}, and this visglm reads {FORMAT}")
            check_rules(fields, RULES)
            if fields["pictures"] is not None:
                check_rules(fields["pictures"], PICTURE_RULES)
            self._take(fields)
            self._check_files(fields["files"])
        except DamagedFile as error:
            raise CheckpointError(folder, [f"{NAME}: {error}"], NEXT_STEP) from error
        self.fingerprint = hashlib.sha256(repr(sorted(fields["files"].items())).encode()).hexdigest()[:16]

    def _take(self, fields: Mapping[str, Any]) -> None:
        self.prompt_style: str = fields["prompt_style"]
        self.num_query_tokens: int = fields["num_query_tokens"]
        self.image_token_id: int | None = fields["image_token_id"]
        self.max_pictures: int | None = fields["max_pictures"]
        self.vocab_size: int = fields["vocab_size"]
        self.text_config = SimpleNamespace(
            hidden_size=fields["hidden_size"], max_position_embeddings=fields["context_length"]
        )
        self.vision_config = self.pictures = fields["pictures"]
        self.cache_shape = tuple(fields["cache"][name] for name in ("layers", "heads", "head_dim"))
        self.positions: dict[str, Any] = fields["positions"]
        self.answers: dict[str, Any] = fields["answers"]
        self.tokenizer: dict[str, Any] = fields["tokenizer"]
        self.scheme = None if fields["quantization"] is None else fields["quantization"].get("scheme")
        if self.scheme not in (None, *SCHEMES):
            raise DamagedFile(f"its weights are packed as {shown(self.scheme)}")
        check_ids("answers.end_ids", self.answers["end_ids"])
        if any(id_ >= self.vocab_size for id_ in self.answers["end_ids"]):
            raise DamagedFile(f"answers.end_ids has a token beyond the {self.vocab_size} that there are")
        check_ids("tokenizer.special_ids", self.tokenizer["special_ids"])
        check_ids("tokenizer.tokens", list(self.tokenizer["tokens"].values()))
        if self.positions["kind"] == "two planes":
            check_ids("positions.start", [self.positions.get("start")])
            blanks = self.positions.get("blanks")
            if not isinstance(blanks, list) or not blanks:
                raise DamagedFile(f"positions.blanks is {shown(blanks)}, expected a list of tokens")
            check_ids("positions.blanks", [id_ for id_ in blanks if id_ is not None])
        self.graphs = {name: self.folder / str(file) for name, file in fields["graphs"].items()}
        wanted = {"decoder"} | ({"vision"} if self.pictures is not None else set())
        if missing := wanted - self.graphs.keys():
            raise DamagedFile(f"it names no graph for {', '.join(sorted(missing))}")
        parts = [f"vision_{number}" for number in range(2, 1 + sum(name.startswith("vision") for name in self.graphs))]
        if foreign := self.graphs.keys() - wanted - ({*parts, "heat"} if self.pictures is not None else set()):
            raise DamagedFile(f"it names a graph for {', '.join(map(shown, sorted(foreign)))}, which nothing plays")
        self.vision_graphs = [name for name in ("vision", *parts) if name in self.graphs]
        self.tables = {name: self._table(name, entry, fields["files"]) for name, entry in fields["tables"].items()}
        self._check_tables()
        self.files = frozenset(fields["files"])
        self._used = {*map(str, fields["graphs"].values()), self.tokenizer["file"]}  # tables are in files with hashes

    def _table(self, name: str, entry: Any, files: Mapping[str, Any]) -> Table:
        try:
            shape = tuple(Rule(int, 1, 2**31).take(name, size) for size in entry["shape"])
            offset = Rule(int, 0, 2**50).take(name, entry["offset"])
            size = int(np.prod(shape, dtype=object)) * np.dtype(DTYPES[entry["dtype"]]).itemsize
            if len(shape) > 5 or offset + size > files[entry["file"]]["bytes"]:
                raise ValueError("it does not lie in its file")
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise DamagedFile(f"table {shown(name)} cannot be used ({type(error).__name__}: {error})") from error
        return Table(self.folder / entry["file"], offset, entry["dtype"], shape)

    def _check_tables(self) -> None:
        hidden, (layers, heads, width) = self.text_config.hidden_size, self.cache_shape
        embeddings, scales = self.tables.get("embeddings"), self.tables.get("embedding_scales")
        if embeddings is None:
            raise DamagedFile("it has no table of embeddings")
        columns = hidden // 2 if scales is not None and embeddings.dtype == "U8" else hidden
        if embeddings.shape != (self.vocab_size, columns):
            raise DamagedFile(f"the embeddings are {embeddings.shape}, expected {(self.vocab_size, columns)}")
        fits = scales is None or (
            len(scales.shape) == 2 and scales.shape[0] == self.vocab_size and not hidden % scales.shape[1]
        )
        if not fits or (scales is None) == (embeddings.dtype in ("U8", "I8")):
            raise DamagedFile("the embeddings and their scales do not go together")
        prefix = [table for name, table in sorted(self.tables.items()) if name.startswith("prefix_")]
        if prefix and (
            {f"prefix_{number}" for number in range(layers)} - self.tables.keys()
            or any(len(table.shape) != 4 or table.shape[:2] != (2, heads) for table in prefix)
            or {table.shape[2:] for table in prefix} != {(prefix[0].shape[2], width)}
        ):
            raise DamagedFile("the prefix does not fit the cache")

    def _check_files(self, files: Mapping[str, Any]) -> None:
        """Every file whole, and nothing used that is not among them."""
        problems = [f"{shown(name)} is used and has no hash" for name in sorted(self._used - files.keys())]
        for name, entry in files.items():
            problems += problems_of(self.folder, name, entry)
        for name, path in self.graphs.items():
            if not problems and path.stat().st_size > MAX_GRAPH_BYTES:
                problems.append(f"the graph {name} has over {MAX_GRAPH_BYTES:,} bytes")
        if problems:
            raise CheckpointError(self.folder, problems, NEXT_STEP)


def problems_of(folder: Path, name: str, entry: Any) -> Iterator[str]:
    """What is wrong with one file, at most one line."""
    path = folder / name
    if not isinstance(entry, dict) or Path(name).name != name or name in ("", ".", ".."):
        yield f"{shown(name)} is no name of a file in the folder, or has no size and hash"
    elif not path.is_file():
        yield f"file {shown(name)}: missing"
    elif path.stat().st_size != entry.get("bytes"):
        yield f"file {name}: {path.stat().st_size:,} bytes, expected {shown(entry.get('bytes'))}"
    elif hash_of(path) != entry.get("sha256"):
        yield f"file {name}: it is not what was exported, its hash differs"


def check_rules(fields: Any, rules: Mapping[str, Rule]) -> None:
    """Raise `DamagedFile` for a field that is missing or breaks its rule."""
    for name, rule in rules.items():
        place, _, last = name.rpartition(".")
        inside = fields[place] if place else fields
        if last not in inside:
            raise DamagedFile(f"it says nothing of {name}")
        try:
            rule.take(name, inside[last])
            if rule.kind is list and not isinstance(inside[last], list):  # which elsewhere may be the path of one
                raise DamagedFile(f"{name} is {shown(inside[last])}, expected a list")
        except ConfigError as error:
            raise DamagedFile(str(error)) from error
    for name, rule in COLOURS.items() if "mean" in rules else ():
        try:
            fits = len([rule.take(name, number) for number in fields[name]]) == 3
        except ConfigError as error:
            raise DamagedFile(f"{name} is {shown(fields[name])}, expected three numbers ({error})") from error
        if not fits:
            raise DamagedFile(f"{name} is {shown(fields[name])}, expected three numbers")


def check_ids(name: str, ids: Any) -> None:
    try:
        for id_ in ids:
            ID.take(name, id_)
    except (ConfigError, TypeError) as error:
        raise DamagedFile(str(error)) from error
