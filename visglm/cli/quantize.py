"""`visglm quantize SRC DST --scheme int4`: a checkpoint in fewer bits, one weight at a time."""

from __future__ import annotations

import argparse
import shlex

from .flags import refuse_adapter, show_status


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="folder or hub id of the checkpoint, in any format; it stays")
    parser.add_argument("folder", metavar="DST", help="folder to write; it appears whole or not at all")
    parser.add_argument("--scheme", required=True, help="int8, int4, or nf4 (for fine-tuning)")
    parser.add_argument("--vision", action="store_true", help="pack the ViT and the Q-Former too")
    parser.add_argument("--tokenizer", metavar="PATH", help="folder of the tokenizer, if the checkpoint comes without")


def run(arguments: argparse.Namespace) -> int:
    refuse_adapter(
        arguments.source, f"visglm quantize MERGED {shlex.quote(arguments.folder)} --scheme {arguments.scheme}"
    )
    from .. import checkpoint

    source = checkpoint.open_source(arguments.source, arguments.tokenizer)
    packed = checkpoint.QuantizedSource(source, arguments.scheme, arguments.vision)
    checkpoint.convert(packed, arguments.folder, "native")
    size = sum(info.num_bytes for info in packed.keys().values())
    show_status(f"{arguments.folder}: {arguments.scheme}, {size / 1e9:.2f} GB of weights.")
    return 0
