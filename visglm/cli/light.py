"""`visglm-light`: as `visglm chat --light`, also where visglm is installed without torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import PACKAGE, run_parsed
from .advice import flags_of
from .chat import configure, run


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `visglm chat` that are not for torch."""
    parser = argparse.ArgumentParser(prog="visglm-light", description="Ask about pictures, without torch.")
    parser.add_argument("--version", action="version", version=f"visglm {sys.modules[PACKAGE].__version__}")
    configure(parser, is_light=True)
    parser.set_defaults(flags=flags_of(parser))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. The status is as of `visglm`."""
    return run_parsed(build_parser(), list(sys.argv[1:] if arguments is None else arguments), run)
