"""`visglm merge SRC DST`: an adapter and its base as one model."""

from __future__ import annotations

import argparse

from .flags import BASE_HELP, show_status


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="folder or hub id of the adapter; it stays")
    parser.add_argument("folder", metavar="DST", help="folder to write, another one; it appears whole or not at all")
    parser.add_argument("--base", metavar="PATH", help=BASE_HELP)
    parser.add_argument("--tokenizer", metavar="PATH", help="folder of the tokenizer, if the base comes without")
    parser.add_argument("--dtype", default="auto", help="auto (that of the base), float32, bfloat16 or float16")


def run(arguments: argparse.Namespace) -> int:
    from .. import checkpoint
    from ..errors import ConfigError

    source = checkpoint.open_source(arguments.source, arguments.tokenizer, arguments.base)
    delta = source.delta()
    if delta is None:
        raise ConfigError(f"{arguments.source} holds no adapter, so there is nothing to merge.")
    checkpoint.refuse_source(arguments.folder, source.path, source.weights_path)
    dtype = arguments.dtype if arguments.dtype != "auto" else checkpoint.stored_dtype(source)
    loaded = checkpoint.realize(source, device="cpu", dtype=dtype)
    loaded.adapters.merge()
    checkpoint.save(loaded.adapters, loaded.processor, arguments.folder)
    show_status(f"{arguments.folder}: {delta.method} and its base in one, {dtype}.")
    return 0
