"""Two workers of Ray Data: the same rows as one process writes, the same going on."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.describe.samples import SHORT, fill, pack, png, rows_of, run, tabulate
from visglm.cli.describe import FAILED

ROOT = Path(__file__).parents[2]
needs_ray = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed: make test-ray"),
]


class TestWorkers:
    pytestmark = needs_ray

    def command(self, source, out, *words) -> list[str]:
        return [
            *(sys.executable, "-m", "visglm", "describe", str(source), str(out), *SHORT, "--ray", "local"),
            *("--workers", "2", "--shard-size", "4", "--batch-size", "2", *words),
        ]

    def run(self, *words) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(self.command(*words), stderr=subprocess.PIPE, text=True, env=environment)

    def test_two_write_what_one_does(self, loaded, tmp_path):
        source = fill(tmp_path / "src", 9)
        pack(source / "a.tar", {"1.png": png(70), "2.png": png(71)[:30]})
        tabulate(source / "t.parquet", [png(80), None, png(82)])
        (source / os.fsdecode(b"no text \xff.png")).write_bytes(png(90))
        done = self.run(source, tmp_path / "out", "--format", "parquet")
        assert done.returncode == FAILED, done.stderr
        assert run(source, tmp_path / "alone", "--format", "parquet") == FAILED
        one, other = (
            sorted(rows_of(tmp_path / name), key=lambda row: row["id"]) for name in ("out", "alone")
        )  # fmt: skip
        assert [{**row, "error": bool(row["error"])} for row in one] == [
            {**row, "error": bool(row["error"])} for row in other
        ]
        assert len(one) == 15 and "2 of them could not be" in done.stderr
        again = self.run(source, tmp_path / "out", "--format", "parquet")
        assert "12 pictures" not in again.stderr and len(rows_of(tmp_path / "out")) == 15
        assert "14 pictures are done already" in again.stderr

    def test_killed_it_goes_on_and_a_worker_that_dies_has_a_successor(self, tmp_path):
        source, out = fill(tmp_path / "src", 60), tmp_path / "out"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        for victim in ("driver", "worker"):
            before = len(list(out.glob("part-*")))
            process = subprocess.Popen(self.command(source, out), stderr=subprocess.PIPE, text=True, env=environment)
            started = time.monotonic()
            while len(list(out.glob("part-*"))) < before + 2:
                assert process.poll() is None and time.monotonic() - started < 400, process.stderr.read()
                time.sleep(0.01)
            if victim == "driver":
                process.kill()
                process.wait()
            else:
                table = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True).stdout
                found = re.findall(r"^\s*(\d+) ray::.*(?:Describer|MapWorker)", table, re.MULTILINE)
                assert found, table
                os.kill(int(found[0]), signal.SIGKILL)
                _, told = process.communicate(timeout=400)
                assert process.returncode == 0, told
        rows = rows_of(out)
        assert len(rows) == len({row["id"] for row in rows}) == 60

    def test_what_the_model_cannot_do_ends_it_with_the_reason(self, tmp_path):
        done = self.run(fill(tmp_path / "src", 3), tmp_path / "out", "--question", "word " * 4000)
        assert done.returncode == 1 and "too long" in done.stderr.splitlines()[-1], done.stderr
        assert rows_of(tmp_path / "out") == []


@pytest.mark.parametrize(
    "words, told",
    [
        (["src", "out", "--workers", "2"], "add --ray local"),
        (["src/0/000.png", "--ray", "local"], "into a folder"),
        (["src", "out", "--ray", "local", "--workers", "0"], "--workers"),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_starts(tmp_path, monkeypatch, capsys, words, told):
    from visglm.cli import main

    fill(tmp_path / "src", 1)
    monkeypatch.chdir(tmp_path)
    assert main(["describe", *words]) == 1
    assert told in capsys.readouterr().err
