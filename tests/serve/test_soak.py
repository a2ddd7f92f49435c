"""Good, bad and cancelled requests, for minutes: every good one is answered, nothing is lost, memory stays flat."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.serve.knocking import EXAMPLES, asking, data_url, endless, user
from tests.serve.process import running

SECONDS = float(os.environ.get("VISGLM_SOAK_SECONDS", "60"))
QUESTIONS = [(picture, text) for picture in ("cat.png", "pair.png", "fruit.png")
             for text in ("What is this?", "这是什么？", "How many objects are there?")]  # fmt: skip


def resident(process) -> float:
    """MB."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 2 + 300)
def test_nothing_is_lost(vlm):
    wanted = {question: vlm.chat(EXAMPLES / question[0], question[1]).text for question in QUESTIONS}
    urls = {picture: data_url(picture) for picture, _ in QUESTIONS}
    counts: Counter[str] = Counter()
    problems: list[str] = []
    with running("--max-waiting", "8") as server:
        ends = time.monotonic() + SECONDS

        def good(dice: random.Random) -> None:
            picture, text = dice.choice(QUESTIONS)
            response = server.post(asking(user(text, urls[picture]), stream=dice.random() < 0.5))
            told = response.read().decode()
            if response.status == 429:
                counts["rejected"] += 1
            elif told.startswith("{"):
                found = json.loads(told)["choices"][0]["message"]["content"]
                counts["good"] += 1
                problems.extend([told] if found != wanted[picture, text] else [])
            else:
                counts["streamed"] += 1
                problems.extend([told] if not told.endswith("data: [DONE]\n\n") else [])

        def bad(dice: random.Random) -> None:
            body = dice.choice(
                [{}, asking(user("Hi"), tools=[1]), asking(user("Hi"), n=99), asking(user("?", "file:///etc/passwd")),
                 asking(user("?", "data:image/png;base64,AAAA")), asking(user("很" * 5000))]
            )  # fmt: skip
            response = server.post(body)
            response.read()
            counts["bad"] += 1
            problems.extend([f"{response.status} {body}"] if response.status not in (400, 429) else [])

        def cancelled(dice: random.Random) -> None:
            response = server.post(endless(vlm, 400, stream=True))
            if response.status == 200:
                response.readline()
                response.connection.sock.shutdown(socket.SHUT_RDWR)
                counts["cancelled"] += 1

        def work(seed: int) -> None:
            dice = random.Random(seed)
            while time.monotonic() < ends:
                try:
                    dice.choice((good, good, good, bad, cancelled))(dice)
                except (http.client.HTTPException, OSError) as error:
                    problems.append(repr(error))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(SECONDS / 2)
        half = resident(server.process)
        for thread in threads:
            thread.join()
        until = time.monotonic() + 60
        while server.metric("visglm_requests_in_flight") > 1 and time.monotonic() < until:
            time.sleep(0.1)
        assert server.metric("visglm_requests_in_flight") == 1
        grown = resident(server.process) - half
        print(dict(counts), f"{half:.0f} MB at half time, {grown:+.0f} MB since")
        assert not problems, problems[:5]
        assert grown < 64 and min(counts[kind] for kind in ("good", "streamed", "bad", "cancelled")) > 5
        assert "failed" not in server.log and "Traceback" not in server.log
