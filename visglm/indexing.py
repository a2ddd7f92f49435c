"""A library's files read by processes of Ray Data, each with its own eyes and vectors. One process writes: the one that
syncs."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from .cluster import Recipe, Share, own_error
from .errors import ConfigError, require
from .library import Indexer, LibraryLimits, Reading, Wanted
from .library.embed import embedder
from .library.indexing import Read
from .library.scans import ModelOcr

FILES_AT_ONCE = 16  # of a task: what a worker that dies has to do again
FIELDS = {"source": "binary", "digest": "string", "is_new": "bool_"}  # a name on the disk may be no text


class Reader:
    """What one process does with its files. Ray makes it there.

    Args:
        vectors: find texts by their meaning. limits: what a document may cost.
        scans: of the model that reads scans; None for RapidOCR, where it is installed.
        moved: content that the library has under another name: digest → kind of reader.
    """

    def __init__(self, vectors: bool, limits: LibraryLimits, scans: Recipe | None, moved: Mapping[str, str]):
        ocr = None if scans is None else ModelOcr(scans.load())
        self.indexer, self.moved = Indexer(embedder(vectors), None, limits, ocr), moved

    def __call__(self, table: Any) -> Any:
        """Files → what came of each."""
        pyarrow = require("library", "pyarrow")
        sources, *others = (table.column(name).to_pylist() for name in FIELDS)
        files = zip((source.decode("utf-8", "surrogatepass") for source in sources), *others, strict=True)
        readings = self.indexer.read_all((Wanted(*fields) for fields in files), self.moved)
        return pyarrow.table({"reading": [json.dumps(asdict(reading)) for reading in readings]})


def spread(indexer: Indexer, workers: int, share: Share, reader: str | Path | None = None) -> Read:
    """Reads files side by side; for `Library.sync`. Every process has to see them under the same path.

    Args:
        indexer: of the library. workers: processes. share: what one takes.
        reader: folder or hub id of the model that reads the library's scans, where it has one: each process loads it.

    Raises:
        ConfigError: a loaded model would have to go to other processes.
        VisGLMError: a process failed. What was committed before is whole.
    """
    if (reader is None and indexer.ocr.name) or not isinstance(reader, str | os.PathLike | None):
        raise ConfigError(
            "the model that reads scans is loaded in this process, and does not go to others. Give spread(…) the "
            "folder or hub id that it was loaded from, as reader=…, for each to load it."
        )
    scans = None if reader is None else Recipe.of({"name_or_path": os.fspath(reader)})
    gpus = share.num_gpus if scans is not None else 0

    def read(wanted: Iterable[Wanted], moved: Mapping[str, str]) -> Iterator[Reading]:
        from tqdm import tqdm

        ray, data, exceptions = require("ray", "ray", "ray.data", "ray.exceptions")
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        for each in ("ray", "ray.data"):
            logging.getLogger(each).setLevel(logging.WARNING)
        files = list(wanted)
        references = [ray.put(table) for table in tables(files)]
        if not references:
            return
        done = data.from_arrow_refs(references).map_batches(
            Reader, batch_size=None, batch_format="pyarrow", num_cpus=share.num_cpus, num_gpus=gpus or None,
            compute=data.ActorPoolStrategy(size=min(workers, len(references))), fn_constructor_kwargs={
                "vectors": bool(indexer.embedder.name), "limits": indexer.limits, "scans": scans, "moved": dict(moved),
            },
        )  # fmt: skip
        try:
            for row in tqdm(done.iter_rows(), total=len(files), unit="file", file=sys.stderr):
                yield Reading(**json.loads(row["reading"]))
        except exceptions.RayError as error:
            raise own_error(error) from None

    return read


def tables(files: Iterable[Wanted]) -> Iterator[Any]:
    pyarrow = require("library", "pyarrow")
    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in FIELDS.items()])
    files = iter(files)
    while some := list(islice(files, FILES_AT_ONCE)):
        sources, *others = ([getattr(file, name) for file in some] for name in FIELDS)
        yield pyarrow.table([[source.encode("utf-8", "surrogatepass") for source in sources], *others], schema=schema)
