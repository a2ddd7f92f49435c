"""A library's files read by processes of Ray Data, each with its own eyes and vectors. One process writes: the one that
syncs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

from .cluster import Share, own_error
from .errors import require
from .library import Indexer, LibraryLimits, Reading, Wanted
from .library.embed import embedder
from .library.indexing import Read

FILES_AT_ONCE = 16  # of a task: what a worker that dies has to do again
FIELDS = {"source": "string", "digest": "string", "is_new": "bool_"}


class Reader:
    """What one process does with its files. Ray makes it there.

    Args:
        vectors: find texts by their meaning. limits: what a document may cost.
        moved: content that the library has under another name: digest → kind of reader.
    """

    def __init__(self, vectors: bool, limits: LibraryLimits, moved: Mapping[str, str]):
        self.indexer, self.moved = Indexer(embedder(vectors), None, limits), moved

    def __call__(self, table: Any) -> Any:
        """Files → what came of each."""
        pyarrow = require("library", "pyarrow")
        files = zip(*(table.column(name).to_pylist() for name in FIELDS), strict=True)
        readings = self.indexer.read_all((Wanted(*fields) for fields in files), self.moved)
        return pyarrow.table({"reading": [json.dumps(asdict(reading)) for reading in readings]})


def spread(vectors: bool, limits: LibraryLimits, workers: int, share: Share) -> Read:
    """Reads files side by side; for `Library.sync`. Every process has to see them under the same path.

    Args:
        workers: processes. share: what one takes. vectors, limits: as of `Library.open`.

    Raises:
        VisGLMError: a process failed. What was committed before is whole.
    """

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
            Reader, fn_constructor_kwargs={"vectors": vectors, "limits": limits, "moved": dict(moved)}, batch_size=None,
            batch_format="pyarrow", compute=data.ActorPoolStrategy(size=min(workers, len(references))),
            num_cpus=share.num_cpus,
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
        columns = [[getattr(file, name) for file in some] for name in FIELDS]
        yield pyarrow.table(columns, schema=schema)
