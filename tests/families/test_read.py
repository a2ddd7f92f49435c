"""Scans read by a model of GLM-OCR's family: a tiny one that has learnt three pages by heart, through the command, from
Python and as the library's reader."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families.made import PAGES, load, page, scan, tiff
from tests.library.samples import pdf
from visglm import VisGLM
from visglm.cli import main
from visglm.cluster import Share
from visglm.errors import ConfigError, DocumentError, ImageError
from visglm.indexing import spread
from visglm.library import Library, LibraryLimits, Page

TEXT, TABLE = PAGES["text"].says, PAGES["table"].says
BOTH = f"{TEXT}\n\n<!-- page 2 -->\n\n{TABLE}\n"


@pytest.fixture(scope="module")
def vlm(reader):
    return load(reader)


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """Where somebody has scans."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letter.pdf").write_bytes(scan("text", "table"))
    page("text").save(tmp_path / "photo.png")
    page("formula").save(tmp_path / "formula.jpg", quality=95)
    return tmp_path


def broken_page(data: bytes, number: int) -> bytes:
    """The same PDF, a page of which is not where its list of pages says."""
    listed = re.search(rb"/Kids\s*\[([^\]]*)\]", data)[1]
    found = re.findall(rb"\d+ 0 R", listed)[number - 1]
    return data.replace(listed, listed.replace(found, b"9" * (len(found) - 4) + b" 0 R"))


def read(*words: object) -> int:
    return main(["read", *map(str, words)])


def test_pages_are_printed_as_markdown(desk, reader, capsys):
    assert read("letter.pdf", "--model", reader) == 0
    assert capsys.readouterr().out == BOTH
    assert read("photo.png", "letter.pdf", "--model", reader, "--batch-size", 1) == 0
    assert capsys.readouterr().out == f"<!-- photo.png -->\n\n{TEXT}\n\n<!-- letter.pdf -->\n\n{BOTH}"


def test_a_file_for_each_and_nothing_is_overwritten_unasked(desk, reader, capsys):
    assert read("letter.pdf", "photo.png", "--out", "md", "--model", reader) == 0
    assert {path.name: path.read_text("utf-8") for path in Path("md").iterdir()} == {
        "letter.md": BOTH, "photo.md": f"{TEXT}\n",
    }  # fmt: skip
    Path("md/photo.md").write_text("mine", "utf-8")
    assert read("letter.pdf", "photo.png", "--out", "md", "--model", reader) == 0
    assert Path("md/photo.md").read_text("utf-8") == "mine"
    told = capsys.readouterr().err
    assert "photo.md is there already; --overwrite replaces it" in told
    assert read("photo.png", "--out", "md", "--overwrite", "--model", reader) == 0
    assert Path("md/photo.md").read_text("utf-8") == f"{TEXT}\n"


def test_pages_of_a_tiff_are_read_by_their_numbers(desk, reader, vlm, capsys):
    Path("fax.tif").write_bytes(tiff("text", "table"))
    Path("one.TIFF").write_bytes(tiff("text"))
    assert read("fax.tif", "--model", reader) == 0
    assert capsys.readouterr().out == BOTH
    assert read(".", "--out", "md", "--model", reader, "--batch-size", 1) == 0
    assert Path("md/fax.md").read_text("utf-8") == BOTH and Path("md/one.md").read_text("utf-8") == f"{TEXT}\n"
    assert list(vlm.read(tiff("text", "table"), first_page=2)) == [Page(2, TABLE)]


def test_a_tiff_that_ends_early_keeps_the_pages_before(desk, reader, capsys):
    """The directory of the second page lies at its end."""
    Path("fax.tif").write_bytes(tiff("text", "table")[:-40])
    assert read("fax.tif", "--out", "md", "--model", reader) == 3
    parts = [TEXT, "<!-- page 2 -->", "<!-- page 2 could not be read -->"]
    assert Path("md/fax.md").read_text("utf-8") == "\n\n".join(parts) + "\n"
    assert "fax.tif: page 2: " in capsys.readouterr().err


@pytest.mark.parametrize("is_killed", [False, True])
def test_what_was_interrupted_is_gone_on_with(desk, reader, capsys, monkeypatch, is_killed):
    """The pages that were read are not read again, and what was told of them is told once more."""
    Path("letter.pdf").write_bytes(broken_page(scan("text", "text", "table", "text"), 2))
    words = ["letter.pdf", "--out", "md", "--model", reader, "--batch-size", 1]
    whole = VisGLM.batch
    asked: list[int] = []

    def batch(self, rows, **settings):
        asked.append(len(rows))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return whole(self, rows, **settings)

    monkeypatch.setattr(VisGLM, "batch", batch)
    assert read(*words) == 130
    [kept] = Path("md").iterdir()
    assert not Path("md/letter.md").exists() and kept.name.startswith(".")
    if is_killed:  # while it wrote a line
        with kept.open("a") as file:
            file.write('{"number": 3, "text": "Half of')
    asked.append(0)  # past the interruption
    assert read(*words) == 3
    assert sum(asked) == 1 + 0 + 1 + 0 + 2  # one page, the broken one, the one that was interrupted, then two
    parts = [TEXT, "<!-- page 2 -->", "<!-- page 2 could not be read -->", "<!-- page 3 -->", TABLE, "<!-- page 4 -->"]
    assert Path("md/letter.md").read_text("utf-8") == "\n\n".join([*parts, TEXT]) + "\n"
    assert [path.name for path in Path("md").iterdir()] == ["letter.md"]
    told = capsys.readouterr().err
    assert "letter.pdf: 2 pages were read before" in told and told.count("page 2: it cannot be drawn") == 2


@pytest.mark.parametrize("changed", ["content", "settings"])
def test_pages_of_something_else_are_not_gone_on_with(desk, reader, monkeypatch, changed):
    def kept() -> list[Path]:
        return list(Path("md").glob(".*"))

    def stop(self, rows, **settings):
        if kept():
            raise KeyboardInterrupt
        return whole(self, rows, **settings)

    words, whole = ["letter.pdf", "--out", "md", "--model", reader, "--batch-size", 1], VisGLM.batch
    with monkeypatch.context() as patch:
        patch.setattr(VisGLM, "batch", stop)
        assert read(*words) == 130 and len(kept()) == 1
    if changed == "content":
        Path("letter.pdf").write_bytes(scan("table", "text"))
        assert read(*words) == 0
        assert Path("md/letter.md").read_text("utf-8") == f"{TABLE}\n\n<!-- page 2 -->\n\n{TEXT}\n"
    else:
        assert read(*words, "--max-new-tokens", 9) == 3
        assert TEXT not in Path("md/letter.md").read_text("utf-8")
    assert kept() == []


def test_pages_are_kept_for_a_smaller_batch_and_while_the_scan_is_away(desk, reader, monkeypatch, capsys):
    """Who ran out of memory takes fewer pages at a time; and a disk that is not there comes back."""
    Path("letter.pdf").write_bytes(scan("text", "text", "text", "table"))
    words, whole, asked = ["letter.pdf", "--out", "md", "--model", reader, "--batch-size"], VisGLM.batch, []

    def batch(self, rows, **settings):
        asked.append(len(rows))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole(self, rows, **settings)

    monkeypatch.setattr(VisGLM, "batch", batch)
    assert read(*words, 2) == 130
    Path("letter.pdf").rename("elsewhere.pdf")
    assert read(*words, 2) == 3
    Path("elsewhere.pdf").rename("letter.pdf")
    assert read(*words, 1) == 0 and asked == [2, 2, 1, 1]
    assert "letter.pdf: 2 pages were read before" in capsys.readouterr().err
    assert [path.name for path in Path("md").iterdir()] == ["letter.md"]


def test_a_folder_is_read_with_what_is_below(desk, reader):
    Path("box/deep").mkdir(parents=True)
    Path("box/.hidden.png").write_bytes(b"x")
    Path("box/notes.txt").write_text("x")
    Path("photo.png").rename("box/deep/photo.png")
    assert read("box", "--out", "md", "--model", reader) == 0
    assert [path.as_posix() for path in Path("md").rglob("*") if path.is_file()] == ["md/deep/photo.md"]
    Path("empty").mkdir()
    assert read("empty", "--model", reader) == 1


def test_what_a_folder_has_besides_is_told(desk, reader, capsys):
    """Photoshop's files beside a picture would be missed in silence."""
    Path("box").mkdir()
    Path("photo.png").rename("box/photo.png")
    for name in ("a.psd", "b.PSD", "notes", ".hidden"):
        Path("box", name).write_bytes(b"x")
    assert read("box", "--out", "md", "--model", reader) == 0
    assert "box: 3 files are of kinds that are not read (2 .psd, 1 no ending)." in capsys.readouterr().err
    Path("box/a.psd").unlink()
    Path("box/notes").unlink()
    assert read("box", "--out", "md", "--model", reader) == 0
    assert "box: 1 file is of a kind that is not read (1 .psd)." in capsys.readouterr().err


@pytest.mark.parametrize(
    "out, told",
    [
        ("letter.pdf", "letter.pdf is none"), ("letter.pdf/deep/er", "letter.pdf is none"), ("", "it is empty"),
        ("gone", "gone is none"), ("taken", "photo.md is a folder"),
    ],
)  # fmt: skip
def test_where_nothing_can_be_written_is_told_before_a_page_is_read(desk, reader, capsys, monkeypatch, out, told):
    Path("gone").symlink_to("nowhere")
    Path("taken/photo.md").mkdir(parents=True)
    monkeypatch.setattr("visglm.cli.read.load_model", None)
    assert read("photo.png", "--out", out, "--overwrite", "--model", reader) == 1
    assert told in capsys.readouterr().err


def test_a_folder_in_the_home_is_where_the_shell_would_have_it(desk, reader, monkeypatch):
    monkeypatch.setenv("HOME", str(desk / "home"))
    assert read("photo.png", "--out=~/md", "--model", reader) == 0  # shells leave this ~ as it is
    assert (desk / "home/md/photo.md").read_text("utf-8") == f"{TEXT}\n" and not Path("~").exists()


def test_a_formula_is_marked_as_one(desk, reader, capsys):
    assert read("formula.jpg", "--kind", "formula", "--model", reader) == 0
    assert capsys.readouterr().out == f"$$\n{PAGES['formula'].says}\n$$\n"


def test_a_broken_page_is_told_and_the_others_are_read(desk, reader, capsys):
    Path("letter.pdf").write_bytes(broken_page(scan("text", "text", "table"), 2))
    assert read("letter.pdf", "--out", "md", "--model", reader) == 3
    parts = [TEXT, "<!-- page 2 -->", "<!-- page 2 could not be read -->", "<!-- page 3 -->", TABLE]
    assert Path("md/letter.md").read_text("utf-8") == "\n\n".join(parts) + "\n"
    assert "letter.pdf: page 2: it cannot be drawn" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, told",
    [
        (b"%PDF-1.7 nothing", "damaged"),
        (b"", "damaged"),
        (pdf([(1, 1, "x")], password="secret"), "encrypted"),
        (None, "cannot be opened"),
        (broken_page(scan("text"), 1), "page 1"),
    ],
)
def test_a_broken_file_is_told_and_the_others_are_read(desk, reader, capsys, content, told):
    if content is not None:
        Path("broken.pdf").write_bytes(content)
    Path("other.png").write_bytes(b"no picture")
    assert read("broken.pdf", "other.png", "photo.png", "--out", "md", "--model", reader) == 3
    assert [path.name for path in Path("md").iterdir()] == ["photo.md"]
    problems = capsys.readouterr().err
    assert re.search(rf"broken\.pdf: .*{told}", problems) and "2 of 3 files" in problems


def test_what_ended_at_its_limit_is_told(desk, reader, capsys):
    assert read("photo.png", "--model", reader, "--max-new-tokens", 9) == 3
    printed = capsys.readouterr()
    assert TEXT.startswith(printed.out.strip()) and printed.out.strip()
    assert "page 1: it is not whole" in printed.err and "--max-new-tokens" in printed.err


@pytest.mark.parametrize("family", ["glm4v", None])
def test_a_model_that_does_not_read_is_refused_before_it_is_loaded(desk, folders, family, capsys, monkeypatch):
    monkeypatch.setattr("visglm.cli.read.load_model", lambda arguments: pytest.fail("it was loaded"))
    model = ["--model", folders[family]] if family else []
    assert read("photo.png", "--out", "md", *model) == 1
    assert "GLM-OCR" in capsys.readouterr().err and not Path("md").exists()


def test_two_scans_do_not_become_one_file(desk, reader, capsys):
    Path("photo.pdf").write_bytes(scan("text"))
    assert read("photo.png", "photo.pdf", "--out", "md", "--model", reader) == 1
    assert "photo.png and photo.pdf would both become md/photo.md" in capsys.readouterr().err
    assert read("photo.png", "--overwrite", "--model", reader) == 1


def test_a_full_disk_leaves_what_was_there(desk, reader, capsys, monkeypatch):
    Path("md").mkdir()
    Path("md/photo.md").write_text("mine", "utf-8")

    def fail(*names: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert read("photo.png", "--out", "md", "--overwrite", "--model", reader) == 1
    assert "md/photo.md cannot be written (No space left on device)" in capsys.readouterr().err
    assert [(path.name, path.read_text("utf-8")) for path in Path("md").iterdir()] == [("photo.md", "mine")]


def test_from_python(desk, vlm, models):
    assert list(vlm.read("letter.pdf")) == [Page(1, TEXT), Page(2, TABLE)] == list(vlm.read(scan("text", "table")))
    [only] = vlm.read(page("formula"), "formula")
    assert str(only) == "$$\nx^2+1\n$$"
    [cut] = vlm.read("photo.png", max_new_tokens=9)
    assert cut.problem and TEXT.startswith(cut.text)
    with pytest.raises(ConfigError, match="kind must be one of text, table, formula"):
        vlm.read("photo.png", "poem")
    with pytest.raises(ConfigError, match="no setting 'tone'"):
        vlm.read("photo.png", tone="kind")
    with pytest.raises(ConfigError, match="GLM-4.1V has no read here.*GLM-OCR has it"):
        models["glm4v"].read("photo.png")
    with pytest.raises(ImageError):
        vlm.read("nothing.png")
    with pytest.raises(DocumentError):
        vlm.read("nothing.pdf")


# --- the library's reader ---


@pytest.fixture(autouse=True)
def without_rapid(monkeypatch):
    monkeypatch.setattr("visglm.library.ocr.can_read", lambda: False)


def test_a_library_reads_scans_with_it(desk, reader, capsys):
    assert main(["library", "sync", "notes", str(desk), "--no-vectors"]) == 3  # nobody reads the letter
    assert "letter.pdf: its 2 pages are pictures of text" in capsys.readouterr().err
    assert main(["library", "sync", "notes", str(desk), "--no-vectors", "--reader", str(reader)]) == 0
    assert "3 changed" in capsys.readouterr().out
    assert main(["library", "search", "notes", "dogs", "--files", "*.pdf", "--kind", "text", "--json"]) == 0
    [found] = map(json.loads, capsys.readouterr().out.splitlines())
    assert (found["text"], found["page"], found["heading"]) == ("Two dogs. 两只狗。", 1, "Red cats")
    assert main(["library", "search", "notes", "cat", "--files", "*.pdf", "--kind", "text", "--json"]) == 0
    [row] = [json.loads(line) for line in capsys.readouterr().out.splitlines() if json.loads(line)["page"] == 2]
    assert "<" not in row["text"] and "cat" in row["text"] and "2" in row["text"]
    assert main(["ask", "Where are two dogs?", "--library", "notes", "--files", "*.pdf"]) == 0
    assert "letter.pdf, page 1" in capsys.readouterr().out
    for words in (["--reader", str(reader)], []):  # and whoever comes without it reads nothing again
        assert main(["library", "sync", "notes", str(desk), "--no-vectors", *words]) == 0
        assert "3 unchanged" in capsys.readouterr().out


def test_a_loaded_reader_does_not_go_to_other_processes(desk, vlm):
    library = Library.open("notes", reader=vlm, vectors=False)
    for given in (None, vlm):
        with pytest.raises(ConfigError, match="Give spread.* the folder or hub id"):
            spread(library.indexer, 2, Share(1, 0), given)


@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed: make test-ray")
def test_processes_of_ray_each_load_it(desk, reader, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    desk.joinpath("reader").symlink_to(reader)
    words = ["library", "sync", "notes", ".", "--no-vectors", "--reader", "reader"]
    command = [sys.executable, "-m", "visglm", *words, "--ray", "local", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "3 added" in done.stdout, done.stderr
    library = Library.open("notes", create=False, vectors=False)
    [hit] = library.search("dogs", files="*.pdf", kinds="text")
    assert (hit.text, hit.page, hit.heading) == ("Two dogs. 两只狗。", 1, "Red cats")
    again = subprocess.run(command[: -len(("--ray", "local", "--workers", "2"))], capture_output=True, text=True)
    assert "3 unchanged" in again.stdout, again.stderr


def test_what_nobody_reads_is_told_with_a_reader_as_well(desk, reader, capsys):
    Path("tape.wav").write_bytes(b"RIFF")
    for _ in range(2):
        assert main(["library", "add", "notes", "tape.wav", "--no-vectors", "--reader", str(reader)]) == 3
        assert "tape.wav: files like this are not read" in capsys.readouterr().err


def test_a_reader_that_does_not_read_is_refused(desk, folders, models, capsys):
    assert main(["library", "sync", "notes", str(desk), "--reader", str(folders["glm4v"])]) == 1
    assert "GLM-OCR has it" in capsys.readouterr().err and not Path("notes.library").exists()
    with pytest.raises(ConfigError, match="reads pages, such as GLM-OCR"):
        Library.open("notes", reader=models["glm4v"])
    assert not Path("notes.library").exists()


def test_limits_hold(desk, vlm, monkeypatch):
    monkeypatch.setattr("visglm.library.LibraryLimits", lambda **more: LibraryLimits(max_pages=1, **more))
    with pytest.raises(DocumentError, match="2 pages"):
        vlm.read("letter.pdf")
