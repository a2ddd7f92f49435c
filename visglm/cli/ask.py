"""`visglm ask`: an answer from a library of documents and pictures, or from the web, and where it comes from."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import ConfigError, printable
from ..sampling import Sampling
from .flags import add_language, add_model, add_settings, load_model, read_settings, settings_of, show_status
from .library import add_filters, place

MAX_QUOTE = 200  # characters


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", metavar="QUESTION", help="what to answer")
    parser.add_argument(
        "--library", metavar="LIBRARY", help="the library's folder; the ending .library may be left out"
    )
    parser.add_argument(
        "--web", action="store_true", help="ask the web: the question goes to a search engine, whose finds are fetched"
    )
    parser.add_argument(
        "--searcher", metavar="NAME", help="which: the address of a SearXNG, brave, tavily, serper or ddgs (default: "
        "the first that the environment names, by VISGLM_SEARXNG, BRAVE_API_KEY, TAVILY_API_KEY or SERPER_API_KEY)",
    )  # fmt: skip
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
    if (arguments.library is None) == (not arguments.web):
        raise ConfigError("an answer comes from a library or from the web: give --library or --web.")
    if arguments.searcher is not None and not arguments.web:
        raise ConfigError("--searcher names what --web asks. Give --web, too.")
    from ..library import Library
    from ..library.searchers import choose

    # Before the model: what is wrong is told.
    library = None if arguments.web else Library.open(arguments.library, create=False)
    if arguments.web:
        choose(arguments.searcher)
    vlm = load_model(arguments)
    reply = vlm.ask(
        arguments.question, library=library, web=arguments.web and (arguments.searcher or True),
        images=None if arguments.image is None else Path(arguments.image),
        limit=arguments.limit, language=arguments.language, files=arguments.files, kinds=arguments.kinds,
        **settings_of(sampling),
    )  # fmt: skip
    for source, problem in reply.skipped.items():
        show_status(printable(f"skipped {source}: {problem}"))
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
