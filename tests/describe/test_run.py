"""`visglm describe SRC DST`: shards of results, and going on in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from tests.describe.samples import SHORT, fill, pack, png, rows_of, run, tabulate
from visglm import VisGLM
from visglm.cli.describe import FAILED, PROMPTS
from visglm.describe import Results, Task, describe, find
from visglm.describe.work import READERS, read_ahead
from visglm.errors import ConfigError, EngineError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_every_picture_has_a_row_with_the_answer_of_chat(loaded, tmp_path, capsys, form):
    source = fill(tmp_path / "src", 5)
    pack(source / "a.tar", {"1.png": png(70)})
    tabulate(source / "t.parquet", [png(80)])
    assert run(source, tmp_path / "out", "--format", form, "--shard-size", "3") == 0
    rows = rows_of(tmp_path / "out")
    assert len(rows) == len({row["id"] for row in rows}) == 7
    texts = {row["image"]: row["text"] for row in rows}
    assert texts["1/001.png"] == loaded.chat(source / "1/001.png", PROMPTS["en"], max_new_tokens=3).text
    assert texts["a.tar/1.png"] == loaded.chat(png(70), PROMPTS["en"], max_new_tokens=3).text
    assert texts["t.parquet/0"] == loaded.chat(png(80), PROMPTS["en"], max_new_tokens=3).text
    assert len(list((tmp_path / "out").glob(f"part-*.{form}"))) == 3
    assert capsys.readouterr().out == ""


def test_a_schema_gives_every_answer_its_shape(loaded, tmp_path):
    schema = {"type": "object", "properties": {"is": {"enum": ["cat", "dog"]}}, "required": ["is"]}
    schema["additionalProperties"] = False
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    words = ("--question", "图里是什么？", "--json-schema", str(tmp_path / "schema.json"), "--max-new-tokens", "40")
    assert run(fill(tmp_path / "src", 2), tmp_path / "out", *words) == 0
    assert {json.loads(row["text"])["is"] for row in rows_of(tmp_path / "out")} <= {"cat", "dog"}


def test_started_again_it_does_what_is_missing_and_nothing_else(loaded, tmp_path, monkeypatch, capsys):
    source, out = fill(tmp_path / "src", 4), tmp_path / "out"
    assert run(source, out) == 0
    first = rows_of(out)
    (source / "new.png").write_bytes(png(50))
    (source / "0/000.png").write_bytes(other := same_size(png(0)))  # another picture in its place
    os.utime(source / "1/001.png", (1, 1))  # touched
    asked = []
    answer = VisGLM.batch
    monkeypatch.setattr(
        VisGLM, "batch", lambda self, requests, **settings: asked.extend(requests) or answer(self, requests, **settings)
    )
    assert run(source, out) == 0
    assert sorted(content for content, _ in asked) == sorted([png(50), other])
    rows = rows_of(out)
    assert len({row["id"] for row in rows}) == len(rows) == 6 and [row for row in first if row not in rows] == []
    monkeypatch.setattr("visglm.cli.describe.load_model", lambda arguments: pytest.fail("nothing is missing"))
    assert run(source, out) == 0
    assert "4 pictures" not in capsys.readouterr().out


def same_size(content: bytes) -> bytes:
    """Another picture of as many bytes."""
    return next(found for number in range(51, 250) if len(found := png(number)) == len(content) and found != content)


def told_by_content(monkeypatch) -> None:
    """Answers that say which picture they are of."""
    answer = VisGLM.batch

    def batch(self, requests, **settings):
        replies = answer(self, requests, **settings)
        names = [hashlib.sha256(content).hexdigest() for content, _ in requests]
        return [
            reply if isinstance(reply, Exception) else replace(reply, text=name)
            for reply, name in zip(replies, names, strict=True)
        ]

    monkeypatch.setattr(VisGLM, "batch", batch)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_every_answer_stands_beside_its_own_picture(loaded, tmp_path, monkeypatch, form):
    """Whatever could not be read between them, and whatever they are called."""
    told_by_content(monkeypatch)
    source, out = fill(tmp_path / "src", 9), tmp_path / "out"
    for number in range(3):
        (source / f"{number}/gone.png").symlink_to("nowhere")
        (source / f"{number}/broken.png").write_bytes(png(number)[:40])
        (source / f"{number}/猫 \n.png").write_bytes(png(20 + number))
    if os.name == "posix":
        (source / os.fsdecode(b"no text \xff.png")).write_bytes(png(30))
    for _ in range(2):
        assert run(source, out, "--format", form, "--batch-size", "2") == FAILED
        rows = rows_of(out)
        assert len(rows) == len({row["id"] for row in rows}) == (19 if os.name == "posix" else 18)
        for row in rows:
            if row["error"] is None:
                assert row["text"] == row["sha256"] and row["id"].startswith(f"{row['image']}#{row['sha256'][:16]}")
        assert sum(row["error"] is None for row in rows) == len(rows) - 6


def test_shards_are_numbered_on_and_the_same_pictures_replace_themselves(loaded, tmp_path):
    source, out = fill(tmp_path / "src", 3), tmp_path / "out"
    for count in (3, 5, 6):
        assert run(fill(source, count), out, "--shard-size", "2") == 0
    numbers = [path.name[5:11] for path in sorted(out.glob("part-*"))]
    assert numbers == [f"{number:06}" for number in range(4)]
    results = Results(str(out), "jsonl")
    one, other = rows_of(out)[:2], rows_of(out)[2:3]
    names = {results.write(9, one), results.write(9, other), results.write(9, one)}
    assert len(names) == 2 and len(list(out.glob("part-*"))) == 6


def test_a_shard_is_whole_from_the_moment_it_is_there(loaded, tmp_path, monkeypatch):
    source, out, there = fill(tmp_path / "src", 4), tmp_path / "out", []
    sync = os.fsync
    monkeypatch.setattr("os.fsync", lambda file: (there.append(len(list(out.glob("part-*")))), sync(file))[1])
    assert run(source, out, "--shard-size", "2") == 0
    assert there == [0, 0, 1] and len(list(out.glob("part-*"))) == 2  # what was asked, and two shards


@pytest.mark.parametrize("place", ["folder", "address"])
def test_what_a_killed_run_was_writing_is_cleared_away(loaded, tmp_path, place):
    source = fill(tmp_path / "src", 1)
    system = fsspec.filesystem("memory" if place == "address" else "file")
    root = "/cleared" if place == "address" else str(tmp_path / "out")
    system.makedirs(root)
    try:
        for name in (".part-000000-0123456789abcdef.jsonl.77", ".describe.json.77", ".mine", "mine.txt"):
            system.pipe_file(f"{root}/{name}", b"half")
        assert run(source, f"memory:/{root}" if place == "address" else root) == 0
        left = {path.rpartition("/")[2] for path in system.ls(root, detail=False)} - {".lock"}
        assert {name for name in left if not name.startswith("part-")} == {"describe.json", ".mine", "mine.txt"}
    finally:
        system.rm(root, recursive=True)


def test_no_more_is_held_than_a_batch_needs(tmp_path, vlm, monkeypatch):
    monkeypatch.setattr("visglm.describe.work.MOST_HELD", 1000)
    items = list(find(str(fill(tmp_path / "src", 40))))
    task = Task("What is it?", {"batch_size": 8, "max_new_tokens": 1})
    size = len(png(1))
    assert {len(rows) for rows in describe(vlm, items, task)} <= {*range(1, 1000 // (size - 20) + 2)}
    read = []
    ahead = read_ahead(range(100), read.append)
    next(ahead)
    assert len(read) <= READERS + 1
    ahead.close()


def test_a_picture_that_is_too_large_is_one_row_whatever_it_holds(loaded, tmp_path):
    source, out = fill(tmp_path / "src", 1), tmp_path / "out"
    for tail, status in ((b"a", FAILED), (b"bb", 0)):
        (source / "large.png").write_bytes(png(1) + bytes(loaded.image_limits.max_bytes) + tail)
        assert run(source, out) == status
    [row] = [row for row in rows_of(out) if row["image"] == "large.png"]
    assert row["sha256"] == "" and "is over" in row["error"]
    (source / "large.png").write_bytes(png(1))
    assert run(source, out) == 0
    rows = rows_of(out)
    assert len(rows) == len({row["id"] for row in rows}) == 3


def test_what_was_done_and_cannot_be_read_any_more_is_told(loaded, tmp_path):
    source, out = fill(tmp_path / "src", 2), tmp_path / "out"
    assert run(source, out) == 0
    (source / "0/000.png").unlink()
    (source / "0/000.png").symlink_to("nowhere")
    assert run(source, out) == FAILED
    rows = [row for row in rows_of(out) if row["image"] == "0/000.png"]
    assert sorted(bool(row["error"]) for row in rows) == [False, True] and len({row["id"] for row in rows}) == 2


def test_a_broken_picture_is_a_row_and_what_could_not_be_read_is_tried_again(loaded, tmp_path, capsys):
    source, out = fill(tmp_path / "src", 2), tmp_path / "out"
    (source / "broken.png").write_bytes(png(1)[:40])
    (source / "gone.png").symlink_to(tmp_path / "later.png")
    assert run(source, out) == FAILED
    rows = {row["image"]: row for row in rows_of(out)}
    assert rows["broken.png"]["error"] and rows["broken.png"]["text"] is None and len(rows) == 4
    assert "gone.png" in rows["gone.png"]["error"]
    captured = capsys.readouterr()
    assert "broken.png" in captured.err and "2 of them could not be" in captured.err
    (tmp_path / "later.png").write_bytes(png(8))
    assert run(source, out) == 0  # the broken one is done: it is what it was
    again = rows_of(out)
    assert len(again) == len({row["id"] for row in again}) == 4
    assert {row["image"]: row for row in again}["gone.png"]["text"]
    assert "1 picture was described now, into" in capsys.readouterr().err


def test_a_folder_that_may_not_be_read_and_a_table_that_is_unclear_cost_the_others_nothing(
    loaded, tmp_path, monkeypatch
):
    source, out = fill(tmp_path / "src", 4), tmp_path / "out"
    parquet.write_table(pyarrow.table({"left": [b"1"], "right": [b"2"]}), source / "two.parquet")
    look, closed = os.scandir, {str(source / "1")}

    def scandir(place):
        if os.fspath(place).rstrip("/") in closed:
            raise PermissionError(13, "Permission denied", place)
        return look(place)

    monkeypatch.setattr("os.scandir", scandir)
    assert run(source, out) == FAILED
    rows = {row["image"]: row for row in rows_of(out)}
    assert "Permission denied" in rows.pop("1/")["error"] and "left, right" in rows.pop("two.parquet")["error"]
    assert len(rows) == 3 and all(row["text"] for row in rows.values())
    closed.clear()
    assert run(source, out) == FAILED
    rows = {row["image"]: row for row in rows_of(out)}
    assert (
        len(rows) == 5
        and rows["1/001.png"]["text"]
        and [name for name in rows if rows[name]["error"]] == ["two.parquet"]
    )
    closed.add(str(source))
    assert run(source, tmp_path / "another") == 1


def test_a_model_is_the_same_from_wherever_it_is_started(loaded, tmp_path, monkeypatch, capsys):
    source = fill(tmp_path / "src", 1)
    for name in ("here", "there"):
        (tmp_path / name / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert run(source, tmp_path / "out", "--model", "model") == 0
    monkeypatch.chdir(tmp_path)
    assert run(source, tmp_path / "out", "--model", "here/model") == 0
    monkeypatch.chdir(tmp_path / "there")
    assert run(source, tmp_path / "out", "--model", "model") == 1
    assert "begun with model" in capsys.readouterr().err


def test_another_question_does_not_go_into_the_same_results(loaded, tmp_path, capsys):
    source = fill(tmp_path / "src", 1)
    assert run(source, tmp_path / "out") == 0
    assert run(source, tmp_path / "out", "--question", "What colour is it?") == 1
    assert "begun with question 'Describe the picture.'" in capsys.readouterr().err
    assert run(source, tmp_path / "out", "--temperature", "1") == 1
    assert "begun with settings" in capsys.readouterr().err
    facts = json.loads((tmp_path / "out/describe.json").read_text())
    assert facts["settings"] == {"language": "auto", "max_new_tokens": 3}
    assert run(fill(tmp_path / "other", 1), tmp_path / "out") == 1
    assert "begun with source" in capsys.readouterr().err
    assert run(source, tmp_path / "out", "--format", "parquet") == 1
    os.unlink(tmp_path / "out/describe.json")
    assert run(source, tmp_path / "out") == 1
    assert "nobody can tell what was asked" in capsys.readouterr().err


def test_results_may_lie_in_the_folder_of_the_pictures(loaded, tmp_path):
    source = fill(tmp_path / "src", 2)
    for _ in range(2):
        assert run(source, source / "out", "--format", "parquet") == 0
    assert len(rows_of(source / "out")) == 2


def test_pictures_and_results_at_addresses(loaded, tmp_path):
    system = fsspec.filesystem("memory")
    system.put(str(fill(tmp_path / "src", 3)), "/far", recursive=True)
    try:
        for _ in range(2):
            assert run("memory://far", "memory://out", "--shard-size", "2") == 0
        system.get("/out", str(tmp_path / "out"), recursive=True)
        assert len(rows_of(tmp_path / "out")) == 3
        assert not [name for name in system.ls("/out", detail=False) if "/." in name]
    finally:
        system.rm("/far", recursive=True)
        system.rm("/out", recursive=True)


def test_one_process_at_a_time_works_in_a_folder(loaded, tmp_path, capsys):
    results = Results(str(tmp_path / "out"), "jsonl")
    results.begin({})
    assert run(fill(tmp_path / "src", 1), tmp_path / "out") == 1
    assert "another process is at work" in capsys.readouterr().err
    results.close()


def test_a_damaged_shard_is_told_and_not_taken_for_work_to_do(loaded, tmp_path, capsys):
    source = fill(tmp_path / "src", 1)
    assert run(source, tmp_path / "out") == 0
    (shard,) = (tmp_path / "out").glob("part-*")
    shard.write_text("{")
    assert run(source, tmp_path / "out") == 1
    assert "is damaged" in capsys.readouterr().err


def test_a_disk_that_is_full_leaves_no_half_shard(loaded, tmp_path, monkeypatch, capsys):
    source = fill(tmp_path / "src", 4)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    assert run(source, tmp_path / "out", "--shard-size", "2") == 0
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    sorted((tmp_path / "again").glob("part-*"))[-1].unlink()
    left = os.listdir(tmp_path / "again")
    monkeypatch.setattr("os.fsync", full)
    assert run(source, tmp_path / "again", "--shard-size", "2") == 1
    assert sorted(os.listdir(tmp_path / "again")) == sorted(left)
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EngineError("the network failed")])
def test_where_it_ends_what_was_answered_is_kept(loaded, tmp_path, monkeypatch, error):
    """And a failure of the model is nothing about a picture."""
    source, answer, calls = fill(tmp_path / "src", 20), VisGLM.batch, []

    def fail(self, requests, **settings):
        calls.append(len(requests))
        if len(calls) == 2:
            if isinstance(error, KeyboardInterrupt):
                raise error
            return [error] * len(requests)
        return answer(self, requests, **settings)

    monkeypatch.setattr(VisGLM, "batch", fail)
    assert run(source, tmp_path / "out", "--batch-size", "1") == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert [bool(row["text"]) for row in rows_of(tmp_path / "out")] == [True] * calls[0]
    monkeypatch.setattr(VisGLM, "batch", answer)
    assert run(source, tmp_path / "out") == 0
    assert len({row["id"] for row in rows_of(tmp_path / "out")}) == len(rows_of(tmp_path / "out")) == 20


@pytest.mark.parametrize(
    "words, told",
    [
        (["src"], "say in which folder the results"),
        (["src", "a.png", "out"], "is given alone"),
        (["a.png", "src"], "is given alone"),
        (["src", "out", "--json"], "--format jsonl"),
        (["src", "out", "--shard-size", "0"], "--shard-size"),
        (["src", "out", "--json-schema", "nowhere.json"], "nowhere.json cannot be read"),
        (["src", "out", "--json-schema", "a.png"], "--json-schema"),
        (["empty", "out"], "there is no picture in"),
        (["src", "a.png"], "cannot hold results"),
        (["src", "src"], "a folder of their own"),
        (["src", "src/0/.."], "a folder of their own"),
        (["memory://src/", "memory://src"], "a folder of their own"),
        (["https://example.org/a.tar", "out"], "Download it"),
    ],
)
def test_what_was_not_meant_is_told_before_the_model_is_loaded(tmp_path, monkeypatch, capsys, words, told):
    from visglm.cli import main

    fill(tmp_path / "src", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(png(1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("visglm.cli.describe.load_model", lambda arguments: pytest.fail("the model was loaded"))
    assert main(["describe", *words]) == 1
    assert told in capsys.readouterr().err


def test_what_was_begun_and_answered_nothing_keeps_nobody_from_another_start(loaded, tmp_path, capsys):
    """The source was misspelt, say, or its folder still empty."""
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "out") == 1 and "there is no picture" in capsys.readouterr().err
    assert run(fill(tmp_path / "src", 1), tmp_path / "out", "--question", "What is it?") == 0
    assert run(tmp_path / "src", tmp_path / "out") == 1 and "begun with question" in capsys.readouterr().err


def test_a_place_that_holds_no_results_is_told_with_what_would(loaded, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        assert run(fill(tmp_path / "src", 1), tmp_path / place) == 1
        error = capsys.readouterr().err
        assert f"{place} cannot hold results (" in error and "Name a folder" in error and "Errno" not in error, error


def test_damaged_results_are_refused_with_their_name(tmp_path):
    (tmp_path / "describe.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot hold results"):
        Results(str(tmp_path), "jsonl").begin({})


@pytest.mark.timeout(300)
@pytest.mark.skipif(os.name != "posix", reason="no SIGKILL elsewhere")
def test_killed_three_times_it_does_what_is_missing_once(tmp_path):
    source, out = fill(tmp_path / "src", 60), tmp_path / "out"
    size = 6
    command = [
        *(sys.executable, "-m", "visglm", "describe", str(source), str(out), *SHORT),
        *("--shard-size", str(size), "--batch-size", "1", "--format", "parquet"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(3):
        before = len(rows_of(out))
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(command, stderr=log, env=environment)
        while process.poll() is None and len(list(out.glob("part-*"))) * size < before + 2 * size:
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
        counts = [int(count) for count in re.findall(r"(\d+)picture \[", (tmp_path / "log").read_text())]
        answered = max(counts) - before  # as its bar tells
        assert 0 <= answered - (len(rows_of(out)) - before) <= size
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    assert len(rows) == len({row["id"] for row in rows}) == len({row["image"] for row in rows}) == 60
    assert not [path for path in out.iterdir() if path.name.startswith(".part")]
