"""`visglm quantize SRC DST --scheme int4`: a checkpoint in fewer bits."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="folder of the checkpoint; it is left as it is")
    parser.add_argument("destination", metavar="DST", help="folder to write; it must be empty or new")
    parser.add_argument("--scheme", required=True, help="int8, int4, or nf4 (for fine-tuning)")
    parser.add_argument("--vision", action="store_true", help="quantize the ViT and the Q-Former too")


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from ..chat import VisGLM
    from ..errors import ConfigError

    destination = Path(arguments.destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConfigError(f"{destination} exists and is not an empty folder; nothing is overwritten. Name another one.")
    vlm = VisGLM.from_pretrained(
        arguments.source, device="cpu", quantize=arguments.scheme, quantize_vision=arguments.vision
    )
    vlm.save_pretrained(destination)
    size = sum(file.stat().st_size for file in destination.iterdir())
    print(f"{destination}: {arguments.scheme}, {size / 1e9:.2f} GB")
    return 0
