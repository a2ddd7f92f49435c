"""Talks on the disk: whose they are, how many, and that what is deleted is gone."""

from __future__ import annotations

import stat

import pytest

pytest.importorskip("platformdirs", reason="the page's tests run with the demo extra: make test-browser")

import shelf
from shelf import Shelf, ShelfFull


@pytest.fixture
def path(tmp_path):
    return tmp_path / "page/talks.sqlite"


@pytest.mark.parametrize("is_kept", [True, False])
def test_written_listed_read_and_forgotten(path, is_kept):
    mine = Shelf("me", path if is_kept else None)
    mine.write("a", "First", "body of the first", changed=1)
    mine.write("b", "Second", "body", changed=2)
    assert [talk.title for talk in mine.talks()] == ["Second", "First"]
    mine.write("a", "First, gone on", "longer body", changed=3)
    assert [talk.key for talk in mine.talks()] == ["a", "b"] and mine.read("a") == "longer body"
    mine.forget("a")
    assert mine.read("a") is None and [talk.key for talk in mine.talks()] == ["b"]


def test_each_finds_only_his_or_her_own(path):
    mine, theirs = Shelf("me", path), Shelf("them", path)
    mine.write("a", "Mine", "body")
    assert theirs.talks() == [] and theirs.read("a") is None
    theirs.write("a", "Theirs", "other body")
    theirs.forget("a")
    assert mine.read("a") == "body"
    assert Shelf("me", path).read("a") == "body"


def test_only_this_user_reads_the_file_and_what_is_deleted_is_overwritten(path):
    mine = Shelf("me", path)
    mine.write("a", "Title", "the seventeenth elephant " * 1000)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert b"seventeenth" in path.read_bytes()
    mine.forget("a")
    assert b"seventeenth" not in b"".join(each.read_bytes() for each in path.parent.iterdir())


def test_there_is_a_bound_for_each_and_for_all(path, monkeypatch):
    monkeypatch.setattr(shelf, "VISITOR_BYTES", 100)
    monkeypatch.setattr(shelf, "EVERYBODYS_BYTES", 150)
    mine, theirs = Shelf("me", path), Shelf("them", path)
    mine.write("a", "", "x" * 90)
    with pytest.raises(ShelfFull):
        mine.write("b", "", "x" * 20)
    mine.write("a", "", "y" * 95)  # in its own place there is room
    with pytest.raises(ShelfFull):
        theirs.write("a", "", "x" * 60)
    theirs.write("a", "", "x" * 40)
    assert mine.read("a") == "y" * 95


def test_a_disk_that_takes_nothing_is_told(path, monkeypatch):
    mine = Shelf("me", path)
    monkeypatch.setattr(mine, "path", path.parent)  # a folder is no database
    with pytest.raises(ShelfFull):
        mine.write("a", "", "body")
