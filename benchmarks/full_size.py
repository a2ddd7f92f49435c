"""What a model of full size costs: loading, memory, one picture, the first token, the next ones, a second question.

    visglm new /tmp/full --preset visualglm-6b --random --quantize int4
    python benchmarks/full_size.py /tmp/full

Each time stands beside the shortest this machine allows: bytes that must be read over its bandwidth, or multiplications
over its rate, both measured in the same run. Memory is the process's own, less what Python and torch had taken before.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from visglm import VisGLM

PICTURE = Path(__file__).parents[1] / "examples" / "cat.png"
QUESTIONS = ("这是什么？", "它是什么颜色？")


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The shortest of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def bandwidth(repeats: int) -> float:
    """Bytes read per second."""
    numbers = torch.ones(64 * 2**20)
    return numbers.nbytes / seconds(numbers.sum, repeats)


def gemm_rate(repeats: int) -> float:
    """float32 operations per second."""
    left, right = torch.randn(256, 4096), torch.randn(4096, 4096)
    return 2 * 256 * 4096 * 4096 / seconds(lambda: left @ right, repeats)


def resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def linears(module: torch.nn.Module) -> Iterator[torch.nn.Linear]:
    return (child for child in module.modules() if isinstance(child, torch.nn.Linear))


def row(name: str, figure: str, limit: str = "", share: str = "") -> None:
    print(f"| {name} | {figure} | {limit} | {share} |", flush=True)


def timed(name: str, found: float, limit: float) -> None:
    row(name, f"{found:.2f} s", f"{limit:.2f} s", f"{limit / found:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="of the checkpoint")
    parser.add_argument("--quantize", help="at load, where the checkpoint is not quantized")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5, help="of the measurements of the machine")
    arguments = parser.parse_args()

    speed, rate = bandwidth(arguments.repeats), gemm_rate(arguments.repeats)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"bandwidth {speed / 1e9:.1f} GB/s, float32 {rate / 1e9:.0f} GFLOP/s; load of the machine {load}\n")
    row("what", "measured", "limit", "of the limit")
    print("|---|---|---|---|")

    before = resident()
    start = time.perf_counter()
    vlm = VisGLM.from_pretrained(arguments.folder, quantize=arguments.quantize, device="cpu")
    loading = time.perf_counter() - start
    size = sum(file.stat().st_size for file in Path(arguments.folder).iterdir())
    timed("load", loading, size / speed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row("load peak", f"{(peak - before) / 1e9:.2f} GB")
    row("resident", f"{(resident() - before) / 1e9:.2f} GB")

    vision, text = vlm.model.config.vision_config, [vlm.model.model.text.layers, vlm.model.lm_head]
    num_patches = (vision.image_size // vision.patch_size) ** 2 + 1
    in_vit = sum(linear.in_features * linear.out_features for linear in linears(vlm.model.model.vision.vit))
    in_text = sum(linear.in_features * linear.out_features for part in text for linear in linears(part))
    # Packed weights and their scales; else the weights as they are.
    per_token = sum(tensor.nbytes for part in text for tensor in part.state_dict().values())

    first = vlm.chat(PICTURE, QUESTIONS[0], max_new_tokens=arguments.new_tokens)
    prompt, answer = first.usage.prompt_tokens, first.usage.completion_tokens
    encode, prefill = first.timings.encode, first.timings.first_token
    timed("one picture", encode, 2 * in_vit * num_patches / rate)
    timed(f"prompt of {prompt} tokens", prefill, 2 * in_text * prompt / rate)
    row("first token", f"{encode + prefill:.2f} s")
    if answer > 1:
        pace, limit = (answer - 1) / (first.timings.total - prefill), speed / per_token
        row(f"next {answer - 1} tokens", f"{pace:.2f} tokens/s", f"{limit:.2f} tokens/s", f"{pace / limit:.0%}")
    second = vlm.chat(None, QUESTIONS[1], history=first.history, max_new_tokens=1)
    again = second.timings.encode + second.timings.first_token
    row(f"second question's first token ({second.usage.prompt_tokens} tokens)", f"{again:.2f} s")
    row("… of the first question's", f"{again / (encode + prefill):.0%}")
    row("resident after the answers", f"{(resident() - before) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
