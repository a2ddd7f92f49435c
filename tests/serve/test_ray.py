"""Two replicas under Ray: they answer as one server does, and go on where one is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.serve.knocking import EXAMPLES, KEY, MODEL, asking, data_url, user
from tests.serve.process import ROOT, Running
from visglm import RemoteVisGLM, VisGLM
from visglm.errors import ConfigError, ServerError
from visglm.serve import Replicas

needs_ray = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed: make test-ray"),
]


@contextmanager
def replicas(*words: str):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VISGLM_API_KEYS": KEY}
    process = subprocess.Popen(
        [sys.executable, "-m", "visglm", "serve", "--port", "0", "--device", "cpu", *words],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip
    try:
        yield Running(process, 400)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()
        process.stderr.close()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, vlm) -> Path:
    own = VisGLM.from_pretrained(device="cpu")
    folder = tmp_path_factory.mktemp("adapter") / "zorp"
    rows = [{"image": str(EXAMPLES / "cat.png"), "caption": "a zorp"}]
    own.finetune(rows, output_dir=folder, max_steps=2, report_to="none", num_workers=0)
    return folder


@pytest.fixture(scope="module")
def server(adapter):
    with replicas("--replicas", "2", "--adapter", f"zorp={adapter}") as server:
        yield server


def pids(server) -> list[int]:
    """Of the replicas: children of the processes that Ray has started, by their title."""
    table = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True).stdout
    own = re.findall(r"^\s*(\d+) ray::ServeReplica:visglm", table, re.MULTILINE)
    return sorted(map(int, own))


class TestReplicas:
    pytestmark = needs_ray

    def test_they_answer_as_the_model_does_and_adapters_by_their_names(self, server, vlm):
        remote = RemoteVisGLM(f"http://127.0.0.1:{server.port}", KEY)
        own = vlm.chat(EXAMPLES / "cat.png", "这是什么？")
        assert remote.models() == [MODEL, "zorp"]
        for _ in range(6):
            assert remote.chat(EXAMPLES / "cat.png", "这是什么？").text == own.text
        stream = remote.stream_chat(EXAMPLES / "pair.png", "Describe the picture.")
        assert "".join(stream) == vlm.chat(EXAMPLES / "pair.png", "Describe the picture.").text
        assert RemoteVisGLM(remote.url, KEY, model="zorp").chat(EXAMPLES / "cat.png", "What is this?").text

    def test_who_has_no_key_or_another_name_for_it_is_refused(self, server):
        url = f"http://127.0.0.1:{server.port}"
        with pytest.raises(ServerError) as caught:
            RemoteVisGLM(url, "a-wrong-key-0123456789").models()
        assert caught.value.reason == "key"
        assert httpx.get(f"{url}/health").status_code == 200
        for path in (
            "/docs",
            "/metrics",
            "/openapi.json",
            "/v1/models",
            "//health",
            "/health/..",
            "/v1/models?x=/health",
        ):
            assert httpx.get(f"{url}{path}").status_code in (401, 404), path
        strange = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {KEY}", "Host": "evil.example"})
        assert strange.status_code == 421
        foreign = {"Authorization": f"Bearer {KEY}", "Origin": "https://evil.example"}
        assert httpx.get(f"{url}/v1/models", headers=foreign).status_code == 403

    def test_whoever_reaches_rays_own_ports_needs_its_token(self, server):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        told = subprocess.run(["ps", "-ww", "-eo", "args="], capture_output=True, text=True).stdout
        where = re.search(r"--gcs-address=(\S+)", told)[1]
        code = f"import ray; ray.init(address={where!r}); print(ray.nodes())"
        got = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
        assert got.returncode != 0 and "uthent" in got.stderr

    def test_every_request_is_in_the_log(self, server):
        """Ray would tell what two replicas say alike once, some seconds later, or never."""
        url = f"http://127.0.0.1:{server.port}"
        told = [httpx.get(f"{url}/health").headers["X-Request-Id"] for _ in range(20)]
        for each in told:
            server.wait_for(each.partition(",")[0])  # behind it Ray puts an id of its own

    def test_a_stream_is_whole_and_one_that_is_left_ends(self, server, vlm):
        url = f"http://127.0.0.1:{server.port}"
        ends = vlm.model.generation_config.eos_token_id
        bias = {str(end): -100 for end in (ends if isinstance(ends, list) else [ends])}
        body = asking(user("Hello"), max_tokens=200, logit_bias=bias, stream=True)
        arrivals = []
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=120,
                          headers={"Authorization": f"Bearer {KEY}"}) as response:  # fmt: skip
            for line in response.iter_lines():
                if line:
                    arrivals.append((time.perf_counter(), line))
        assert arrivals[-1][1] == "data: [DONE]" and len(arrivals) > 100
        assert arrivals[-1][0] > arrivals[0][0]  # piece by piece
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=120,
                          headers={"Authorization": f"Bearer {KEY}"}) as response:  # fmt: skip
            next(response.iter_lines())
        server.wait_for(r"chat/completions 200 .* 0 \+ 0 tokens")

    def test_one_is_killed_and_the_others_go_on(self, server, vlm):
        """Who was at the one that died is told; everybody else, then and afterwards, has the right answer."""
        before = pids(server)
        assert len(before) == 2, before
        remote = RemoteVisGLM(f"http://127.0.0.1:{server.port}", KEY)
        expected = vlm.chat(EXAMPLES / "cat.png", "What is this?").text
        answers: list[str] = []
        failures: list[ServerError] = []
        stop = threading.Event()

        def ask():
            while not stop.is_set():
                try:
                    answers.append(remote.chat(EXAMPLES / "cat.png", "What is this?").text)
                except ServerError as error:
                    failures.append(error)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        started = time.monotonic()
        try:
            while len(answers) < 8:
                assert time.monotonic() - started < 60
                time.sleep(0.05)
            os.kill(before[0], signal.SIGKILL)
            count = len(answers)
            while len(answers) < count + 20:
                assert time.monotonic() - started < 240, len(answers)
                time.sleep(0.1)
            while len(pids(server)) < 2 or before[0] in pids(server):  # a successor loads a model of its own
                assert time.monotonic() - started < 600, pids(server)
                time.sleep(0.5)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert set(answers) == {expected}
        assert len(failures) <= 8, failures
        assert all(error.reason in ("failed", "ending", "unreachable") for error in failures)

    def test_it_ends_what_was_begun(self, server, vlm):
        stream = server.post(asking(user("这是什么？", data_url("cat.png")), stream=True))
        first = stream.readline()
        server.process.send_signal(signal.SIGTERM)
        rest = first + stream.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert server.process.wait(120) == 0
        assert KEY not in server.log and "这是什么" not in server.log


@pytest.mark.parametrize("words", [["--replicas", "0"], ["--replicas", "3", "--max-replicas", "2"]])
def test_numbers_that_make_no_sense_are_told_before_anything_starts(words, capsys):
    from visglm.cli import main

    assert main(["serve", *words]) == 1
    assert "replicas" in capsys.readouterr().err


def test_fields_of_autoscaling_are_rays_own():
    assert Replicas(2).options == {"num_replicas": 2}
    config = Replicas(1, 4, 5).options["autoscaling_config"]
    assert config == {"min_replicas": 1, "initial_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 5}
    if importlib.util.find_spec("ray"):
        from ray.serve.config import AutoscalingConfig

        assert AutoscalingConfig(**config).max_replicas == 4
    with pytest.raises(ConfigError):
        Replicas(replicas=2, max_replicas=1)


def test_what_travels_to_replicas_holds_no_key():
    import pickle

    from visglm.serve import Keys, Settings

    packed = pickle.dumps(Settings(keys=Keys([KEY])))
    assert KEY.encode() not in packed and pickle.loads(packed).keys.owner(KEY)
    assert json.dumps(KEY)
