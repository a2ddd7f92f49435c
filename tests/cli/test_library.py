"""`visglm library` and `visglm ask`, as they are typed."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.library import samples
from visglm.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("visglm.library.ocr.can_read", lambda: False)
    where = tmp_path / "docs"
    where.mkdir()
    (where / "kettle.txt").write_text("Its warranty lasts thirty months.\n\n保修期是三十个月。", "utf-8")
    (where / "page.pdf").write_bytes(samples.pdf([(50, 100, "Tickets cost eleven euros.")]))
    shutil.copy(samples.CAT, where / "cat.png")
    return where


def test_from_a_folder_to_an_answer(folder, capsys):
    assert main(["library", "sync", "notes", "docs", "--no-vectors"]) == 0
    assert "3 added" in capsys.readouterr().out
    assert main(["library", "search", "notes", "tickets"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("docs/page.pdf, page 1: Tickets cost eleven euros.")
    assert main(["library", "search", "notes", "--image", "docs/cat.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["likeness"] > 0.99
    assert main(["ask", "How much do tickets cost?", "--library", "notes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Tickets cost eleven euros. [1]"
    assert "page.pdf, page 1 at 12,1" in lines[1] and lines[1].endswith("% (Section 1)")
    assert main(["ask", "保修期多久？", "--library", "notes.library", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == "保修期是三十个月。 [1]" and told["citations"][0]["source"].endswith("kettle.txt")
    assert main(["ask", "Who rules Atlantis?", "--library", "notes"]) == 0
    assert capsys.readouterr().out == "Nothing was found about this.\n"


def test_what_is_removed_and_what_is_skipped(folder, capsys):
    (folder / "broken.pdf").write_bytes(b"%PDF-")
    assert main(["library", "add", "notes", "docs", "docs/kettle.txt", "--no-vectors"]) == 3
    told = capsys.readouterr()
    assert "1 skipped" in told.out and "broken.pdf: it is damaged" in told.err
    assert main(["library", "remove", "notes", "docs/kettle.txt"]) == 0
    assert main(["library", "list", "notes"]) == 0
    told = capsys.readouterr()
    assert "broken.pdf: not read, it is damaged" in told.out and "kettle" not in told.out.replace("1 removed", "")
    assert main(["library", "search", "notes", "warranty"]) == 0 and main(["library", "compact", "notes"]) == 0
    assert "Nothing was found." in capsys.readouterr().err


def test_one_of_a_thing_is_not_called_many(folder, capsys):
    (folder / "page.pdf").write_bytes(samples.pdf([], picture=samples.CAT))
    assert main(["library", "add", "scans", "docs/page.pdf", "--no-vectors"]) == 3
    assert 'page.pdf: its 1 page is a picture of text. To have it read: pip install "vis' in capsys.readouterr().err
    (folder / "page.pdf").unlink()
    (folder / "cat.png").rename(folder / "cat.psd")
    assert main(["library", "sync", "notes", "docs", "--no-vectors"]) == 0
    assert "1 file is of a kind that is not read." in capsys.readouterr().err
    assert main(["library", "list", "notes"]) == 0
    told = capsys.readouterr()
    assert told.out.endswith("kettle.txt: 1 part\n") and told.err.startswith("1 document, 1 part, 0 pictures, ")
    (folder / "dog.psd").write_bytes(b"x")
    assert main(["library", "sync", "notes", "docs"]) == 0
    assert "2 files are of kinds that are not read." in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["library", "list", "lost"], "there is no library"),
        (["library", "sync", "notes", "lost"], "is no folder"),
        (["library", "add", "notes", "lost.txt"], "does not exist"),
        (["library", "search", "docs", ""], "nothing to look for"),
        (["ask", "x", "--library", "lost"], "there is no library"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_made(folder, capsys, words, said):
    assert main(words) == 1
    assert said in capsys.readouterr().err
    assert [path.name for path in folder.parent.iterdir()] == ["docs"]
