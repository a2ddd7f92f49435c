"""`visglm library`: documents and pictures that are found again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, LibraryError, counted, printable
from ..settings import Rule, check_call
from .flags import add_ray, show_status

if TYPE_CHECKING:
    from ..chat import VisGLM
    from ..library import Changes, Library

FAILED = 3  # exit status when some files could not be read, as of `visglm data`
MAX_SHOWN = 20  # files that were skipped
MAX_TEXT = 160  # characters of what was found
RULES = {"workers": Rule(int, 1, 4096)}


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    helps = {
        "add": "read files and folders into the library; it is made where there is none",
        "sync": "make the library hold what a folder holds now: new, changed, moved and deleted files",
        "remove": "take files or folders out of the library; they stay where they are",
        "search": "find texts by words and meaning, pictures by what they show",
        "list": "what is in the library, and what could not be read",
        "compact": "remove deleted texts from the library's files, too",
    }
    found = {name: actions.add_parser(name, help=text, description=text) for name, text in helps.items()}
    for action in found.values():
        action.add_argument("library", metavar="LIBRARY", help="its folder; the ending .library may be left out")
    for name in ("add", "remove"):
        found[name].add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files and folders")
    found["sync"].add_argument("folder", type=Path, metavar="FOLDER", help="the folder")
    for name in ("add", "sync"):
        found[name].add_argument(
            "--no-vectors", action="store_true", help="find texts by their words alone: much sooner"
        )
        found[name].add_argument(
            "--reader", metavar="PATH", help="folder or hub id of a model of GLM-OCR's family, which reads scans and "
            "what is written in pictures (default: RapidOCR, where the extra ocr is installed)",
        )  # fmt: skip
    group = found["sync"].add_argument_group("reading by more than one process or machine (extra ray)")
    add_ray(group)
    group.add_argument("--workers", type=int, default=1, metavar="INT", help="processes that read (default: 1)")
    search = found["search"]
    search.add_argument("query", nargs="?", default="", metavar="QUERY", help="words or a question")
    search.add_argument("--image", metavar="PATH", help="a picture to look for")
    search.add_argument("--limit", type=int, default=10, metavar="INT", help="how many, at most (default: 10)")
    add_filters(search)
    for name in ("search", "list"):
        found[name].add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.epilog = f"Exit status: 0 when all went well, {FAILED} when some files could not be read, 1 on an error."


def add_filters(parser: argparse.ArgumentParser) -> None:
    """What may be found."""
    parser.add_argument(
        "--files", action="append", metavar="PATTERN", help="only in such files: '*.pdf', 'reports/*'; may be repeated"
    )
    parser.add_argument("--kind", choices=("text", "picture"), dest="kinds", help="only texts, or only pictures")


def run(arguments: argparse.Namespace) -> int:
    return ACTIONS[arguments.action](arguments)


def open_library(arguments: argparse.Namespace, create: bool = False) -> Library:
    """The library that a command names."""
    from ..library import Library

    reader = None if getattr(arguments, "reader", None) is None else load_reader(arguments.reader)
    return Library.open(
        arguments.library, create=create, vectors=not getattr(arguments, "no_vectors", False), reader=reader
    )


def load_reader(name: str) -> VisGLM:
    """The model that reads scans; before it is loaded, one that does not is told."""
    from ..checkpoint import open_source
    from ..families import check_can

    check_can(open_source(name).config, "read")
    show_status(f"Loading {printable(name)} …")
    from ..chat import VisGLM

    return VisGLM.from_pretrained(name)


def add(arguments: argparse.Namespace) -> int:
    missing = [path for path in arguments.paths if not path.exists()]
    if missing:  # before a library is made for nothing
        raise LibraryError(f"{printable(str(missing[0]))} does not exist. Nothing was added.")
    library = open_library(arguments, create=True)
    return report(library, library.add(arguments.paths))


def sync(arguments: argparse.Namespace) -> int:
    if not arguments.folder.is_dir():
        raise LibraryError(f"{printable(str(arguments.folder))} is no folder. Nothing was changed.")
    check_call(RULES, workers=arguments.workers)
    if arguments.workers > 1 and arguments.ray is None:
        raise ConfigError("--workers are processes of Ray: add --ray local, or the address of a cluster.")
    library = open_library(arguments, create=True)
    if arguments.ray is None:
        return report(library, library.sync(arguments.folder))
    return report(library, sync_by_ray(arguments, library))


def sync_by_ray(arguments: argparse.Namespace, library: Library) -> Changes:
    from ..cluster import joined
    from ..indexing import spread

    with joined(arguments.ray, arguments.workers) as share:
        read = spread(library.indexer, arguments.workers, share, arguments.reader)
        return library.sync(arguments.folder, progress=False, read=read)


def report(library: Library, changes: Changes) -> int:
    """Say what was done; what was skipped goes to stderr."""
    show(f"{library.path}: {changes}.")
    skipped = sorted(changes.skipped.items())
    for source, problem in skipped[:MAX_SHOWN]:
        show_status(printable(f"skipped {source}: {problem}"))
    if len(skipped) > MAX_SHOWN:
        show_status(f"… and {len(skipped) - MAX_SHOWN} more: visglm library list has them all.")
    if changes.ignored:
        kinds = counted(changes.ignored, "file is of a kind that is", "files are of kinds that are")
        show_status(f"{kinds} not read.")
    return FAILED if skipped else 0


def remove(arguments: argparse.Namespace) -> int:
    library = open_library(arguments)
    removed = library.remove(arguments.paths)
    show(f"{library.path}: {len(removed)} removed.")
    return 0


def search(arguments: argparse.Namespace) -> int:
    if not arguments.query.strip() and arguments.image is None:
        raise LibraryError("there is nothing to look for. Give words, or a picture with --image.")
    library = open_library(arguments)
    hits = library.search(
        arguments.query, image=None if arguments.image is None else Path(arguments.image), limit=arguments.limit,
        files=arguments.files, kinds=arguments.kinds,
    )  # fmt: skip
    for hit in hits:
        if arguments.json:
            show(json.dumps(asdict(hit), ensure_ascii=False))
        else:
            text = " ".join(hit.text.split())
            show(f"{place(hit)}: {text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + '…'}")
    if not hits:
        show_status("Nothing was found.")
    return 0


def place(found: Any) -> str:
    """Such as `manual.pdf, page 3`."""
    page = f", page {found.page}" if found.page else ""
    return f"{found.source}{page}"


def show_list(arguments: argparse.Namespace) -> int:
    library = open_library(arguments)
    entries = library.list()
    for entry in entries:
        if arguments.json:
            show(json.dumps(asdict(entry), ensure_ascii=False))
        else:
            found = f"not read, {entry.problem}" if entry.problem else counted(entry.num_parts, "part")
            show(f"{entry.source}: {found}")
    stats = library.stats()
    size = "" if stats.num_bytes is None else f", {stats.num_bytes / 1e6:,.1f} MB"
    counts = {"document": stats.documents, "part": stats.parts, "picture": stats.pictures}
    show_status(", ".join(counted(number, name) for name, number in counts.items()) + f"{size}.")
    return 0


def compact(arguments: argparse.Namespace) -> int:
    library = open_library(arguments)
    library.compact()
    size = library.stats().num_bytes
    show(f"{library.path}: compacted." if size is None else f"{library.path}: {size:,} bytes.")
    return 0


def show(text: str) -> None:
    """Print a line, of which foreign text is a part."""
    print(printable(text))


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "add": add, "sync": sync, "remove": remove, "search": search, "list": show_list, "compact": compact,
}  # fmt: skip
