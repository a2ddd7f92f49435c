"""A library on an object store, and files that processes of Ray read: as on a disk, and as one process does."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.library import samples
from visglm import Library
from visglm.cli import main
from visglm.cli.library import FAILED
from visglm.errors import LibraryError

ROOT = Path(__file__).parents[2]
BUCKET = "bucket"
LIBRARY = f"s3://{BUCKET}/notes.library"
needs_store = [
    pytest.mark.s3,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not importlib.util.find_spec("moto"), reason="there is no object store: make test-store"),
]
needs_ray = [
    pytest.mark.ray,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed: make test-ray"),
]


class Bucket:
    """What is in a bucket of moto's server, which this process serves on loopback."""

    def __init__(self, address: str):
        import boto3

        self.address = address
        self.client = boto3.client("s3", endpoint_url=address)

    def empty(self) -> None:
        self.client.create_bucket(Bucket=BUCKET)
        for name in self.names():
            self.client.delete_object(Bucket=BUCKET, Key=name)

    def names(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def holding(self, word: bytes) -> list[str]:
        return [name for name in self.names()
                if word in self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()]  # fmt: skip


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        served = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        served.start()
        host, port = served.get_host_and_port()
        for name, value in {
            "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        yield Bucket(f"http://{host}:{port}")
        served.stop()


@pytest.fixture
def bucket(server) -> Bucket:
    server.empty()
    return server


@pytest.fixture
def folder(tmp_path) -> Path:
    where = tmp_path / "docs"
    (where / "sub").mkdir(parents=True)
    for number in range(40):
        (where / f"{number}.txt").write_text(f"File number {number} says word{number}. 第{number}号。", "utf-8")
    (where / "sub/page.pdf").write_bytes(samples.pdf([(50, 100, "A zebranonce lives here.")]))
    (where / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    shutil.copy(samples.CAT, where / "cat.png")
    return where


def found(capsys, *words: str) -> str:
    assert main(["library", *words]) == 0
    return capsys.readouterr().out


class TestObjectStore:
    pytestmark = needs_store

    def test_every_command_does_there_what_it_does_on_a_disk(self, bucket, folder, capsys):
        assert main(["library", "list", LIBRARY]) == 1
        assert "there is no library at s3://" in capsys.readouterr().err
        assert main(["library", "add", LIBRARY, str(folder), "--no-vectors"]) == FAILED
        assert "42 added, 1 skipped" in capsys.readouterr().out
        assert found(capsys, "search", LIBRARY, "word7", "--limit", "1").startswith(f"{folder / '7.txt'}: ")
        assert "cat.png" in found(capsys, "search", LIBRARY, "猫", "--limit", "1")
        assert "page.pdf, page 1" in found(capsys, "search", LIBRARY, "zebranonce", "--limit", "1")
        assert main(["ask", "What says word5?", "--library", LIBRARY]) == 0
        assert "File number 5 says word5. [1]" in capsys.readouterr().out
        assert len(found(capsys, "list", LIBRARY).splitlines()) == 43

        (folder / "3.txt").write_text("aardvark", "utf-8")
        (folder / "4.txt").rename(folder / "sub/4.txt")
        assert main(["library", "sync", LIBRARY, str(folder), "--no-vectors"]) == FAILED
        assert "1 changed, 1 moved, 41 unchanged" in capsys.readouterr().out
        assert "3.txt" in found(capsys, "search", LIBRARY, "aardvark", "--limit", "1")

        found(capsys, "remove", LIBRARY, str(folder / "sub/page.pdf"))
        assert "zebranonce" not in found(capsys, "search", LIBRARY, "zebranonce")
        assert bucket.holding(b"zebranonce")
        assert found(capsys, "compact", LIBRARY) == f"{LIBRARY}: compacted.\n"
        assert bucket.holding(b"zebranonce") == []
        assert "7.txt" in found(capsys, "search", LIBRARY, "word7", "--limit", "1")

    def test_two_writers_lose_nothing(self, bucket, folder):
        code = "import sys; from visglm.cli import main; sys.exit(main(['library', 'add', *sys.argv[1:]]))"
        Library.open(LIBRARY, vectors=False)
        writers = [
            subprocess.Popen([sys.executable, "-c", code, LIBRARY, "--no-vectors", *names], stderr=subprocess.PIPE)
            for names in ([str(folder / f"{number}.txt") for number in range(first, 40, 2)] for first in range(2))
        ]
        for writer in writers:
            _, told = writer.communicate()
            assert writer.returncode == 0, told.decode()
        library = Library.open(LIBRARY, create=False, vectors=False)
        assert len(library.list()) == library.stats().parts == 40
        for number in range(40):
            assert [Path(hit.source).name for hit in library.search(f"word{number}", limit=1)] == [f"{number}.txt"]

    @pytest.mark.parametrize(
        "address, options, said",
        [
            ("s3://lost/notes.library", {}, "bucket does not exist"),
            (LIBRARY, {"aws_endpoint": "http://127.0.0.1:9"}, "nobody answers"),
            ("xyz://a/notes.library", {}, "No object store provider"),
        ],
    )
    def test_a_store_that_cannot_be_reached_is_told(self, bucket, address, options, said):
        with pytest.raises(LibraryError, match=said) as caught:
            Library.open(address, vectors=False, storage_options=options)
        assert len(str(caught.value)) < 500


class TestWorkers:
    pytestmark = [*needs_ray, *needs_store[::2]]

    def run(self, library, folder, *words) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "visglm", "library", "sync", str(library), str(folder), "--no-vectors"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run([*command, *words], capture_output=True, text=True, env=environment)

    def test_two_read_what_one_does(self, bucket, folder, tmp_path):
        workers = ("--ray", "local", "--workers", "2")
        done = self.run(LIBRARY, folder, *workers)
        assert done.returncode == FAILED and "42 added, 1 skipped" in done.stdout, done.stderr
        assert "broken.pdf: it is damaged" in done.stderr
        one = Library.open(tmp_path / "one", vectors=False)
        one.sync(folder, progress=False)
        other = Library.open(LIBRARY, create=False, vectors=False)
        assert one.list() == other.list()
        for words in ("word7", "第9号", "zebranonce", "猫"):
            assert one.search(words) == other.search(words) != []

        (folder / "3.txt").write_text("aardvark", "utf-8")
        (folder / "4.txt").rename(folder / "sub/4.txt")
        (folder / "5.txt").unlink()
        again = self.run(LIBRARY, folder, *workers)
        assert "1 changed, 1 moved, 1 removed, 40 unchanged" in again.stdout, again.stderr
        assert [Path(hit.source).name for hit in other.search("aardvark")] == ["3.txt"]


@pytest.mark.parametrize(
    "words, told",
    [(["--workers", "2"], "add --ray local"), (["--ray", "local", "--workers", "0"], "--workers")],
)
def test_what_does_not_go_together_is_told_before_a_library_is_made(tmp_path, monkeypatch, capsys, words, told):
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["library", "sync", "notes", "docs", *words]) == 1
    assert told in capsys.readouterr().err and os.listdir(tmp_path) == ["docs"]
