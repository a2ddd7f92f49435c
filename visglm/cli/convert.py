"""`visglm convert`: a checkpoint of any format visglm reads into one of three."""

from __future__ import annotations

import argparse
import shlex

from .flags import refuse_adapter, show_status

FORMATS = ("native", "hf-legacy", "sat")  # checkpoint.EXPORTS, which --help must not wait for


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="folder or hub id of the checkpoint")
    parser.add_argument("folder", metavar="DST", help="folder to write; it appears whole or not at all")
    parser.add_argument(
        "--to",
        choices=FORMATS,
        default="native",
        help="native (what visglm saves), hf-legacy (THUDM/visualglm-6b), sat (SwissArmyTransformer); default: native",
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="folder of the tokenizer, if the checkpoint comes without")


def run(arguments: argparse.Namespace) -> int:
    refuse_adapter(arguments.source, f"visglm convert MERGED {shlex.quote(arguments.folder)} --to {arguments.to}")
    from .. import checkpoint

    source = checkpoint.open_source(arguments.source, arguments.tokenizer)
    checkpoint.convert(source, arguments.folder, arguments.to)
    show_status(f"{arguments.folder}: {len(source.keys())} tensors from {source.format} to {arguments.to}.")
    return 0
