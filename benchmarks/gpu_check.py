"""A GPU, looked at in a few minutes: right first, then how fast, beside what its memory allows.

    make gpu-check

VisualGLM-6B's shapes with random weights, made once and packed on the device. For each of bfloat16, int8, int4 and nf4:
the products beside those of the unpacked weight and greedy tokens beside those of `generate`; then tokens a second of
one answer beside the limit of the bandwidth, which is measured, a prompt, pictures, 16 clients, and memory. Last, steps
a second of QLoRA. `--preset visglm-tiny --device cpu` goes the same way in a minute, to try the script itself.
"""

from __future__ import annotations

import argparse
import copy
import gc
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from visglm import VisGLM, checkpoint
from visglm.quant import Quantization, QuantizedLinear, quantize_network

SCHEMES = (None, "int8", "int4", "nf4")
BAR = 0.8  # of the bandwidth, in bfloat16, one row
CLIENTS = 16
QUESTION = "What is this?"


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """The shortest of some runs, after one that is not counted."""
    found = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def bandwidth(device: torch.device) -> float:
    """Bytes per second, of a sum or of a copy, which counts twice: whatever is faster here."""
    numbers = torch.rand((1024 if device.type == "cuda" else 64) * 2**20, device=device).bfloat16()
    other = torch.empty_like(numbers)
    read, copied = seconds(numbers.sum, device), seconds(lambda: other.copy_(numbers), device)
    return max(numbers.nbytes / read, 2 * numbers.nbytes / copied)


def load(preset: str, device: torch.device) -> VisGLM:
    source = checkpoint.RandomSource(preset, checkpoint.EMBEDDED_MODEL, dtype=torch.bfloat16)
    loaded = checkpoint.realize(source, device=device, dtype="bfloat16")
    return VisGLM(loaded.model, loaded.processor, adapters=loaded.adapters)


def packed(vlm: VisGLM, scheme: str | None) -> VisGLM:
    """A copy of it in fewer bits."""
    if scheme is None:
        return vlm
    network = copy.deepcopy(vlm.model)
    quantize_network(network, Quantization.choose(scheme, network.config))
    return VisGLM(network, vlm.processor)


def product_gaps(vlm: VisGLM) -> dict[str, float]:
    """By name of the product, the largest gap to the unpacked weight's, as a share of the largest number."""
    found: dict[str, float] = {}
    for module in vlm.model.modules():
        if isinstance(module, QuantizedLinear):
            name = type(module.product).__name__ if module.product is not None else "unpacking"
            hidden_states = torch.randn(1, 1, module.in_features, device=vlm.device).bfloat16()
            with torch.no_grad():
                output, product = module(hidden_states).float(), module.product
                module.product = None
                wanted = module(hidden_states).float()
                module.product = product
            found[name] = max(found.get(name, 0.0), float((output - wanted).abs().max() / wanted.abs().max()))
    return found


def same_tokens(vlm: VisGLM, picture: Image.Image, count: int) -> int:
    """How many greedy tokens from the first on are those of `generate`."""
    reply = vlm.chat(picture, QUESTION, max_new_tokens=count, min_new_tokens=count)
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    inputs = vlm.processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        output = vlm.model.generate(
            **inputs.to(vlm.device), max_new_tokens=count, min_new_tokens=count, do_sample=False
        )
    wanted = output[0, inputs["input_ids"].shape[1] :].tolist()
    return next((place for place, pair in enumerate(zip(reply.ids, wanted, strict=False)) if pair[0] != pair[1]), count)


def bytes_per_token(vlm: VisGLM) -> int:
    """Of weights that are read: layers and head."""
    return sum(
        tensor.nbytes
        for part in (vlm.model.model.text.layers, vlm.model.lm_head)
        for tensor in part.state_dict().values()
    )


def pace(vlm: VisGLM, picture: Image.Image, clients: int, count: int) -> float:
    """Tokens a second of so many answers together, the first token left out; drawn, so that none is foreseen."""
    settings: dict[str, Any] = {"max_new_tokens": count, "min_new_tokens": count, "temperature": 1.0}
    found = []
    for seed in range(3):
        replies = vlm.batch([(picture, QUESTION)] * clients, batch_size=clients, progress=False, seed=seed, **settings)
        found.append(clients * (count - 1) / max(reply.timings.total - reply.timings.first_token for reply in replies))
    return max(found)


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def look_at(vlm: VisGLM, name: str, rate: float, count: int, beside: int) -> None:
    """Args: beside: bytes in memory that are none of its own."""
    picture, device = Image.new("RGB", (224, 224), "red"), vlm.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    gaps = ", ".join(f"{product} {gap:.2%}" for product, gap in product_gaps(vlm).items()) or "–"
    same = same_tokens(vlm, picture, count)
    one, limit = pace(vlm, picture, 1, count), rate / bytes_per_token(vlm)
    many = pace(vlm, picture, CLIENTS, count)
    vlm.engine.looker.num_bytes = 0
    first = min(
        (vlm.chat(picture, QUESTION, max_new_tokens=1).timings for _ in range(4)), key=lambda found: found.encode
    )
    memory = f"{(torch.cuda.max_memory_allocated(device) - beside) / 1e9:.1f} GB" if device.type == "cuda" else "–"
    row(
        name, gaps, f"{same} of {count}", f"{one:.1f}", f"{limit:.1f}", f"{one / limit:.0%}", f"{many:.0f}",
        f"{first.encode * 1e3:.0f} ms", f"{first.first_token * 1e3:.0f} ms", memory,
    )  # fmt: skip
    if name == "bfloat16":
        print(f"  (bar: {BAR:.0%} of the bandwidth at one row: {'kept' if one / limit >= BAR else 'missed'})")


def qlora(vlm: VisGLM) -> float:
    """Steps a second, of which the first few do not count."""
    rows = [
        {"image": Image.new("RGB", (224, 224), colour), "caption": f"It is {colour}."} for colour in ("red", "blue")
    ]
    settings: dict[str, Any] = {
        "method": "qlora", "batch_size": 2, "num_workers": 0, "held_out": 0.0, "num_samples": 0, "report_to": "none",
    }  # fmt: skip
    times = []
    for steps in (2, 10):
        start = time.perf_counter()
        vlm.finetune(rows, output_dir=f"build/gpu-check-{steps}", max_steps=steps, every=steps, **settings)
        wait(vlm.device)
        times.append(time.perf_counter() - start)
        vlm.adapters.remove(vlm.adapters.names[0])
    return 8 / (times[1] - times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="visualglm-6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--without-training", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here, or this torch was built without CUDA: nothing was looked at.")
    started = time.perf_counter()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rate = bandwidth(device)
    print(f"{name}, torch {torch.__version__}, bandwidth {rate / 1e9:.0f} GB/s; {arguments.preset}, random\n")
    many = f"{CLIENTS} clients, tokens/s"
    titles = ("", "products off by", "tokens of generate", "tokens/s", "limit", "share", many, "picture", "prompt")
    row(*titles, "peak memory")
    row(*["---"] * 10)
    warnings.simplefilter("once")
    whole = load(arguments.preset, device)
    for scheme in SCHEMES:
        vlm = packed(whole, scheme)
        beside = 0 if scheme is None else sum(tensor.nbytes for tensor in whole.model.state_dict().values())
        look_at(vlm, scheme or "bfloat16", rate, arguments.tokens, beside)
        if scheme == "nf4" and not arguments.without_training:
            print(f"\nQLoRA, 2 rows a step: {qlora(vlm):.2f} steps/s")
        del vlm
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"{time.perf_counter() - started:.0f} seconds in all")


if __name__ == "__main__":
    main()
