"""`visglm estimate PATH|PRESET`: what a model costs in disk and memory, before anything is loaded."""

from __future__ import annotations

import argparse

from .flags import BASE_HELP


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="PATH|PRESET", help="folder, hub id, or the name of a preset")
    parser.add_argument("--base", metavar="PATH", help=BASE_HELP)
    parser.add_argument("--quantize", metavar="SCHEME", help="int8, int4 or nf4")
    parser.add_argument("--quantize-vision", action="store_true", help="pack the ViT and the Q-Former too")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda …")
    parser.add_argument("--answers", type=int, metavar="COUNT", help="at a time (default: one)", default=1)
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")


def run(arguments: argparse.Namespace) -> int:
    from .. import checkpoint
    from ..adapters import EMBEDDED
    from ..config import PRESETS
    from ..engine import slots_for
    from ..settings import Rule, check_call

    source: checkpoint.Source
    if arguments.model == EMBEDDED:  # a preset, too, but this one is here
        source = checkpoint.open_source(checkpoint.EMBEDDED_MODEL)
    elif arguments.model in PRESETS:
        source = checkpoint.RandomSource(arguments.model, checkpoint.EMBEDDED_MODEL)
    else:
        source = checkpoint.open_source(arguments.model, base=arguments.base)
    quantization = checkpoint.choose_quantization(source, arguments.quantize, arguments.quantize_vision)
    device = checkpoint.pick_device(arguments.device)
    dtype = arguments.dtype
    if dtype == "auto":
        dtype = checkpoint.pick_dtype(device, checkpoint.count_parameters(source))
    check_call({"answers": Rule(int, 1, 1024)}, answers=arguments.answers)
    found = checkpoint.estimate(source, quantization, device, checkpoint.torch_dtype(dtype), arguments.answers)
    scheme = quantization.scheme if quantization is not None else "not quantized"
    print(f"{arguments.model}: {scheme}, computed in {dtype} on {device}; in GB")
    print(f"{'':12}{'disk':>10}{'resident':>10}{'activations':>13}")
    columns = (found.disk, found.resident, found.activations)
    for part in dict.fromkeys(name for column in columns for name in column):
        disk, resident, activations = (column.get(part, 0) / 1e9 for column in columns)
        print(f"{part:12}{disk:10.3f}{resident:10.3f}{activations:13.3f}")
    disk, resident, activations = (sum(column.values()) / 1e9 for column in columns)
    print(f"{'together':12}{disk:10.3f}{resident:10.3f}{activations:13.3f}")
    print(f"{'load peak':12}{'':10}{found.load_peak / 1e9:10.3f}")
    if (room := found.room) is not None:
        count = room.most if room.least == room.most else f"{room.least} to {room.most}, by its size,"
        print(f"a picture takes {count} of the context's tokens")
    text = source.config.text_config
    at_a_time = slots_for(text, checkpoint.torch_dtype(dtype).itemsize, device, sum(found.resident.values()))
    print(f"answers of {text.max_position_embeddings} tokens that fit at a time, with the memory free now: {at_a_time}")
    return 0
