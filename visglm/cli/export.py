"""`visglm export SRC DST`: a model as ONNX graphs beside its weights."""

from __future__ import annotations

import argparse

from .flags import BASE_HELP, over, show_status


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="folder or hub id of a model or an adapter, in any format")
    parser.add_argument("folder", metavar="DST", help="folder to write; it appears whole or not at all")
    parser.add_argument("--quantize", metavar="SCHEME", help="int8 or int4 for the text model (default: as it is)")
    parser.add_argument("--adapter", metavar="PATH", help="what fine-tuning made over SRC; it becomes part of it")
    parser.add_argument("--base", metavar="PATH", help=BASE_HELP)
    parser.add_argument("--tokenizer", metavar="PATH", help="folder of the tokenizer, if the checkpoint comes without")


def run(arguments: argparse.Namespace) -> int:
    from .. import checkpoint
    from ..export import export

    name, base = arguments.source, arguments.base
    if arguments.adapter is not None:
        name, base = over(arguments.adapter, arguments.source, base, "SRC")
    source = checkpoint.open_source(name, arguments.tokenizer, base)
    checkpoint.refuse_source(arguments.folder, source.path, source.weights_path)
    export(source, arguments.folder, arguments.quantize)
    bits = f" in {arguments.quantize}" if arguments.quantize else ""
    show_status(f"{arguments.folder}: graphs and weights{bits}. Try: visglm-light --model {arguments.folder}")
    return 0
