"""The talk that is open and those before it: kept, listed, opened, deleted, brought back."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st
from conversation import answered, from_json, is_text, pictures_of, title_of, to_json, to_markdown
from pictures import notify, show_notices
from shelf import Shelf, ShelfFull, default_path
from texts import Told, as_label
from visitors import Room, free_uploads, visitor

from visglm import VisGLMError

SHOWN = 30  # talks in the list
PLACE = "history"


def shelf() -> Shelf:
    """This visitor's: on the disk; where that is off, or the browser keeps no cookies, until the tab is closed."""
    state = st.session_state
    if state.shelf is None:
        owner = None if state.no_history else visitor()
        state.shelf = Shelf(owner or "", default_path() if owner else None)
    return state.shelf


def follow_address() -> None:
    """The address of the page says which talk is open; the visitor may have come with it, or gone back to it."""
    state = st.session_state
    wanted = st.query_params.get("talk")
    if wanted == state.address:
        return
    state.address = wanted
    if wanted == state.talk:
        return
    if not (wanted and open_talk(wanted)):
        close_talk()


def open_talk(key: str) -> bool:
    state = st.session_state
    text = shelf().read(key) if is_text(key) else None
    if text is None:
        return False
    close_talk()
    try:
        exchanges = from_json(text, most=None)
    except VisGLMError:  # it was kept by another version
        notify(PLACE, Told("load_refused"))
        return False
    if not Room().take(*pictures_of(exchanges)):
        notify(PLACE, Told("picture_refused", {"name": title_of(exchanges), "reason": Told("reason_full")}))
        return False
    state.exchanges = exchanges
    state.talk = st.query_params["talk"] = key
    return True


def close_talk() -> None:
    """Begin a new one. The old one is in the list."""
    state = st.session_state
    state.exchanges, state.tray, state.editing, state.talk = [], [], None, None
    st.query_params.pop("talk", None)


def keep() -> None:
    """Write down how far the open talk has come."""
    state = st.session_state
    if not state.exchanges:
        return
    if state.talk is None:
        state.talk = st.query_params["talk"] = secrets.token_urlsafe(9)
    try:
        shelf().write(state.talk, title_of(state.exchanges), to_json(state.exchanges, whole=True))
    except ShelfFull:
        notify(PLACE, Told("shelf_full"))


def forget(key: str, title: str) -> None:
    """Delete a talk; until the next one is deleted or the page closed, there is a way back."""
    state = st.session_state
    state.forgotten = (key, title, shelf().read(key))
    shelf().forget(key)
    if state.talk == key:
        close_talk()


def bring_back() -> None:
    state = st.session_state
    key, title, body = state.forgotten
    state.forgotten = None
    try:
        shelf().write(key, title, body)
    except ShelfFull:
        notify(PLACE, Told("shelf_full"))


def menu(say: Callable[..., str]) -> None:
    """Of the side bar: a new talk, and the earlier ones."""
    state = st.session_state
    show_notices(PLACE, say)
    st.button(say("new"), icon=":material/add_comment:", width="stretch", key="new", on_click=close_talk)
    if state.forgotten is not None:
        with st.container(key="forgotten", gap="small"):
            st.caption(as_label(say("forgotten", title=state.forgotten[1])))
            st.button(say("undo"), icon=":material/undo:", key="undo", width="stretch", on_click=bring_back)
    talks = shelf().talks()
    if talks:
        st.subheader(say("talks"), help=say("talks_unkept" if shelf().path is None else "talks_kept"))
        with st.container(key="talks", gap=None, height=260 if len(talks) > 5 else "content"):
            for talk in talks[:SHOWN]:
                row(talk.key, talk.title, say)


def row(key: str, title: str, say: Callable[..., str]) -> None:
    is_open = key == st.session_state.talk
    with st.container(horizontal=True, gap=None, vertical_alignment="center", key=f"row_{key}"):
        label = f"**{as_label(title)}**" if is_open else as_label(title)
        st.button(label, key=f"talk_{key}", type="tertiary", width="stretch", on_click=open_talk, args=(key,))
        words = as_label(say("forget", title=title))
        st.button(
            words, icon=":material/delete:", key=f"forget_{key}", type="tertiary", on_click=forget, args=(key, title)
        )


def files(say: Callable[..., str]) -> None:
    """Save the open talk as a file, and load one."""
    state = st.session_state
    st.subheader(say("conversation"))
    exchanges, title = state.exchanges, say("title")
    if answered(exchanges):
        # The files are made when they are asked for, in a thread that knows nothing of `st.session_state`.
        st.download_button(
            say("save_markdown"), lambda: to_markdown(exchanges, title), "visglm.md", "text/markdown",
            icon=":material/article:", width="stretch", on_click="ignore", key="save_markdown",
        )  # fmt: skip
        st.download_button(
            say("save_json"), lambda: to_json(exchanges), "visglm.json", "application/json",
            icon=":material/data_object:", width="stretch", on_click="ignore", key="save_json",
        )  # fmt: skip
    with st.expander(say("load"), icon=":material/upload_file:", key="loader"):
        file = st.file_uploader(say("load"), "json", key=f"load_{state.num_loaded}", label_visibility="collapsed")
    show_notices("load", say)
    if file is not None:
        load(file)
        st.rerun()


def load(file: Any) -> None:
    """The talk in this file, as a new one. Streamlit may end a run wherever the page is touched: the file is only done
    with once what is in it is on the page, else the next run finds it again."""
    state = st.session_state
    room, notices, refused = Room(), state.notices, None
    try:
        loaded = from_json(file.getvalue())
    except VisGLMError:
        refused = Told("load_refused")
    else:
        if not room.take(*pictures_of(loaded)):
            refused = Told("picture_refused", {"name": Path(file.name).name, "reason": Told("reason_full")})
    if refused is None:
        close_talk()
        state.exchanges = loaded
    state.num_loaded += 1
    free_uploads([file])
    if refused is None:
        keep()
    else:
        notices.append(("load", refused))
