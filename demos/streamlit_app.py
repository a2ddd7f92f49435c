"""The page: show it a picture, ask about it in Chinese or English.

    visglm app                               the embedded model
    visglm app --model FOLDER --model OTHER  any checkpoints or adapters, to choose and compare

Widgets only: everything that answers, encodes, explains or trains is `visglm.VisGLM`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import streamlit as st
import talk
import teach
from conversation import answered, from_json, to_json, to_markdown
from models import arguments, load_or_tell
from settings import Page, pick_model, sampling_controls
from texts import LANGUAGES, Told, speak

from visglm import VisGLMError

VIEWS = {"talk": talk.view, "compare": compare.view, "teach": teach.view}
# What a visitor's session starts with. Every browser tab has its own.
STATE: dict[str, Any] = {
    "exchanges": [],
    "tray": [],
    "editing": None,
    "notices": [],
    "num_loaded": 0,
    "compared_picture": [],
    "compared": [],
    "lessons": [],
    "taught": [],
    "taught_last": None,
    "school": None,
    "lesson": None,
    "lesson_failed": None,
    "num_lessons": 0,
}


def main() -> None:
    st.set_page_config("visglm", ":material/visibility:", layout="centered")
    st.html(Path(__file__).with_name("style.css"))
    state, asked = st.session_state, arguments()
    for name, value in STATE.items():
        if name not in state:
            state[name] = list(value) if isinstance(value, list) else value
    if "language" not in state:
        state.language = "zh" if (st.context.locale or "").lower().startswith("zh") else "en"
    say = speak(state.language)
    words = "".join(f'--{name.replace("_", "-")}: "{say(name)}";' for name in ("choose_file", "file_limit"))
    st.html(f"<style>:root {{ {words} }}</style>")
    with st.sidebar:
        settings = sidebar(asked, say)
    name = st.segmented_control(
        say("title"), list(VIEWS), default="talk", required=True, key="view", format_func=say,
        label_visibility="collapsed",
    )  # fmt: skip
    VIEWS[name](Page(say, asked, vlm=load_or_tell(settings["choice"], say), **settings))


def sidebar(asked: Namespace, say: Callable[..., str]) -> dict[str, Any]:
    """Language, model and settings; the conversation's file menu at the end."""
    st.html('<div class="brand"><span class="seal">看</span>visglm</div>')
    st.segmented_control(
        say("page_language"), list(LANGUAGES), key="language", required=True, format_func=LANGUAGES.get,
        width="stretch",
    )  # fmt: skip
    settings: dict[str, Any] = {"choice": pick_model("main", asked, say)}
    settings["show_heat"] = st.toggle(say("heat"), key="heat", help=say("heat_help"))
    settings["show_timings"] = st.toggle(say("timings"), value=True, key="timings")
    with st.expander(say("settings"), icon=":material/tune:"):
        settings["prompt_language"] = st.segmented_control(
            say("prompt_language"), ["auto", *LANGUAGES], default="auto", required=True, key="prompt_language",
            format_func=lambda name: LANGUAGES.get(name) or say(name), help=say("prompt_language_help"),
        )  # fmt: skip
        settings["sampling"] = sampling_controls("main", say)
    file_menu(say)
    return settings


def file_menu(say: Callable[..., str]) -> None:
    state = st.session_state
    st.subheader(say("conversation"))
    if st.button(say("new"), icon=":material/add_comment:", width="stretch", key="new"):
        state.exchanges, state.tray, state.editing = [], [], None
        st.rerun()
    if answered(state.exchanges):
        st.download_button(
            say("save_markdown"), lambda: to_markdown(state.exchanges, say("title")), "visglm.md", "text/markdown",
            icon=":material/article:", width="stretch", on_click="ignore",
        )  # fmt: skip
        st.download_button(
            say("save_json"), lambda: to_json(state.exchanges), "visglm.json", "application/json",
            icon=":material/data_object:", width="stretch", on_click="ignore",
        )  # fmt: skip
    with st.expander(say("load"), icon=":material/upload_file:"):
        file = st.file_uploader(say("load"), "json", key=f"load_{state.num_loaded}", label_visibility="collapsed")
    if file is not None:
        state.num_loaded += 1
        try:
            state.exchanges = from_json(file.getvalue())
        except VisGLMError:
            state.notices.append(Told("load_refused"))
        st.rerun()


main()
