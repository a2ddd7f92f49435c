"""`visglm ask`: an answer from a library of documents and pictures, and where it comes from."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import printable
from ..sampling import Sampling
from .flags import add_language, add_model, add_settings, load_model, read_settings, settings_of
from .library import add_filters, place

MAX_QUOTE = 200  # characters


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", metavar="QUESTION", help="what to answer")
    parser.add_argument(
        "--library", required=True, metavar="LIBRARY", help="its folder; the ending .library may be left out"
    )
    parser.add_argument("--image", metavar="PATH", help="a picture to look for, besides the words")
    parser.add_argument("--limit", type=int, default=3, metavar="INT", help="sources of the answer (default: 3)")
    parser.add_argument("--json", action="store_true", help='print one JSON object: {"text", "citations"}')
    add_filters(parser)
    add_language(parser)
    add_settings(parser, Sampling, "answers, of a model that writes them")
    add_model(parser)
    parser.epilog = "Exit status: 0 when there is an answer or nothing was found, 1 on an error."


def run(arguments: argparse.Namespace) -> int:
    sampling = read_settings(arguments, Sampling)
    from ..library import Library

    library = Library.open(arguments.library, create=False)  # before the model: what is wrong is told
    vlm = load_model(arguments)
    reply = vlm.ask(
        arguments.question, library=library, images=None if arguments.image is None else Path(arguments.image),
        limit=arguments.limit, language=arguments.language, files=arguments.files, kinds=arguments.kinds,
        **settings_of(sampling),
    )  # fmt: skip
    if arguments.json:
        print(json.dumps({"text": reply.text, "citations": list(map(asdict, reply.citations))}, ensure_ascii=False))
        return 0
    print("\n".join(map(printable, reply.text.split("\n"))))
    for citation in reply.citations:
        print(printable(f"[{citation.number}] {where(citation)}"))
    return 0


def where(citation: Any) -> str:
    """The source of a citation, down to the box."""
    box = "" if citation.box is None or citation.kind == "picture" else f" at {shares(citation.box)}"
    heading = f" ({citation.heading})" if citation.heading else ""
    return f"{place(citation)}{box}{heading}"


def shares(box: tuple[float, ...]) -> str:
    """A box in hundredths of the page: left, top, right, bottom."""
    return ",".join(f"{100 * number:.0f}" for number in box) + " %"
