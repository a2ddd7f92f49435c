"""Several processes, and such as are killed, lose nothing."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from visglm import Library
from visglm.cli import main

WRITE = """
import sys
from visglm import Library
from visglm.library import collection
collection.AT_ONCE = 4  # commits often
library = Library.open(sys.argv[1], vectors=False)
print("ready", flush=True)
library.sync(sys.argv[2], progress=False)
print("done", flush=True)
"""


def start(library: Path, folder: Path) -> subprocess.Popen:
    words = [sys.executable, "-c", WRITE, str(library), str(folder)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def fill(folder: Path, num: int, word: str) -> None:
    folder.mkdir()
    for number in range(num):
        (folder / f"{number}.txt").write_text(
            f"{word}{number} stands in this file.\n\nAnd a second paragraph.", "utf-8"
        )


def check_whole(library: Library, folder: Path, word: str, num: int) -> None:
    """Every file is in it once, whole, and found."""
    entries = [entry for entry in library.list() if entry.source.startswith(str(folder))]
    assert len({entry.source for entry in entries}) == len(entries) == num
    for number in range(0, num, 7):
        assert [Path(hit.source).name for hit in library.search(f"{word}{number}")] == [f"{number}.txt"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill so")
def test_a_writer_that_is_killed_loses_nothing_and_holds_nobody_up(tmp_path):
    where, folder = tmp_path / "notes.library", tmp_path / "files"
    fill(folder, 400, "word")
    reader = Library.open(where, vectors=False)  # first, for the writer is quick
    writer = start(where, folder)
    assert writer.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while not 16 <= reader.stats().documents < 400 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    kept = reader.stats().documents
    assert 16 <= kept < 400, "it was killed too early or too late to show anything"
    again = Library.open(where, vectors=False)
    for entry in again.list():  # what is there is whole: a head and all of its parts
        assert entry.num_parts == 1
    assert again.stats().parts == kept
    changes = again.sync(folder, progress=False)
    assert changes.unchanged == kept and len(changes.added) == 400 - kept
    check_whole(again, folder, "word", 400)
    again.compact()
    check_whole(Library.open(where, vectors=False), folder, "word", 400)


def test_two_writers_lose_nothing(tmp_path):
    """This process and another one, of other files and of the same."""
    where, folders = tmp_path / "notes.library", tmp_path / "files"
    folders.mkdir()
    fill(folders / "one", 60, "alpha")
    fill(folders / "two", 60, "beta")
    library = Library.open(where, vectors=False)
    other = start(where, folders)
    assert other.stdout.readline() == "ready\n"
    for number in range(60):
        library.add(folders / "one" / f"{59 - number}.txt", progress=False)
    assert other.stdout.read() == "done\n" and other.wait() == 0
    check_whole(library, folders / "one", "alpha", 60)
    check_whole(library, folders / "two", "beta", 60)
    assert library.stats().parts == 120


BOUNDED = """
import resource, sys
from visglm.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))  # as a disk that takes no more
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_that_takes_no_more_is_one_sentence_and_what_was_there_stays(tmp_path):
    folder, library = tmp_path / "notes", tmp_path / "notes.library"
    folder.mkdir()
    (folder / "first.txt").write_text("The quagga is extinct.")
    words = ["library", "sync", str(library), str(folder), "--no-vectors"]
    assert main(words) == 0
    lines = (f"{hashlib.sha256(str(line).encode()).hexdigest()}.\n\n" for line in range(3000))
    (folder / "large.txt").write_text("".join(lines))
    done = subprocess.run([sys.executable, "-c", BOUNDED, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "notes.library cannot be written to (File too large)" in done.stderr
    assert [hit.text for hit in Library.open(library, vectors=False).search("quagga")] == ["The quagga is extinct."]
    assert main(words) == 0
