"""Pictures and results in an object store: `s3://`, against moto's server on this machine."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.describe.samples import SHORT, fill, pack, png, rows_of, run
from visglm.cli.describe import FAILED

ROOT = Path(__file__).parents[2]
SOURCE, TARGET = "s3://pictures/animals", "s3://pictures/answers"
pytestmark = [
    pytest.mark.s3,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not importlib.util.find_spec("moto"), reason="there is no object store: make test-store"),
]


@pytest.fixture
def store(tmp_path, monkeypatch) -> Iterator[Any]:
    """An empty bucket in a process of its own, where the environment says that S3 is; its file system."""
    import s3fs

    with (tmp_path / "store.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stderr=log)
    try:
        started = time.monotonic()
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", (tmp_path / "store.log").read_text())):
            assert process.poll() is None and time.monotonic() - started < 60, (tmp_path / "store.log").read_text()
            time.sleep(0.05)
        for name, value in {
            "AWS_ENDPOINT_URL": found[0], "AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "anything",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem(endpoint_url=found[0], use_listings_cache=False)
        system.mkdir("pictures")
        yield system
    finally:
        process.kill()
        process.wait()
        s3fs.S3FileSystem.clear_instance_cache()


def rows_there(system: Any, folder: Path) -> list[dict]:
    system.get("pictures/answers", str(folder), recursive=True)
    return rows_of(folder)


def test_killed_and_started_again_it_does_what_is_missing_once(store, tmp_path):
    source = fill(tmp_path / "src", 30)
    pack(source / "more.tar", {"1.png": png(70), "2.png": png(71)[:30]})
    store.put(str(source) + "/", "pictures/animals", recursive=True)
    command = [
        *(sys.executable, "-m", "visglm", "describe", SOURCE, TARGET, *SHORT),
        *("--shard-size", "4", "--batch-size", "1", "--format", "parquet"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, env=environment)
    while process.poll() is None and len(store.glob("pictures/answers/part-*")) < 2:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    first = rows_there(store, tmp_path / "first")
    assert 8 <= len(first) < 32
    broken = [row["image"] for row in first if row["error"]]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == (0 if broken else FAILED), done.stderr
    assert f"{len(first)} pictures are done already" in done.stderr
    rows = rows_there(store, tmp_path / "second")
    assert len(rows) == len({row["id"] for row in rows}) == len({row["image"] for row in rows}) == 32
    assert [row for row in first if row not in rows] == []
    assert [row["image"] for row in rows if row["error"]] == ["more.tar/2.png"]
    # What lies below the results' own address, too, is no picture of the source.
    assert not [name for name in store.ls("pictures/answers") if "/." in name]


def test_what_is_wrong_with_an_address_is_told_in_a_sentence(store, loaded, tmp_path, monkeypatch, capsys):
    store.put(str(fill(tmp_path / "src", 2)) + "/", "pictures/animals", recursive=True)
    for source, target, told in (
        ("s3://nobody/animals", TARGET, "there is no s3://nobody/animals"),
        ("s3://pictures/nothing", TARGET, "there is no s3://pictures/nothing"),
        ("s3://", TARGET, "s3:// cannot be listed"),
        (SOURCE, "s3://", "s3:// cannot hold results"),
    ):
        assert run(source, target) == 1
        error = capsys.readouterr().err
        assert told in error and "Traceback" not in error, error
    assert run(SOURCE, TARGET) == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    type(store).clear_instance_cache()
    assert run(SOURCE, TARGET) == 1
    error = capsys.readouterr().err
    assert "127.0.0.1:9" in error and "Traceback" not in error, error
