"""The command line: one table of commands. `visglm` and `python -m visglm` are the same.

A command is a row of `COMMANDS` and a module of that name here, with `configure(parser)`, which declares the arguments,
and `run(arguments)`, which does the work and returns the exit status. Only the command that was named is imported, and
what is heavy (torch, the package's own modules) only inside `run`, so that every `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import PicturesWarning, VisGLMError
from .advice import flags_of, in_flags

PACKAGE = __name__.partition(".")[0]

# Name → one line of help, in the order `visglm --help` lists them.
COMMANDS: dict[str, str] = {
    "chat": "ask about pictures, once or in a conversation",
    "describe": "describe many pictures",
    "read": "read scans: pages of pictures and PDFs as Markdown",
    "ask": "answer from a library of documents and pictures, with sources",
    "library": "keep a library of documents and pictures, and search it",
    "finetune": "teach a model your own pictures and captions",
    "evaluate": "score answers to the questions of a data set",
    "data": "check and convert training data",
    "serve": "answer over HTTP, for every client that speaks OpenAI's protocol",
    "app": "open the page in the browser",
    "web": "serve the page that answers in the browser alone",
    "merge": "make one model of an adapter and its base",
    "convert": "turn a checkpoint of another format into visglm's, or back",
    "quantize": "write a checkpoint in 8 or 4 bits",
    "export": "write a model that answers without torch, on any CPU and in a browser",
    "estimate": "say what a model costs in disk and memory, before loading it",
    "new": "write a checkpoint of random weights",
    "doctor": "check this installation",
}


def build_parser(named: str | None) -> argparse.ArgumentParser:
    """The parser of the whole command line, in which only the command `named` knows its arguments."""
    parser = argparse.ArgumentParser(prog="visglm", description="Chat about images in Chinese and English.")
    parser.add_argument("--version", action="version", version=f"visglm {sys.modules[PACKAGE].__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, help_line in COMMANDS.items():
        subparser = commands.add_parser(name, help=help_line, description=help_line[0].upper() + help_line[1:] + ".")
        if name == named:
            importlib.import_module(f".{name}", __name__).configure(subparser)
            subparser.set_defaults(flags=flags_of(subparser))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Status 0: done; 1: an error, told in one paragraph on stderr; 2: wrong usage; 130: Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser(next((word for word in words if not word.startswith("-")), None))
    return run_parsed(parser, words, lambda parsed: importlib.import_module(f".{parsed.command}", __name__).run(parsed))


def run_parsed(parser: argparse.ArgumentParser, words: Sequence[str], run: Callable[[argparse.Namespace], int]) -> int:
    """What the words on a command line ask for; `run` does it. The status is as of `main`."""
    if sys.stderr is None:  # `2>&-` in a shell; what is printed there would be among the answers
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (to the end)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does: a name or an answer that the terminal's encoding lacks is no reason to stop half-way.
        sys.stdout.reconfigure(errors="backslashreplace")
    parsed = parser.parse_args(words)
    warnings.showwarning = show_warning  # type: ignore[assignment]
    warnings.simplefilter("always", PicturesWarning)  # each answer that it is about
    try:
        return run(parsed)
    except VisGLMError as error:
        print(f"{parser.prog}: {in_flags(str(error), parsed.flags)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    """Ours as a sentence; others' as Python writes them."""
    ours = Path(filename).is_relative_to(Path(__file__).parents[1])
    text = f"visglm: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno)
    sys.stderr.write(text)
