"""One picture and one question, answered twice, side by side."""

from __future__ import annotations

import html

import pictures
import streamlit as st
from conversation import STOPPED, WAITING, Exchange, is_text
from models import load_or_tell
from settings import Page, pick_model, sampling_controls
from talk import draw_overlay, draw_text, stream_into, timing_line
from texts import notice

SIDES = ("left", "right")


def view(page: Page) -> None:
    state, say = st.session_state, page.say
    st.html(f'<p class="lead">{html.escape(say("compare_lead"))}</p>')
    if state.compared_picture:
        with st.container(horizontal=True, horizontal_alignment="center"):
            pictures.tray_row("compare", state.compared_picture, say, width=220)
        pictures.show_notices("compare", say)
    else:
        pictures.gallery("compare", state.compared_picture, say)
        pictures.adder("compare", state.compared_picture, say, page.asked.allow_urls)
    del state.compared_picture[1:]
    choices, samplings = [], []
    for index, (column, side) in enumerate(zip(st.columns(2), SIDES, strict=True)):
        with column, st.container(border=True):
            choices.append(pick_model(side, page.asked, say, is_second=bool(index)))
            with st.expander(say("settings"), icon=":material/tune:"):
                samplings.append(sampling_controls(side, page.asked, say, choices[-1]))
    with st.form("compare_form", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        question = st.text_input(say("question"), say("ask_default"), key="compared_question")
        sent = st.form_submit_button(say("compare_run"), type="primary", icon=":material/compare_arrows:")
    if choices[0] == choices[1] and samplings[0] == samplings[1]:
        st.caption(say("compare_same"))
    if sent and not state.compared_picture:
        st.info(say("compare_need"), icon=":material/add_photo_alternate:")
    elif sent and not is_text(question):
        st.html(notice(say("text_broken")))
    elif sent and question.strip():
        state.compared = [
            (choice, sampling, Exchange(question.strip(), list(state.compared_picture)))
            for choice, sampling in zip(choices, samplings, strict=True)
        ]
    stopping = st.empty()
    if any(exchange.status == WAITING for _, _, exchange in state.compared):
        stopping.button(say("stop"), icon=":material/stop_circle:", key="stop", on_click=stop)
    for column, (choice, sampling, exchange) in zip(st.columns(2), state.compared, strict=False):
        with column, st.container(border=True):
            st.html(f"<b>{html.escape(choice.label)}</b>")
            place = st.empty()
            if exchange.status == WAITING:
                vlm = load_or_tell(choice, say)
                stream_into(place, exchange, vlm, choice, page.prompt_language, sampling, say)
            with place:
                draw_text(exchange, say)
            if page.show_heat and "explain" in (vlm := load_or_tell(choice, say)).abilities:
                draw_overlay(exchange, [exchange], vlm, page, wanted=True)
            if exchange.timings is not None:
                st.html(f'<div class="remark">{timing_line(say, exchange)}</div>')
    stopping.empty()


def stop() -> None:
    """Both answers: the one that comes, which any click ends, and the one that would follow."""
    for _, _, exchange in st.session_state.compared:
        if exchange.status == WAITING:
            exchange.status = STOPPED
