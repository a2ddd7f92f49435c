"""The same work list, done by processes of Ray Data: each has a model of its own and writes whole shards."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from ..cluster import Recipe, Share, own_error
from ..errors import require
from .items import Item
from .results import Results, Row
from .work import Task, describe

# Names as bytes: on the disk they may be no text.
FIELDS = {"name": "binary", "stamp": "string", "path": "binary", "kind": "string", "start": "int64", "size": "int64"}


class Describer:
    """What one process does with its shards. Ray makes it there.

    Args:
        recipe: of the model. task: what is asked. results: where shards go.
    """

    def __init__(self, recipe: Recipe, task: Task, results: Results):
        self.vlm, self.task, self.results = recipe.load(), task, results

    def __call__(self, table: Any) -> Any:
        """A shard of pictures → one row that says how it went. Done again, it replaces itself."""
        pyarrow = require("describe", "pyarrow")
        number = table.column("number")[0].as_py()
        items = unpacked(table)
        rows = [row for some in describe(self.vlm, items, self.task) for row in some]
        self.results.write(number, rows)
        failed = [{"image": row["image"], "error": row["error"]} for row in rows if row["error"] is not None]
        return pyarrow.table({"done": [len(rows)], "failed": [json.dumps(failed)]})


def spread(
    shards: Iterable[list[Item]], first: int, recipe: Recipe, task: Task, results: Results, workers: int, share: Share
) -> Iterator[tuple[int, list[Row]]]:
    """Describe shards side by side; of each how many pictures it had, and those that failed with their errors.

    Args:
        first: number of the first shard. workers: processes. share: what one takes.

    Raises:
        VisGLMError: the model failed, or cannot do what is asked; shards that were done are whole.
    """
    ray, data, exceptions = require("ray", "ray", "ray.data", "ray.exceptions")
    pyarrow = require("describe", "pyarrow")
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    for each in ("ray", "ray.data"):
        logging.getLogger(each).setLevel(logging.WARNING)
    schema = pyarrow.schema([*((name, getattr(pyarrow, kind)()) for name, kind in FIELDS.items()),
                             ("number", pyarrow.int64())])  # fmt: skip
    # In Ray's own memory, which goes to the disk where it is too much: some hundred bytes a picture.
    references = [
        ray.put(pyarrow.table([*packed(items), [first + place] * len(items)], schema=schema))
        for place, items in enumerate(shards)
    ]
    if not references:
        return
    pool = data.ActorPoolStrategy(size=min(workers, len(references)))
    done = data.from_arrow_refs(references).map_batches(
        Describer, fn_constructor_kwargs={"recipe": recipe, "task": task, "results": results}, batch_size=None,
        batch_format="pyarrow", compute=pool, num_cpus=share.num_cpus, num_gpus=share.num_gpus or None,
    )  # fmt: skip
    try:
        for row in done.iter_rows():
            yield int(row["done"]), json.loads(row["failed"])
    except exceptions.RayError as error:
        raise own_error(error) from None


def packed(items: Iterable[Item]) -> list[list[Any]]:
    """Columns of `FIELDS`."""
    return [
        [value.encode("utf-8", "surrogatepass") if kind == "binary" else value for value in values]
        for kind, values in zip(FIELDS.values(), zip(*items, strict=True), strict=True)
    ]


def unpacked(table: Any) -> list[Item]:
    columns = [table.column(name).to_pylist() for name in FIELDS]
    texts = (
        [value.decode("utf-8", "surrogatepass") if kind == "binary" else value for value in column]
        for kind, column in zip(FIELDS.values(), columns, strict=True)
    )
    return [Item(*fields) for fields in zip(*texts, strict=True)]
