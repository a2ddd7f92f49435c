"""VisualGLM-6B's shape in int4 without torch: what exporting and playing it cost, beside torch with the same bits, and
beside llama.cpp with as many words where it is installed.

    pip install llama-cpp-python gguf
    python benchmarks/light_full_size.py
    python benchmarks/light_full_size.py --layers 2          # of the words and of the eyes, to try it out

Random weights of full size are packed and written as they are made, then played. Everything is a process of its own,
one at a time, and the players take turns; of each figure the best of all turns is shown, for others may use the
machine. llama.cpp has no eyes and none of ChatGLM's layers: its file is a llama of equal matrices (`peers.py`). Memory
is the process's at most: all of it, and what of it is no view of a file, which the system cannot take back.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PICTURE = Path(__file__).parents[1] / "examples" / "cat.png"
QUESTIONS = ("这是什么？", "它是什么颜色？")
FULL = 28  # layers
PEER, PEER_PROMPT = "peer.gguf", 45  # llama.cpp's file, and as many tokens as the first question has with its picture
INTERVAL = 0.02  # seconds between looks at the memory
# Of InferLLM, which plays ChatGLM-6B without eyes in int4: what it publishes, and what was measured on two such cores.
INFERLLM = (
    ("InferLLM, published: Core i7-11700, 4 threads", 8.0),
    ("InferLLM, published: EPYC, 64 threads", 11.7),
    ("InferLLM, default build, two cores as these", 0.81),
)


class Memory:
    """The most that this process has taken, watched by a thread."""

    def __init__(self) -> None:
        self.own = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.own = max(self.own, self._status()["RssAnon"])
            time.sleep(INTERVAL)

    def _status(self) -> dict[str, float]:
        """Gigabytes by name."""
        with open("/proc/self/status", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file)
        return {name: int(lines[name].split()[0]) * 1024 / 1e9 for name in ("VmRSS", "VmHWM", "RssAnon")}

    def figures(self) -> dict[str, float]:
        status = self._status()
        return {"peak": status["VmHWM"], "own peak": self.own, "resident": status["VmRSS"]}


def export(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    from visglm.checkpoint import EMBEDDED_MODEL, RandomSource
    from visglm.config import PRESETS
    from visglm.export import export as write

    memory = Memory()
    preset = PRESETS[arguments.preset]
    if arguments.layers < FULL:
        for part in ("text_config", "vision_config"):
            preset[part]["num_hidden_layers"] = arguments.layers
    start = time.perf_counter()
    write(RandomSource(arguments.preset, EMBEDDED_MODEL), folder, "int4")
    return {"seconds": time.perf_counter() - start, **memory.figures()}


def light(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    from visglm.light import VisGLM

    return play(lambda: VisGLM.from_pretrained(folder), arguments.tokens)


def torch(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    from visglm import VisGLM

    return play(lambda: VisGLM.from_pretrained(folder, device="cpu"), arguments.tokens)


def play(load: Callable[[], Any], tokens: int) -> dict[str, float]:
    memory = Memory()
    start = time.perf_counter()
    vlm = load()
    found = {"load": time.perf_counter() - start, "loaded": memory.figures()["resident"]}
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    first = vlm.chat(PICTURE, QUESTIONS[0], **length)
    second = vlm.chat(None, QUESTIONS[1], history=first.history, **length)
    found |= {"picture": first.timings.encode, "prompt": first.timings.first_token, "tokens": first.usage.prompt_tokens}
    rates = [(tokens - 1) / (reply.timings.total - reply.timings.first_token) for reply in (first, second)]
    again = second.timings.encode + second.timings.first_token
    return found | {"rate": max(rates), "again": again, "ids": list(first.ids), **memory.figures()}


def peer(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Write llama.cpp's file."""
    import peers  # beside this file

    start = time.perf_counter()
    peers.write_peer(folder.with_name(PEER), arguments.layers)
    return {"seconds": time.perf_counter() - start}


def llama(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    memory, threads = Memory(), len(os.sched_getaffinity(0))
    start = time.perf_counter()
    llama_cpp = importlib.import_module("llama_cpp")
    path = str(folder.with_name(PEER))
    model = llama_cpp.Llama(path, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    found = {"load": time.perf_counter() - start, "loaded": memory.figures()["resident"]}
    rates = []
    for _ in QUESTIONS:
        model.reset()
        start = time.perf_counter()
        model.eval(list(range(100, 100 + PEER_PROMPT)))
        first = time.perf_counter()
        for token in range(arguments.tokens - 1):
            model.eval([200 + token])
        rates.append((arguments.tokens - 1) / (time.perf_counter() - first))
        found["prompt"] = min(found.get("prompt", first - start), first - start)
    return found | {"rate": max(rates), **memory.figures()}


ROLES: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "export": export, "light": light, "torch": torch, "peer": peer, "llama.cpp": llama,
}  # fmt: skip


def run(role: str, folder: Path, words: list[str]) -> dict[str, Any]:
    """What a process of its own found; the player's is started as its command is, which does not wait for torch."""
    command = [__file__, *words, "--role", role, "--folder", str(folder)]
    code = f"import sys, runpy; sys.orig_argv[1:2] = ['visglm-light']; sys.argv = {command!r}; "
    start = ["-c", code + f"runpy.run_path({__file__!r}, run_name='__main__')"] if role == "light" else command
    done = subprocess.run([sys.executable, *start], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    shown = ", ".join(f"{name} {figure:.2f}" for name, figure in found.items() if isinstance(figure, float))
    print(f"{role}: {shown}", file=sys.stderr, flush=True)  # the whole takes a quarter of an hour
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="visualglm-6b", help="whose sizes (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=FULL, help="of the text model, and of the eyes where fewer")
    parser.add_argument("--tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each player")
    parser.add_argument("--place", type=Path, help="where to write; 6 GB are needed (default: the system's)")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        print(json.dumps(ROLES[arguments.role](arguments.folder, arguments)))
        return
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cores} cores, load of the machine {os.getloadavg()[0]:.1f}\n")
    place = Path(tempfile.mkdtemp(prefix="visglm-light-", dir=arguments.place))
    try:
        exported = run("export", place / "out", sys.argv[1:])
        size = sum(path.stat().st_size for path in (place / "out").iterdir())
        turns: dict[str, list[dict[str, Any]]] = {"light": [], "torch": []}
        if has_peer := arguments.layers == FULL and all(map(importlib.util.find_spec, ("llama_cpp", "gguf"))):
            run("peer", place / "out", sys.argv[1:])
            turns["llama.cpp"] = []
        for _ in range(arguments.rounds):
            for role, found in turns.items():
                found.append(run(role, place / "out", sys.argv[1:]))
    finally:
        shutil.rmtree(place)
    is_full = arguments.preset == "visualglm-6b" and arguments.layers == FULL
    report(exported, size, turns, INFERLLM if is_full else ())
    if not has_peer:
        print("Without llama.cpp: it needs its packages, and all layers.")
    print(f"\nload of the machine {os.getloadavg()[0]:.1f}")


def report(exported: dict[str, Any], size: int, turns: dict[str, list[dict[str, Any]]], peers: Any) -> None:
    print(f"Export: {exported['seconds']:.0f} s, {exported['peak']:.2f} GB at most; {size / 1e9:.2f} GB on disk.\n")
    print(f"| | {' | '.join(turns)} | light beside torch |\n|{'---|' * (len(turns) + 2)}")
    shown = (
        ("load", "load", "s", min), ("one picture", "picture", "s", min),
        (f"prompt of {turns['light'][0]['tokens']} tokens", "prompt", "s", min), ("decode", "rate", "tokens/s", max),
        ("second question's first token", "again", "s", min), ("memory when loaded", "loaded", "GB", max),
        ("memory at most", "peak", "GB", max), ("… without views of files", "own peak", "GB", max),
    )  # fmt: skip
    for name, key, unit, best in shown:
        figures = [best(turn[key] for turn in found) if key in found[0] else None for found in turns.values()]
        cells = ["" if figure is None else f"{figure:.2f} {unit}" for figure in figures]
        print(f"| {name} | {' | '.join(cells)} | {figures[0] / figures[1]:.2f} × |")  # type: ignore[operator]
    print()
    rate = max(turn["rate"] for turn in turns["light"])
    others = [(f"{name}, in these turns", max(turn["rate"] for turn in found)) for name, found in turns.items()][1:]
    for name, peer in (*others, *peers):
        print(f"{name}: {peer:.2f} tokens/s, light beside it {rate / peer:.2f} ×.")
    same = {tuple(turn["ids"]) for found in turns.values() for turn in found if "ids" in turn}
    print(f"\nBoth wrote {'the same tokens' if len(same) == 1 else 'different tokens'}.")


if __name__ == "__main__":
    main()
