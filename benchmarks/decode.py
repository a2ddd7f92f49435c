"""What a token of VisualGLM-6B costs, from a few of its layers: the step beside its products and beside the bandwidth.

    python benchmarks/decode.py --layers 4

Random weights of full width are made in memory and packed. The products of a step are timed by themselves, one after
the other as the step needs them; the step is timed as the engine takes it, for one answer and for several. Both are
the fastest tenth of many, in turns of one run: others may use the machine. What is printed for 28 layers is
layers × 28 / LAYERS + the rest.

Then an answer that quotes its prompt, whose tokens are given, by the same engine with and without company.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from visglm import VisGLM, checkpoint
from visglm.config import PRESETS
from visglm.engine import Chooser, Dictated, Request
from visglm.quant import QuantizedLinear, without_contention
from visglm.sampling import Sampling

FULL = 28  # layers
PROMPT = 64  # tokens
TENTH = 10


def fastest(times: list[float]) -> float:
    """The mean of the fastest tenth, seconds."""
    best = sorted(times)[: max(1, len(times) // TENTH)]
    return statistics.mean(best)


def bandwidth() -> float:
    """Bytes read per second, at best."""
    numbers = torch.ones(64 * 2**20)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - start)
    return numbers.nbytes / min(times)


def make(layers: int, scheme: str | None, dtype: str, device: str) -> VisGLM:
    """ChatGLM-6B with fewer layers and without eyes."""
    PRESETS["chatglm-6b"]["text_config"]["num_hidden_layers"] = layers
    source = checkpoint.RandomSource("chatglm-6b", checkpoint.EMBEDDED_MODEL)
    loaded = checkpoint.realize(source, quantize=scheme, device=device, dtype=dtype)
    return VisGLM(loaded.model, loaded.processor, adapters=loaded.adapters)


def linears(vlm: VisGLM) -> list[Any]:
    text = vlm.model.model.text
    kinds = (QuantizedLinear, torch.nn.Linear)
    return [module for module in [*text.layers.modules(), vlm.model.lm_head] if isinstance(module, kinds)]


def products(vlm: VisGLM, rows: int, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of the products of all layers, and of the head, one token of each row."""
    of_layers, of_head = [], []
    *layers, head = linears(vlm)
    inputs = {
        size: torch.randn(rows, 1, size).to(vlm.model.dtype) for size in {linear.in_features for linear in layers}
    }
    with torch.inference_mode(), without_contention(vlm.model.model.text):
        for _ in range(repeats):
            start = time.perf_counter()
            for linear in layers:
                linear(inputs[linear.in_features])
            middle = time.perf_counter()
            head(inputs[head.in_features])
            of_layers.append(middle - start)
            of_head.append(time.perf_counter() - middle)
    return of_layers, of_head


def prompt_of(vlm: VisGLM, seed: int) -> list[int]:
    config = vlm.model.config.text_config
    numbers = torch.randint(100, 4000, (PROMPT,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [*numbers, config.gmask_token_id, config.bos_token_id]


def steps(vlm: VisGLM, rows: int, count: int) -> tuple[list[float], list[float]]:
    """Of each step of so many answers at a time: seconds of the clock, and of CPU outside of the products, which others
    who use the machine hardly change."""
    requests = []
    for seed in range(rows):
        said = torch.randint(100, 4000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
        requests.append(Request(prompt_of(vlm, seed + 9), count, Dictated(said, Sampling(), vlm.device)))
    times: list[float] = []
    between: list[float] = []
    now: dict[str, float] = {}

    def begin(*given: Any) -> None:
        now.update(clock=time.perf_counter(), thread=time.thread_time(), products=0.0)

    def before(*given: Any) -> None:
        now["product"] = time.thread_time()

    def after(*given: Any) -> None:
        now["products"] += time.thread_time() - now["product"]

    def end(*given: Any) -> None:
        times.append(time.perf_counter() - now["clock"])
        between.append(time.thread_time() - now["thread"] - now["products"])

    text = vlm.model.model.text
    hooks = [text.register_forward_pre_hook(begin)]
    for linear in linears(vlm):
        hooks += [linear.register_forward_pre_hook(before), linear.register_forward_hook(after)]
    hooks.append(vlm.model.lm_head.register_forward_hook(end))
    for ticket in vlm.engine.submit(*requests):
        ticket.result()
    for hook in hooks:
        hook.remove()
    return times[1:], between[1:]  # the first is the prompt's


def pace(vlm: VisGLM, requests: Callable[[], list[Request]], repeats: int) -> float:
    """Tokens a second of all of them together, their prompts left out, at best."""
    found = []
    for _ in range(repeats):
        tickets = vlm.engine.submit(*requests())
        outcomes = [ticket.result() for ticket in tickets]
        seconds = max(outcome.total_seconds - outcome.first_token_seconds for outcome in outcomes)
        found.append(sum(len(outcome.tokens) - 1 for outcome in outcomes) / seconds)
    return max(found)


def quoting(vlm: VisGLM, count: int, quotes: bool) -> list[Request]:
    ids = prompt_of(vlm, 0)
    said = (ids[5:55] * 9)[:count] if quotes else torch.randint(100, 4000, (count,)).tolist()
    chooser: Chooser = Dictated(said, Sampling(), vlm.device)
    return [Request(ids, count, chooser)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--quantize", default="int4", help="int8, int4, nf4, or none")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=40)
    arguments = parser.parse_args()
    scheme = None if arguments.quantize == "none" else arguments.quantize
    vlm = make(arguments.layers, scheme, arguments.dtype, "cpu")
    num_bytes = sum(sum(t.nbytes for t in linear.state_dict().values()) for linear in linears(vlm))
    head_bytes = sum(tensor.nbytes for tensor in vlm.model.lm_head.state_dict().values())
    full_bytes = (num_bytes - head_bytes) * FULL / arguments.layers + head_bytes
    rate = bandwidth()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    threads = torch.get_num_threads()
    print(f"{arguments.layers} layers, {arguments.quantize}, {arguments.dtype}, {threads} threads; load {load}")
    print(f"bandwidth {rate / 1e9:.1f} GB/s: at most {rate / full_bytes:.1f} tokens/s of {FULL} layers\n")
    print(f"| rows | a step's products, ms | the step, ms | between them, ms of CPU | {FULL} layers, tokens/s |")
    print("|---|---|---|---|---|")
    paces = {}
    for rows in (1, arguments.clients):
        turns = [(products(vlm, rows, 10), steps(vlm, rows, arguments.tokens)) for _ in range(2)]
        layers = fastest([second for (of_layers, _), _ in turns for second in of_layers])
        head = fastest([second for (_, of_head), _ in turns for second in of_head])
        step = fastest([second for _, (of_step, _) in turns for second in of_step])
        between = statistics.median(second for _, (_, of_between) in turns for second in of_between)
        full = (step - head) * FULL / arguments.layers + head
        paces[rows] = rows / full
        print(
            f"| {rows} | {(layers + head) * 1e3:.1f} | {step * 1e3:.1f} | {between * 1e3:.2f} | {rows / full:.1f} |",
            flush=True,
        )
    print(f"\n{arguments.clients} clients: {paces[arguments.clients] / paces[1]:.2f} × one client's tokens/s")
    new, said = (pace(vlm, lambda quotes=quotes: quoting(vlm, arguments.tokens, quotes), 3) for quotes in (False, True))
    print(f"an answer that quotes its prompt: {said:.1f} tokens/s, one that does not {new:.1f}: {said / new:.2f} ×")


if __name__ == "__main__":
    main()
