"""What `visglm serve` gives to 1, 4, 16 and 64 clients, and to more than it takes.

    OMP_NUM_THREADS=1 python benchmarks/serve.py

The server is a process of its own, the clients are threads of this one. Each asks about a picture of its own, streams
the answer and asks again. Answers have exactly 8 or 64 tokens. Many clients and one take turns within each round, so
that the ratio, its median over the rounds, is of the same minute; seconds of CPU are the server's.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import queue
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from visglm import VisGLM

CLIENTS = (4, 16, 64)
LENGTHS = {"short": 8, "long": 64}  # tokens of an answer


@dataclass
class Load:
    """What came of some questions.

    Args:
        first: seconds to the first token of each. rejected: answers that were refused, to come again later.
    """

    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rejected: int = 0
    first: list[float] = field(default_factory=list)

    def first_token(self, percent: int) -> float:
        return float(np.percentile(self.first, percent))


class Server:
    """The process, and how to ask it."""

    def __init__(self, process: subprocess.Popen, port: int, bias: dict[str, int]):
        self.process, self.port, self.bias = process, port, bias

    @property
    def cpu_seconds(self) -> float:
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, connection: http.client.HTTPConnection, picture: str, num_tokens: int) -> float | None:
        """Seconds to the first token; None where it was refused."""
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": "What is this?"},
        ]
        body = {
            "model": "visglm-tiny", "messages": [{"role": "user", "content": content}], "stream": True,
            "max_tokens": num_tokens, "logit_bias": self.bias,
        }  # fmt: skip
        started = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status == 429:
            response.read()
            return None
        if response.status != 200:
            raise RuntimeError(response.read().decode())
        response.readline()
        first = time.perf_counter() - started
        if not response.read().endswith(b"data: [DONE]\n\n"):
            raise RuntimeError("a stream did not end")
        return first

    def load(self, num_clients: int, pictures: Sequence[str], num_tokens: int) -> Load:
        """Every picture once."""
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        for picture in pictures:
            waiting.put(picture)
        found, lock = Load(), threading.Lock()

        def work() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
            while True:
                try:
                    picture = waiting.get_nowait()
                except queue.Empty:
                    break
                first = self.ask(connection, picture, num_tokens)
                with lock:
                    if first is None:
                        found.rejected += 1
                    else:
                        found.tokens += num_tokens
                        found.first.append(first)
            connection.close()

        clients = [threading.Thread(target=work) for _ in range(num_clients)]
        cpu, started = self.cpu_seconds, time.perf_counter()
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        found.seconds, found.cpu_seconds = time.perf_counter() - started, self.cpu_seconds - cpu
        return found


@contextmanager
def running(bias: dict[str, int]) -> Iterator[Server]:
    words = [sys.executable, "-m", "visglm", "serve", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        port = None
        while port is None:
            line = process.stderr.readline()
            if not line:
                raise RuntimeError("the server did not start")
            if found := re.search(r"127\.0\.0\.1:(\d+)/v1", line):
                port = int(found[1])
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield Server(process, port, bias)
    finally:
        process.terminate()
        process.wait()


def make_pictures(count: int, numbers: np.random.Generator) -> list[str]:
    """Of one colour with noise: no two are the same. Data URLs."""
    urls = []
    for _ in range(count):
        pixels = np.full((120, 160, 3), numbers.integers(0, 256, 3), np.uint8)
        pixels[40:80, 50:110] = numbers.integers(0, 256, (40, 60, 3))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        urls.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return urls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=64, help="of all clients, a round")
    arguments = parser.parse_args()
    ends = VisGLM.from_pretrained(device="cpu").model.generation_config.eos_token_id
    bias = {str(end): -100 for end in (ends if isinstance(ends, list) else [ends])}
    numbers = np.random.default_rng(0)
    with running(bias) as server:
        server.load(4, make_pictures(8, numbers), 8)
        print("| | tokens/s | tokens/s of CPU | first token p50 / p95 | × one client | × of CPU | rejected |")
        print("|---|---|---|---|---|---|---|")
        for name, num_tokens in LENGTHS.items():
            few = max(6, arguments.questions // 8)
            for num_clients in CLIENTS:
                pairs = []
                for _ in range(arguments.rounds):
                    many = server.load(num_clients, make_pictures(arguments.questions, numbers), num_tokens)
                    pairs.append((many, server.load(1, make_pictures(few, numbers), num_tokens)))
                if num_clients == CLIENTS[0]:
                    show(f"1 client, {name}", [one for _, one in pairs], None)
                show(f"{num_clients} clients, {name}", [many for many, _ in pairs], pairs)
        flood = [server.load(128, make_pictures(128, numbers), 8)]
        show("128 clients at once, short", flood, None)


def show(title: str, loads: Sequence[Load], pairs: Sequence[tuple[Load, Load]] | None) -> None:
    speed = statistics.median(load.tokens / load.seconds for load in loads)
    of_cpu = statistics.median(load.tokens / load.cpu_seconds for load in loads)
    first = [seconds for load in loads for seconds in load.first]
    half, most = np.percentile(first, 50), np.percentile(first, 95)
    ratios = ("", "")
    if pairs is not None:
        ratios = (
            in_words([many.tokens / many.seconds / (one.tokens / one.seconds) for many, one in pairs]),
            in_words([many.tokens / many.cpu_seconds / (one.tokens / one.cpu_seconds) for many, one in pairs]),
        )
    rejected = sum(load.rejected for load in loads)
    print(
        f"| {title} | {speed:.0f} | {of_cpu:.0f} | {half * 1000:.0f} / {most * 1000:.0f} ms | {ratios[0]} | "
        f"{ratios[1]} | {rejected} |",
        flush=True,
    )


def in_words(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
