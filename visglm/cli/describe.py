"""`visglm describe`: the same question about many pictures, one bad file losing nothing."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import ConfigError, ImageError, VisGLMError, counted, printable
from ..sampling import Sampling
from ..settings import Rule, check_call
from .advice import in_flags
from .flags import (
    add_adapter,
    add_language,
    add_model,
    add_ray,
    add_settings,
    image_limits,
    load_model,
    options_of,
    read_settings,
    settings_of,
    show_status,
)

if TYPE_CHECKING:
    from ..chat import VisGLM
    from ..reply import Reply

# Asked without --question, by --language; "auto" asks in English.
PROMPTS = {"en": "Describe the picture.", "zh": "描述这张图片。"}
FAILED = 3  # exit status when some pictures could not be described
SHOWN = 10  # of what went wrong, on the way to a folder of results, which holds all of it
RULES = {
    "batch_size": Rule(int, 1, 65_536),
    "shard_size": Rule(int, 1, 1_000_000),
    "workers": Rule(int, 1, 4096),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [options] PICTURE [PICTURE ...]\n       %(prog)s [options] SRC DST"
    parser.add_argument(
        "images", nargs="+", metavar="PICTURE",
        help="picture files, whose answers are printed; or SRC, a folder of pictures, .tar shards (WebDataset), "
        ".parquet files, a pattern of these in quotes, or an address such as s3://bucket/pictures, and DST, the folder "
        "of the results. Killed and started again, it does what is missing there",
    )  # fmt: skip
    parser.add_argument(
        "--question", "--prompt", metavar="TEXT", help=f'what to ask of each (default: "{PROMPTS["en"]}")'
    )
    parser.add_argument("--json-schema", metavar="FILE", help="file of the JSON schema that every answer follows")
    parser.add_argument(
        "--json", action="store_true", help='print one JSON object a line: {"image", "text"} or {"image", "error"}'
    )
    parser.add_argument(
        "--format", choices=("jsonl", "parquet"), default="jsonl", help="of the results in DST (default: %(default)s)"
    )
    parser.add_argument(
        "--shard-size", type=int, default=256, metavar="INT",
        help="pictures of a file in DST; a run that is killed loses no more (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="INT",
        help="pictures that share a pass through the model (default: 8)",
    )
    group = parser.add_argument_group("more than one process or machine, into DST (extra ray)")
    add_ray(group)
    group.add_argument(
        "--workers", type=int, default=1, metavar="INT",
        help="processes with a model each, and a GPU where there are any (default: 1)",
    )  # fmt: skip
    parser.epilog = (
        f"Exit status: 0 when every picture was described, {FAILED} when some failed, 1 when nothing was done."
    )
    add_language(parser)
    add_settings(parser, Sampling, "answers")
    add_model(parser)
    add_adapter(parser)


def run(arguments: argparse.Namespace) -> int:
    check_call(
        RULES, batch_size=arguments.batch_size, shard_size=arguments.shard_size, workers=arguments.workers
    )  # fmt: skip
    sampling = replace(read_settings(arguments, Sampling), json_schema=read_schema(arguments.json_schema))
    question = (
        PROMPTS["zh" if arguments.language == "zh" else "en"] if arguments.question is None else arguments.question
    )
    if not question.strip():
        raise ConfigError(f"--question must not be empty; got {question!r}. Leave it out for a description.")
    settings = {"batch_size": arguments.batch_size, "language": arguments.language, **settings_of(sampling)}
    if sampling.json_schema:
        settings["json_schema"] = sampling.json_schema
    ends = source_and_results(arguments)
    if arguments.workers > 1 and arguments.ray is None:
        raise ConfigError("--workers are processes of Ray: add --ray local, or the address of a cluster.")
    if ends is None:
        if arguments.ray is not None:
            raise ConfigError("--ray is for many pictures, whose answers go into a folder: `visglm describe SRC DST`.")
        return print_all(arguments, question, settings)
    return write_all(arguments, *ends, question, settings)


def read_schema(path: str | None) -> str:
    if path is None:
        return ""
    try:
        return Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8"
        raise ConfigError(f"--json-schema {printable(path)} cannot be read ({reason}).") from None


def source_and_results(arguments: argparse.Namespace) -> tuple[str, str] | None:
    """SRC and DST; None where there are pictures alone, whose answers are printed.

    Raises:
        ConfigError: one of the two is missing, or there are more.
    """
    from ..describe import is_collection

    words = arguments.images
    if not any(map(is_collection, words)):
        return None
    if len(words) == 1:
        raise ConfigError(
            f"{printable(words[0])} holds any number of pictures: say in which folder the results are to be, as in "
            f"`visglm describe {printable(words[0])} RESULTS`."
        )
    if len(words) > 2 or not is_collection(words[0]):
        raise ConfigError(
            "what holds many pictures is given alone, with the folder of the results behind it. For several files give "
            "the folder that they are in, or a pattern in quotes, such as 'shards/*.tar'."
        )
    if arguments.json:
        raise ConfigError("--json is for answers that are printed. Into a folder, --format jsonl writes them.")
    if words[0].lower().startswith(("http://", "https://")):
        raise ConfigError(
            f"{printable(words[0])} holds pictures, and is not looked into from here. Download it, and name the file."
        )
    if same_place(*words):
        raise ConfigError(
            f"the results must go into a folder of their own; got {printable(words[0])} for both. Take one below it, "
            f"such as {printable(words[0].rstrip('/'))}/answers: it is left out of the pictures."
        )
    return words[0], words[1]


def same_place(source: str, target: str) -> bool:
    from ..describe import is_address

    if is_address(source) or is_address(target):
        return source.rstrip("/") == target.rstrip("/")
    return os.path.realpath(source) == os.path.realpath(target)


def write_all(arguments: argparse.Namespace, source: str, target: str, question: str, settings: dict[str, Any]) -> int:
    """Describe what is missing in the folder `target`, shard by shard."""
    from tqdm import tqdm

    from ..describe import Results, Task, describe, find, is_address, missing, to_shards

    task = Task(question, settings)
    where = source if is_address(source) else os.path.abspath(source)
    results = Results(target if is_address(target) else os.path.abspath(target), arguments.format)
    try:
        results.begin(facts_of(arguments, where, task))
        done = results.done()
        if done.count:
            show_status(f"{counted(done.count, 'picture is', 'pictures are')} done already.")
        wanted = missing(find(where, target), done, image_limits(arguments).max_bytes)
        number, tally = results.num_shards(), Tally(arguments.flags)
        vlm = None
        with tqdm(unit="picture", initial=done.count, file=sys.stderr) as bar:
            if arguments.ray is not None:
                write_by_ray(arguments, to_shards(wanted, arguments.shard_size), number, task, results, tally, bar)
                wanted = iter(())
            for items in to_shards(wanted, arguments.shard_size):
                vlm = vlm or load_model(arguments)  # where nothing is missing, it is not needed
                rows: list[Any] = []
                try:
                    for some in describe(vlm, items, task):
                        rows += some
                        bar.update(len(some))
                finally:  # also where it ends here
                    if rows:
                        results.write(number, rows)
                tally.add(rows)
                number += 1
    finally:
        results.close()
    return tally.tell(target)


def write_by_ray(
    arguments: argparse.Namespace, shards: Any, number: int, task: Any, results: Any, tally: Tally, bar: Any
) -> None:
    from ..cluster import Recipe, joined
    from ..describe import spread

    with joined(arguments.ray, arguments.workers) as share:
        recipe = Recipe.of(options_of(arguments))
        for count, failed in spread(shards, number, recipe, task, results, arguments.workers, share):
            tally.add(failed, count)
            bar.update(count)


class Tally:
    """How it went; tells the first errors as they come."""

    def __init__(self, flags: dict[str, str]):
        self.flags, self.num_rows, self.num_failed = flags, 0, 0

    def add(self, rows: Sequence[dict[str, Any]], count: int | None = None) -> None:
        """Rows; or of so many pictures those that failed."""
        self.num_rows += len(rows) if count is None else count
        for row in rows:
            if row["error"] is not None:
                self.num_failed += 1
                if self.num_failed <= SHOWN:
                    show(f"visglm: {printable(row['image'])}: {in_flags(row['error'], self.flags)}", sys.stderr)

    def tell(self, target: str) -> int:
        """Sum up; the exit status."""
        were = counted(self.num_rows, "picture was", "pictures were")
        show_status(f"{were} described now, into {printable(target)}.")
        if self.num_failed:
            show_status(
                f"visglm: {self.num_failed:,} of them could not be; their rows there say why. What could not be read "
                "is tried again when this is started again."
            )
        return FAILED if self.num_failed else 0


def facts_of(arguments: argparse.Namespace, source: str, task: Any) -> dict[str, Any]:
    """What must be the same where a run goes on; of settings those that were set, as a later version has more."""
    from ..cluster import whole

    usual = {"batch_size": arguments.batch_size, **settings_of(Sampling())}
    settings = {name: value for name, value in task.settings.items() if name not in usual or usual[name] != value}
    model = whole(options_of(arguments)["name_or_path"]) or "visglm-tiny"  # from wherever it is started
    return {"source": source, "model": model, "question": task.question, "settings": settings}


def print_all(arguments: argparse.Namespace, question: str, settings: dict[str, Any]) -> int:
    from ..reply import why_unanswered

    vlm = load_model(arguments)
    num_failed = 0
    for path, reply in one_by_one(vlm, arguments.images, question, settings):
        problem = str(reply) if isinstance(reply, VisGLMError) else why_unanswered(reply)
        num_failed += bool(problem)
        if arguments.json:
            row = {"image": path, **({"error": problem} if problem else {"text": str(reply)})}
            show(json.dumps(row, ensure_ascii=False), sys.stdout)
        elif problem:
            named = "" if isinstance(reply, ImageError) else f"{printable(path)}: "  # which name it themselves
            show(f"visglm: {named}{in_flags(problem, arguments.flags)}", sys.stderr)
        else:
            show(f"{path}: {reply}" if len(arguments.images) > 1 else str(reply), sys.stdout)
    if num_failed:
        show_status(f"visglm: {num_failed} of {counted(len(arguments.images), 'picture')} could not be described.")
    return FAILED if num_failed else 0


def one_by_one(
    vlm: VisGLM, paths: Sequence[str], prompt: str, settings: dict[str, Any]
) -> Iterator[tuple[str, Reply | VisGLMError]]:
    """Each path with its reply or what was wrong with it, batch by batch: pictures are not kept beyond theirs."""
    from tqdm import tqdm

    size = settings["batch_size"]
    with tqdm(total=len(paths), unit="picture", file=sys.stderr) as bar:
        for start in range(0, len(paths), size):
            batch = paths[start : start + size]
            replies = vlm.batch([(path, prompt) for path in batch], on_error="return", progress=False, **settings)
            bar.update(len(batch))
            yield from zip(batch, replies, strict=True)


def show(line: str, file: TextIO) -> None:
    """Print without tearing the progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=file)
    file.flush()
