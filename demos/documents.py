"""Ask documents and pictures: dropped here or synced, listed and removed; answers whose sources are looked at."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pictures
import streamlit as st
from conversation import is_text, picture_url
from PIL import Image
from settings import Page
from shelves import POLL_SECONDS, Reading, Shelved, can_be_read, open_own
from talk import as_html
from texts import Told, as_label, notice
from visitors import at_the_machine, free_uploads, session_id, visitor

from visglm import Citation, Library, Reply, VisGLMError
from visglm.library import Changes, View

PLACE = "library"  # of what is to be said here
KEPT_ANSWERS = 20
SHOWN_FILES = 100
SHOWN_PROBLEMS = 8
SURROUNDINGS = 400  # characters of a text on each side of the quote
# What an error of a document says → the text that tells it to a visitor, in order.
REASONS = {
    "encrypted": "document_encrypted",
    "pictures of text": "document_scan",
    "is empty": "document_empty",
    "no text and no picture": "document_empty",
    "more than": "document_large",
}

Say = Callable[..., str]


@dataclass
class Answered:
    """A question and its answer.

    Args:
        shown: number of the source that is looked at; None for none.
        view: that source.
    """

    question: str
    reply: Reply
    shown: int | None = None
    view: View | Told | None = None


def view(page: Page) -> None:
    state, say = st.session_state, page.say
    st.html(f'<p class="lead">{html.escape(say("library_lead"))}</p>')
    try:
        shelved = shelf(page)
    except (VisGLMError, OSError) as error:
        st.error(f"**{say('library_unopened')}**", icon=":material/error:")
        st.code(str(error), language=None, wrap_lines=True)
        return
    names = shelved.names
    with st.expander(say("library_files", num=len(names)), icon=":material/folder_open:", expanded=not names):
        if shelved.may_change:
            take_in(shelved, say)
        listing(shelved, names, say)
    pictures.show_notices(PLACE, say, keep=state.reading is not None)
    if state.reading is not None:
        attend(state.reading, say)
    if names:
        ask_form(page, shelved, say)
    for index in range(len(state.asked_library) - 1, -1, -1):  # the newest first
        draw_answer(shelved, index, state.asked_library[index], say)


def shelf(page: Page) -> Shelved:
    """The library that the page was started with, or the visitor's own; opened once for this tab."""
    state = st.session_state
    if state.library is None:
        if page.asked.library is not None:
            state.library = Shelved(Library.open(page.asked.library), is_own=False, may_change=at_the_machine())
        else:
            state.library, state.library_folder = open_own(None if state.no_history else visitor())
    return state.library


# --- what is in it ---------------------------------------------------------------------------------------------


def take_in(shelved: Shelved, say: Say) -> None:
    """Drop files, and where the person at this machine looks at the page, sync a folder of it."""
    state = st.session_state
    count = state.num_dropped
    files = st.file_uploader(say("library_drop"), accept_multiple_files=True, key=f"library_upload_{count}",
                             disabled=state.reading is not None)  # fmt: skip
    st.caption(say("library_kept" if shelved.is_own and state.library_folder is None
                   else "library_unkept" if shelved.is_own else "library_shared"))  # fmt: skip
    if files and state.reading is None:
        drop(shelved, files)
    if at_the_machine():
        with st.form("sync_form", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
            folder = st.text_input(say("library_folder"), placeholder=say("library_folder_hint"), key="sync_folder")
            sent = st.form_submit_button(
                say("library_sync"), icon=":material/sync:", disabled=state.reading is not None
            )
        if sent and folder.strip():
            where = Path(folder.strip()).expanduser()
            begin(lambda tell: shelved.library.sync(where, progress=tell))


def drop(shelved: Shelved, files: list[Any]) -> None:
    """Keep what was dropped, and have it read."""
    state = st.session_state
    notices, kept = state.notices, []
    for file in files:
        name, data = Path(file.name).name, file.getvalue()
        if not can_be_read(name):
            notices.append((PLACE, refused(name, "document_kind")))
        elif not shelved.has_room(len(data)):
            notices.append((PLACE, refused(name, "document_room")))
        else:
            kept.append(shelved.keep(name, data))
    state.num_dropped += 1
    free_uploads(files)
    if kept:
        begin(lambda tell: shelved.library.add(kept, progress=tell))
    st.rerun()


def refused(name: str, reason: str) -> Told:
    return Told("picture_refused", {"name": name, "reason": Told(reason)})


def begin(act: Callable[[Callable[[int, int], None]], Changes]) -> None:
    state = st.session_state
    state.reading = Reading(act, session_id())
    state.reading.start()
    st.rerun()  # what would begin another one is drawn anew, and waits


def attend(reading: Reading, say: Say) -> None:
    """Watch until all is read. Whatever is clicked meanwhile ends this run of the page, not the reading."""
    state = st.session_state
    with st.status(say("library_reading"), expanded=True):
        st.button(say("stop"), icon=":material/stop_circle:", key="library_stop", on_click=reading.stopped.set)
        bar = st.empty()
        while reading.is_alive():
            share = reading.num_done / reading.num if reading.num else 0.0
            told = "library_queue" if reading.is_waiting else "library_progress"
            bar.progress(min(share, 1.0), say(told, done=reading.num_done, num=reading.num))
            reading.join(POLL_SECONDS)
    state.reading = None
    state.notices.extend((PLACE, told) for told in outcome(reading))
    st.rerun()


def outcome(reading: Reading) -> list[Told]:
    """What is to be said of it: what could not be read, and why."""
    if reading.error is not None:
        return [Told("library_failed", {"problem": str(reading.error)})]
    if reading.changes is None:
        return [Told("library_stopped")]
    skipped = sorted(reading.changes.skipped.items())
    told = [refused(Path(source).name, reason_of(problem)) for source, problem in skipped[:SHOWN_PROBLEMS]]
    if len(skipped) > SHOWN_PROBLEMS:
        told.append(Told("library_more", {"num": len(skipped) - SHOWN_PROBLEMS}))
    return told


def reason_of(problem: str) -> str:
    return next((text for words, text in REASONS.items() if words in problem), "document_damaged")


def listing(shelved: Shelved, names: dict[str, str], say: Say) -> None:
    """What is in the library, and what of it could not be read; each with a button that removes it."""
    if not names:
        st.caption(say("library_empty"))
        return
    entries = shelved.library.list()
    with st.container(key="documents", gap=None, height=260 if len(entries) > 5 else "content"):
        for number, entry in enumerate(entries[:SHOWN_FILES]):
            with st.container(horizontal=True, gap="small", vertical_alignment="center", key=f"row_document_{number}"):
                problem = f" — {say(reason_of(entry.problem))}" if entry.problem else ""
                st.html(f'<div class="file">{html.escape(names.get(entry.source, "") + problem)}</div>')
                if shelved.may_change:
                    st.button(
                        as_label(say("library_remove", name=names.get(entry.source, ""))), icon=":material/delete:",
                        key=f"forget_document_{number}", type="tertiary", on_click=remove,
                        args=(shelved, entry.source), disabled=st.session_state.reading is not None,
                    )  # fmt: skip
        if len(entries) > SHOWN_FILES:
            st.caption(say("library_more", num=len(entries) - SHOWN_FILES))


def remove(shelved: Shelved, source: str) -> None:
    try:
        shelved.forget(source)
    except (VisGLMError, OSError) as error:
        pictures.notify(PLACE, Told("library_failed", {"problem": str(error)}))


# --- asking ----------------------------------------------------------------------------------------------------


def ask_form(page: Page, shelved: Shelved, say: Say) -> None:
    state = st.session_state
    form = st.form("library_form", border=False, clear_on_submit=True)
    with form, st.container(horizontal=True, vertical_alignment="bottom"):
        question = st.text_input(say("question"), placeholder=say("library_ask_hint"), key="library_question")
        sent = st.form_submit_button(say("library_ask"), type="primary", icon=":material/search:")
    if not sent or not question.strip():
        return
    if not is_text(question):
        st.html(notice(say("text_broken")))
        return
    asked = state.asked_library
    try:
        with st.spinner(say("library_searching")):
            reply = page.vlm.ask(
                question.strip(), library=shelved.library, language=page.prompt_language, **page.sampling
            )
    except VisGLMError as error:
        st.html(notice(say("failed", problem=error)))
        return
    asked.append(Answered(question.strip(), reply))
    del asked[:-KEPT_ANSWERS]


def draw_answer(shelved: Shelved, index: int, answered: Answered, say: Say) -> None:
    with st.container(key=f"answered_{index}", gap="small"):
        st.html(f'<div class="asked">{html.escape(answered.question)}</div>')
        st.html(as_html(answered.reply.text))
        if not answered.reply.citations:
            return
        with st.container(horizontal=True, key=f"sources_{index}", gap="small"):
            for citation in answered.reply.citations:
                st.button(
                    as_label(f"[{citation.number}] {place_of(citation, say)}"), key=f"source_{index}_{citation.number}",
                    icon=":material/image:" if citation.kind == "picture" else ":material/description:",
                    type="primary" if answered.shown == citation.number else "secondary",
                    on_click=look, args=(shelved.library, answered, citation),
                )  # fmt: skip
        if answered.view is not None:
            draw_source(answered.view, say)


def place_of(citation: Citation, say: Say) -> str:
    """Such as `manual.pdf · page 3`."""
    page = [say("library_page", number=citation.page)] if citation.page else []
    return " · ".join([Path(citation.source).name, *page])


def look(library: Library, answered: Answered, citation: Citation) -> None:
    """Show a source, and no other; if it is shown already, none."""
    is_shown = answered.shown == citation.number
    for other in st.session_state.asked_library:
        other.shown = other.view = None
    if is_shown:
        return
    answered.shown = citation.number
    try:
        answered.view = library.view(citation)
    except (VisGLMError, OSError):
        answered.view = Told("library_gone")


def draw_source(shown: View | Told, say: Say) -> None:
    """The page with the box of the quote on it, the picture, or the quote in its surroundings."""
    if isinstance(shown, Told):
        st.html(notice(shown.said(say)))
        return
    if shown.problem:
        st.html(notice(say("library_changed")))
    image = shown.marked()
    if image is not None:
        st.html(sheet(image, shown, say))
    else:
        before, after = shown.before[-SURROUNDINGS:], shown.after[:SURROUNDINGS]
        words = (
            f"{'…' if len(before) < len(shown.before) else ''}{html.escape(before)}"
            f'<mark class="quoted">{html.escape(shown.quote)}</mark>'
            f"{html.escape(after)}{'…' if len(after) < len(shown.after) else ''}"
        )
        st.html(f'<blockquote class="around">{words}</blockquote>')


def sheet(image: Image.Image, shown: View, say: Say) -> str:
    """The image as HTML. The box is drawn on it; over it lies an empty one, by which the page is scrolled there."""
    left, top, right, bottom = shown.box or (0.0, 0.0, 1.0, 1.0)
    place = f"left:{left:.2%};top:{top:.2%};width:{right - left:.2%};height:{bottom - top:.2%}"
    words = html.escape(say("library_sheet", quote=shown.quote), quote=True)
    return (
        f'<div class="sheet" style="--shape:{image.width / image.height:.4f}"><img src="{picture_url(image)}" '
        f'width="{image.width}" height="{image.height}" alt="{words}"><span class="quoted" style="{place}"></span>'
        "</div>"
    )
