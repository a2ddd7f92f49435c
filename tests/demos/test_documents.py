"""The library on the page, without a browser: documents dropped, asked, shown, removed, and whose they are."""

from __future__ import annotations

import html
import os
import re
import stat
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the page's tests run with the demo extra: make test-browser")
pytest.importorskip("lancedb", reason="libraries need the extra library")

import documents
import shelf
import shelves
import visitors
from models import EMBEDDED, Choice, load
from shelves import Reading, open_own, safe_name
from streamlit.testing.v1 import AppTest
from texts import speak

from tests.library import samples
from visglm import Library

from .samples import disc, encode
from .test_app import APP, check, notices, shown

say, zh = speak("en"), speak("zh")
pytestmark = pytest.mark.skipif(
    not hasattr(AppTest, "camera_input"), reason="AppTest of Streamlit 1.65, the last for Python 3.10, uploads no files"
)
TICKETS = "Tickets cost eleven euros."
MUSEUM = samples.pdf([(50, 100, "Welcome to the museum.")], [(50, 80, "It opens at nine."), (50, 500, TICKETS)])


@pytest.fixture(scope="module", autouse=True)
def model():
    return load(Choice(EMBEDDED))


@pytest.fixture(autouse=True)
def words_alone(monkeypatch):
    """Vectors take seconds, and are no matter of the page."""
    monkeypatch.setattr("visglm.library.collection.embedder", lambda vectors: samples.no_vectors())


@pytest.fixture
def open_tab(monkeypatch):
    def open_tab(*arguments: str, at_the_machine: bool = False, language: str = "en") -> AppTest:
        monkeypatch.setattr(sys, "argv", ["streamlit_app.py", *arguments])
        monkeypatch.setattr(documents, "at_the_machine", lambda: at_the_machine)
        page = AppTest.from_file(APP, default_timeout=60)
        page.session_state["language"] = language
        page.run()
        page.segmented_control(key="view").set_value("library")
        return check(page.run())

    return open_tab


def drop(page: AppTest, *files: tuple[str, bytes]) -> AppTest:
    uploader = page.file_uploader(key=f"library_upload_{page.session_state.num_dropped}")
    uploader.set_value([(name, content, "application/octet-stream") for name, content in files])
    return settled(page)


def settled(page: AppTest) -> AppTest:
    check(page.run())
    deadline = time.monotonic() + 60
    while page.session_state.reading is not None and time.monotonic() < deadline:
        check(page.run())
    return page


def ask(page: AppTest, question: str) -> AppTest:
    page.text_input(key="library_question").set_value(question)
    button = next(each for each in page.button if each.label in (say("library_ask"), zh("library_ask")))
    button.click()
    return check(page.run())


def test_a_document_is_dropped_asked_looked_at_and_removed(open_tab):
    page = open_tab()
    assert say("library_empty") in [caption.value for caption in page.caption]
    drop(
        page,
        ("museum.pdf", MUSEUM),
        ("a.png", samples.CAT.read_bytes()),
        ("kettle.txt", b"The colour of the kettle is blue."),
    )
    assert not notices(page)
    ask(page, "How much do tickets cost?")
    assert f"{TICKETS} [1]" in shown(page)
    source = page.button(key="source_0_1")
    assert source.label.replace("\\", "") == "[1] museum.pdf · page 2"
    check(source.click().run())
    place = re.search(r'<img src="data:image/jpeg[^>]* alt="([^"]*)"><span class="quoted" style="([^"]*)"', shown(page))
    assert html.unescape(place[1]) == say("library_sheet", quote=TICKETS)
    left, top, width, height = (float(number) for number in re.findall(r":([\d.]+)%", place[2]))
    assert left == pytest.approx(100 * 50 / 400, abs=1) and 80 < top < top + height < 85 and 20 < width < 60
    check(page.button(key="source_0_1").click().run())
    assert '<span class="quoted"' not in shown(page)
    ask(page, "Which picture shows a cat?")
    check(page.button(key="source_1_1").click().run())
    assert page.button(key="source_1_1").label.endswith(r"a\.png") and 'class="sheet"' in shown(page)
    ask(page, "What colour is the kettle?")
    check(page.button(key="source_2_1").click().run())
    assert '<mark class="quoted">The colour of the kettle is blue.</mark>' in shown(page)
    assert 'class="sheet"' not in shown(page), "one source is looked at at a time"
    folder = Path(page.session_state.library.library.path)
    removal = next(each for each in page.button if each.key.startswith("forget_document") and "museum" in each.label)
    check(removal.click().run())
    assert sorted(path.name for path in (folder / "files").iterdir()) == ["a.png", "kettle.txt"]
    assert not any(b"Tickets" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    ask(page, "How much do tickets cost?")
    assert say("library_gone") not in shown(page) and TICKETS not in page.session_state.asked_library[-1].reply.text
    check(page.button(key="source_0_1").click().run())
    assert notices(page) == [say("library_gone")]


def test_nothing_found_is_an_answer_in_both_languages(open_tab):
    page = drop(open_tab(language="zh"), ("museum.pdf", MUSEUM))
    ask(page, "谁发明了飞机？")
    assert "资料中没有找到相关内容。" in shown(page) and not [each for each in page.button if "source_" in each.key]
    assert zh("library_files", num=1) in [expander.label for expander in page.expander]


def test_what_cannot_be_read_says_why_and_the_rest_is_there(open_tab):
    page = drop(
        open_tab(), ("a.exe", b"MZ"), ("locked.pdf", samples.pdf([(50, 50, "x")], password="p")), ("cut.docx", b"PK"),
        ("empty.txt", b""), ("good.md", b"The colour of the kettle is blue."),
    )  # fmt: skip
    reasons = {
        "a.exe": "kind", "locked.pdf": "encrypted", "cut.docx": "damaged", "empty.txt": "empty",
    }  # fmt: skip
    told = {say("picture_refused", name=name, reason=say(f"document_{why}")) for name, why in reasons.items()}
    assert set(notices(page)) == told
    assert "The colour of the kettle is blue. [1]" in shown(ask(page, "What colour is the kettle?"))


def test_what_documents_are_called_and_say_is_never_markup(open_tab):
    name = "<img src=x onerror=alert(1)> [a](http:b).md"
    page = drop(open_tab(), (name, b"The colour of the kettle is <script>alert(2)</script> blue."))
    ask(page, "What colour is the kettle?")
    check(page.button(key="source_0_1").click().run())
    assert "<script" not in shown(page) and "<img src=x" not in shown(page)
    assert "](" not in page.button(key="source_0_1").label.replace("\\]\\(", "")


def test_a_visitor_has_room_for_so_much(open_tab, monkeypatch):
    monkeypatch.setattr(shelves, "VISITOR_LIBRARY", 400_000)
    page = drop(
        open_tab(),
        ("a.txt", b"The colour of the kettle is blue. " * 30_000),
        ("b.txt", b"The colour of the lid is red."),
    )
    assert notices(page) == [say("picture_refused", name="a.txt", reason=say("document_room"))]
    assert "The colour of the lid is red. [1]" in shown(ask(page, "What colour is the lid?"))


def test_only_who_sits_at_the_machine_syncs_its_folders(open_tab, tmp_path):
    assert not [each for each in open_tab().text_input if each.key == "sync_folder"]
    (tmp_path / "museum.pdf").write_bytes(MUSEUM)
    page = open_tab(at_the_machine=True)
    page.text_input(key="sync_folder").set_value(str(tmp_path))
    next(each for each in page.button if each.label == say("library_sync")).click()
    settled(page)
    assert f"{TICKETS} [1]" in shown(ask(page, "How much do tickets cost?"))
    page.text_input(key="sync_folder").set_value(str(tmp_path / "lost"))
    next(each for each in page.button if each.label == say("library_sync")).click()
    assert "is no folder" in notices(settled(page))[0]


def test_a_library_of_the_command_line_is_everybodys_and_nobodys_from_elsewhere(open_tab, tmp_path):
    library = Library.open(tmp_path / "notes")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/museum.pdf").write_bytes(MUSEUM)
    library.add(tmp_path / "secret", progress=False)
    page = open_tab("--library", str(tmp_path / "notes"))
    assert not [each for each in page.button if each.key.startswith("forget_")] and not [
        each for each in page.file_uploader if each.key.startswith("library_upload_")
    ]
    ask(page, "How much do tickets cost?")
    check(page.button(key="source_0_1").click().run())
    assert 'class="sheet"' in shown(page) and "secret" not in shown(page), "how folders here are called is told to none"
    page = open_tab("--library", str(tmp_path / "notes"), at_the_machine=True)
    assert str(tmp_path / "secret/museum.pdf") in shown(page)
    drop(page, ("kettle.md", b"The colour of the kettle is blue."))
    assert {Path(entry.source).name for entry in library.list()} == {"museum.pdf", "kettle.md"}


@pytest.mark.parametrize(
    "listens, caller, headers, is_here",
    [
        ("127.0.0.1", None, {"Host": "localhost:8501"}, True),
        ("localhost", None, {"host": "127.0.0.1:8501"}, True),
        ("::1", None, {"host": "[::1]:8501"}, True),
        ("0.0.0.0", None, {"host": "localhost:8501"}, False),
        (None, None, {"host": "localhost:8501"}, False),
        ("127.0.0.1", "192.168.1.5", {"host": "localhost:8501"}, False),
        ("127.0.0.1", None, {"host": "talk.example.org"}, False),
        ("127.0.0.1", None, {}, False),
        ("127.0.0.1", None, {"host": "localhost:8501", "X-Forwarded-For": "10.0.0.1"}, False),
        ("127.0.0.1", None, {"host": "localhost:8501", "Forwarded": "for=10.0.0.1"}, False),
    ],
)
def test_who_sits_at_the_machine(listens, caller, headers, is_here):
    assert visitors.is_local(listens, caller, headers) == is_here


def test_each_visitor_has_a_library_that_nobody_else_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(shelves, "default_path", lambda: tmp_path / "page/talks.sqlite")
    mine, folder = open_own("me")
    assert folder is None and stat.S_IMODE(shelves.libraries().stat().st_mode) == 0o700
    mine.library.add(mine.keep("kettle.md", b"The colour of the kettle is blue."), progress=False)
    theirs, _ = open_own("them")
    assert theirs.library.list() == [] and len(open_own("me")[0].library.list()) == 1
    passing, folder = open_own(None)
    path = Path(passing.library.path)
    assert path.is_dir()
    folder.cleanup()
    assert not path.exists()
    assert shelf.default_path  # the same place as the talks


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd.txt",
        "/etc/cron.txt",
        "..\\..\\x.md",
        ".hidden.md",
        "a\x00\nb.md",
        "好" * 300 + ".pdf",
        "\ud800.md",
    ],
)
def test_a_name_is_no_path(name):
    safe = safe_name(name)
    assert os.path.basename(safe) == safe and not safe.startswith(".") and len(safe.encode()) <= 140
    assert Path(safe).suffix == Path(name).suffix and safe.isprintable()


def test_reading_ends_where_it_is_stopped_and_the_next_one_waits_for_it(tmp_path):
    started = []

    def act(tell):
        started.append(True)
        while True:
            tell(1, 2)
            time.sleep(0.01)

    first, second = Reading(act), Reading(act)
    first.start()
    while not started:
        time.sleep(0.01)
    second.start()
    time.sleep(0.1)
    assert second.is_waiting and len(started) == 1
    second.stopped.set()
    second.join(10)
    first.stopped.set()
    first.join(10)
    assert not first.is_alive() and not second.is_alive() and first.error is second.error is None
    assert len(started) == 1 and documents.outcome(first)[0].key == "library_stopped"
    assert not shelves.READING.locked()


def test_a_picture_of_a_visitor_is_found_by_what_it_shows(open_tab):
    page = drop(open_tab(), ("disc.png", encode(disc())), ("cat.png", samples.CAT.read_bytes()))
    ask(page, "哪张图片里有猫？")
    assert page.session_state.asked_library[0].reply.text.startswith("cat.png")
