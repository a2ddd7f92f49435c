"""The page: show it a picture, ask about it in Chinese or English.

    visglm app                               the embedded model
    visglm app --model FOLDER --model OTHER  any checkpoints or adapters, to choose and compare
    visglm app --library FOLDER              a library of documents that everybody here asks
    visglm app --server URL                  what a running `visglm serve` has

Widgets only: everything that answers, encodes, explains or trains is `visglm.VisGLM`, or
`visglm.RemoteVisGLM` for a server.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import documents
import history
import streamlit as st
import talk
import teach
from models import arguments, find_models, load_or_tell, told_of
from settings import Page, pick_model, sampling_controls, say_labels_again
from texts import LANGUAGES, as_label, notice, speak
from visitors import count_pictures

VIEWS = {"talk": talk.view, "library": documents.view, "compare": compare.view, "teach": teach.view}
OF_MODELS_HERE = ("library", "teach")  # views that need the model itself
# What a visitor's session starts with. Every browser tab has its own.
STATE: dict[str, Any] = {
    "exchanges": [],
    "tray": [],
    "editing": None,
    "notices": [],
    "num_loaded": 0,
    "returned": [],
    "answering": None,
    "shelf": None,
    "talk": None,
    "address": None,
    "forgotten": None,
    "compared_picture": [],
    "compared": [],
    "lessons": [],
    "taught": [],
    "taught_last": None,
    "school": None,
    "lesson": None,
    "lesson_failed": None,
    "library": None,
    "library_folder": None,
    "reading": None,
    "num_dropped": 0,
    "asked_library": [],
}


def main() -> None:
    here = Path(__file__).parent
    st.set_page_config("visglm", here / "static/icon-180.png", layout="centered")
    st.html(here / "style.css")
    state, asked = st.session_state, arguments()
    for name, value in STATE.items():
        if name not in state:
            state[name] = list(value) if isinstance(value, list) else value
    if "language" not in state:
        state.language = "zh" if (st.context.locale or "").lower().startswith("zh") else "en"
    state.no_history = asked.no_history
    say = speak(state.language)
    history.follow_address()
    count_pictures()
    words = "".join(f'--{name.replace("_", "-")}: "{say(name)}";' for name in ("choose_file", "file_limit"))
    st.html(f"<style>:root {{ {words} }}</style>")
    st.html(f'<span data-language="{"zh-CN" if state.language == "zh" else "en"}"></span>')
    problem = find_models(asked, say) if asked.server else None
    with st.sidebar:
        settings = sidebar(asked, say)
    if problem is not None:  # what was said is kept, and is there again once the server is
        st.html(notice(told_of(problem, asked.server).said(say)))
        st.button(say("server_again"), icon=":material/refresh:", key="server_again")
        return
    views = [name for name in VIEWS if name not in OF_MODELS_HERE or not asked.server]
    name = st.segmented_control(
        say("title"), views, default="talk", required=True, key="view", format_func=say,
        label_visibility="collapsed",
    )  # fmt: skip
    try:
        VIEWS[name](Page(say, asked, vlm=load_or_tell(settings["choice"], say), **settings))
    except Exception:  # nobody's session ends with a fault of ours; what Streamlit raises to stop a run is no Exception
        logging.getLogger("visglm.page").exception("the view %s could not be drawn", name)
        st.html(notice(say("broken")))


def sidebar(asked: Namespace, say: Callable[..., str]) -> dict[str, Any]:
    """Language, the talks, model and settings; the conversation's files at the end."""
    st.html('<div class="brand"><span class="seal">看</span>visglm</div>')
    st.segmented_control(
        say("page_language"), list(LANGUAGES), key="language", required=True, format_func=LANGUAGES.get,
        width="stretch", on_change=say_labels_again,
    )  # fmt: skip
    history.menu(say)
    settings: dict[str, Any] = {"choice": pick_model("main", asked, say)}
    if asked.server:
        st.caption(say("server_asked", server=as_label(asked.server)))
    settings["show_heat"] = st.toggle(say("heat"), key="heat", help=say("heat_help"))
    settings["show_timings"] = st.toggle(say("timings"), value=True, key="timings")
    with st.expander(say("settings"), icon=":material/tune:"):
        settings["prompt_language"] = "auto"
        if not asked.server:
            settings["prompt_language"] = st.segmented_control(
                say("prompt_language"), ["auto", *LANGUAGES], default="auto", required=True, key="prompt_language",
                format_func=lambda name: LANGUAGES.get(name) or say(name), help=say("prompt_language_help"),
            )  # fmt: skip
        settings["sampling"] = sampling_controls("main", asked, say, settings["choice"])
    history.files(say)
    return settings


main()
