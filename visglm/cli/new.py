"""`visglm new DST --preset visualglm-6b --random`: random weights of any size, to see what that size costs."""

from __future__ import annotations

import argparse

from .flags import show_status


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DST", help="folder to write; it appears whole or not at all")
    parser.add_argument("--preset", required=True, metavar="NAME", help="of the sizes, such as visualglm-6b")
    parser.add_argument("--random", action="store_true", required=True, help="random weights; there are no others")
    parser.add_argument("--seed", type=int, default=0, metavar="INT", help="of the weights (default: 0)")
    parser.add_argument("--quantize", metavar="SCHEME", help="write them as int8, int4 or nf4")
    parser.add_argument("--layout", choices=("native", "hf-legacy"), default="native", help="default: native")
    parser.epilog = (
        "The tokenizer is the embedded model's. Weights are float16: VisualGLM-6B takes 15.6 GB, in int4 6 GB."
    )


def run(arguments: argparse.Namespace) -> int:
    from .. import checkpoint

    source: checkpoint.Source = checkpoint.RandomSource(arguments.preset, checkpoint.EMBEDDED_MODEL, arguments.seed)
    if arguments.quantize is not None:
        source = checkpoint.QuantizedSource(source, arguments.quantize)
    checkpoint.convert(source, arguments.folder, arguments.layout)
    infos = source.keys().values()
    show_status(f"{arguments.folder}: {len(infos)} tensors, {sum(info.num_bytes for info in infos) / 1e9:.2f} GB.")
    return 0
