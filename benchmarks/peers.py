"""One answer's tokens a second beside llama.cpp's, same number of weights, same threads, same minutes.

    pip install llama-cpp-python gguf
    python benchmarks/peers.py --layers 8

The peer's file is made here: a llama of equal matrices (its feed-forward narrower, for it has three where ChatGLM has
two), random, in Q4_0, written to a temporary folder. Both sides take turns; each figure is the fastest tenth of its
steps, scaled from LAYERS layers to 28, and stands beside the limit of the bandwidth.
"""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import decode  # beside this file
import numpy as np
import torch

HIDDEN, HEADS, VOCABULARY = 4096, 32, 130_528
FEED_FORWARD = 10_912  # 3 matrices of it, with 4 square ones, are as many weights as a layer of ChatGLM-6B
BLOCK, BLOCK_BYTES = 32, 18  # of Q4_0: 32 numbers, with their scale
PEER_BITS, OUR_BITS = (
    8 * BLOCK_BYTES / BLOCK,
    4 + 16 / 128 + 4 / 128,
)  # a weight, with its share of scale and zero point
NUM_WEIGHTS = decode.FULL * 12 * HIDDEN**2 + VOCABULARY * HIDDEN  # that a token reads


def write_peer(path: Path, layers: int) -> None:
    """A llama in Q4_0 whose numbers are random."""
    gguf = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    numbers = np.random.default_rng(0)

    def add(name: str, rows: int, columns: int) -> None:
        blocks = numbers.integers(0, 256, (rows, columns // BLOCK, BLOCK_BYTES), dtype=np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    add("token_embd.weight", VOCABULARY, HIDDEN)
    add("output.weight", VOCABULARY, HIDDEN)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for number in range(layers):
        start = f"blk.{number}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{start}{name}.weight", HIDDEN, HIDDEN)
        for name in ("ffn_gate", "ffn_up"):
            add(f"{start}{name}.weight", FEED_FORWARD, HIDDEN)
        add(f"{start}ffn_down.weight", HIDDEN, FEED_FORWARD)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{start}{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def peer_steps(llama: Any, count: int) -> list[float]:
    llama.reset()
    llama.eval(list(range(100, 100 + decode.PROMPT)))
    times = []
    for token in range(count):
        start = time.perf_counter()
        llama.eval([200 + token])
        times.append(time.perf_counter() - start)
    return times


def scaled(few: float, more: float, layers: int) -> float:
    """Seconds of 28 layers, from those of half as many as `layers` and of `layers`."""
    per_layer = (more - few) / (layers - layers // 2)
    return more + per_layer * (decode.FULL - layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    llama_cpp = importlib.import_module("llama_cpp")
    threads, rate = torch.get_num_threads(), decode.bandwidth()
    print(f"load {os.getloadavg()[0]:.1f}")
    ours: dict[int, list[float]] = {}
    theirs: dict[int, list[float]] = {}
    for layers in (arguments.layers // 2, arguments.layers):
        with tempfile.TemporaryDirectory(prefix="visglm-peers-", dir="/var/tmp") as folder:
            path = Path(folder) / "peer.gguf"
            write_peer(path, layers)
            llama = llama_cpp.Llama(str(path), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
            vlm = decode.make(layers, "int4", "bfloat16", "cpu")
            for _ in range(arguments.rounds):
                ours.setdefault(layers, []).extend(decode.steps(vlm, 1, arguments.tokens)[0])
                theirs.setdefault(layers, []).extend(peer_steps(llama, arguments.tokens))
            llama.close()
            del vlm
    rate = (rate + decode.bandwidth()) / 2
    print(f"| {threads} threads, {rate / 1e9:.0f} GB/s | 28 layers, tokens/s | of the bandwidth |\n|---|---|---|")
    halves = (arguments.layers // 2, arguments.layers)
    found = []
    for title, side, bits in (("visglm int4", ours, OUR_BITS), ("llama.cpp Q4_0", theirs, PEER_BITS)):
        found.append(1 / scaled(*(decode.fastest(side[layers]) for layers in halves), arguments.layers))
        limit = rate * 8 / (bits * NUM_WEIGHTS)
        print(f"| {title} | {found[-1]:.1f} | {found[-1] / limit:.0%} |")
    print(f"{found[0] / found[1]:.2f} ×")


if __name__ == "__main__":
    main()
