"""What the engine brings: many who ask at a time, and one alone, beside the same questions through `generate`.

    OMP_NUM_THREADS=1 python benchmarks/engine.py

Both sides answer the same questions about the same pictures, all different, none remembered, in turns of one run; the
ratios are the medians over the rounds, each of two turns that follow each other. `generate` gets what the processor
makes of pictures and words, one question after the other.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image

from visglm import VisGLM

QUESTIONS = ("What is this?", "这是什么？", "How many objects are there?", "描述这张图片。")
SHORT, LONG = 8, 64  # tokens of an answer

Question = tuple[Image.Image, str]


def make_pictures(count: int) -> list[Image.Image]:
    """Discs and stripes; no two are the same."""
    numbers = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        pixels = np.full((120, 160, 3), numbers.integers(0, 256, 3), np.uint8)
        left, top = numbers.integers(0, 80, 2)
        pixels[top : top + 40, left : left + 60] = numbers.integers(0, 256, 3)
        pictures.append(Image.fromarray(pixels))
    return pictures


class Sides:
    """The two ways to the same answers, each of exactly `num_tokens` tokens."""

    def __init__(self, vlm: VisGLM, num_tokens: int, num_clients: int):
        self.vlm, self.num_tokens, self.num_clients = vlm, num_tokens, num_clients

    def generate(self, requests: Sequence[Question]) -> None:
        length = {"max_new_tokens": self.num_tokens, "min_new_tokens": self.num_tokens}
        for picture, question in requests:
            parts = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
            inputs = self.vlm.processor.apply_chat_template(
                [{"role": "user", "content": parts}], tokenize=True, return_dict=True, return_tensors="pt"
            )
            with torch.inference_mode():
                self.vlm.model.generate(**inputs.to(self.vlm.device), **length, do_sample=False)

    def alone(self, requests: Sequence[Question]) -> None:
        for picture, question in requests:
            self.vlm.chat(picture, question, max_new_tokens=self.num_tokens, min_new_tokens=self.num_tokens)

    def together(self, requests: Sequence[Question]) -> None:
        """Clients that each ask when their last question is answered."""
        waiting = queue.SimpleQueue()
        for request in requests:
            waiting.put(request)

        def ask() -> None:
            while not waiting.empty():
                try:
                    request = waiting.get_nowait()
                except queue.Empty:
                    return
                self.alone([request])

        clients = [threading.Thread(target=ask) for _ in range(self.num_clients)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()


def seconds(act: Callable[[], None], clock: Callable[[], float]) -> float:
    started = clock()
    act()
    return clock() - started


def compare(
    ours: Callable[[], None], theirs: Callable[[], None], rounds: int, clock: Callable[[], float]
) -> tuple[float, float, list[float]]:
    """Median seconds of both, and how many times as fast ours was in each round."""
    pairs = [(seconds(ours, clock), seconds(theirs, clock)) for _ in range(rounds)]
    ratios = sorted(their / our for our, their in pairs)
    return statistics.median(our for our, _ in pairs), statistics.median(their for _, their in pairs), ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model (default: the embedded visglm-tiny)")
    parser.add_argument("--quantize", help="int8, int4 or nf4")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--questions", type=int, default=64, help="of all clients, a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="of this process, where others keep the cores busy")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter

    vlm = VisGLM.from_pretrained(arguments.model, device="cpu", quantize=arguments.quantize)
    vlm.engine.looker.num_bytes = 0
    pictures = make_pictures(arguments.questions)
    all_of_them = [(picture, QUESTIONS[number % len(QUESTIONS)]) for number, picture in enumerate(pictures)]
    few = all_of_them[: max(4, len(all_of_them) // 4)]
    short, long = Sides(vlm, SHORT, arguments.clients), Sides(vlm, LONG, arguments.clients)
    first = Sides(vlm, 1, arguments.clients)
    many = f"{arguments.clients} clients"
    rows = [
        (f"{many}, short answers ({SHORT} tokens)", short.together, short.generate, all_of_them),
        (f"{many}, long answers ({LONG} tokens)", long.together, long.generate, all_of_them[: 2 * arguments.clients]),
        ("alone, short answers", short.alone, short.generate, few),
        ("alone, long answers", long.alone, long.generate, few[:8]),
        ("alone, first token only", first.alone, first.generate, few),
    ]
    short.together(few[:4])
    short.generate(few[:2])
    print(f"{vlm}, {torch.get_num_threads()} threads, seconds of {'CPU' if arguments.cpu_time else 'the clock'}")
    print("| answers/s | engine | generate | × (lowest to highest of the rounds) |\n|---|---|---|---|")
    for title, ours, theirs, asked in rows:
        our, their, ratios = compare(partial(ours, asked), partial(theirs, asked), arguments.rounds, clock)
        print(
            f"| {title} | {len(asked) / our:.1f} | {len(asked) / their:.1f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
