"""The conversation: what was said, what waits to be asked, and the answer as it comes."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import pictures
import streamlit as st
from conversation import FAILED, STOPPED, WAITING, Exchange, history_of, pictures_of, turns_of
from models import Choice
from settings import Page
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from visglm import History, VisGLM, VisGLMError
from visglm.errors import ContextLengthError

NUM_SUGGESTIONS = 4
AVATARS = {"user": ":material/person:", "assistant": ":material/visibility:"}
COPY_BUTTON = """
export default function ({ parentElement, data }) {
  const button = parentElement.querySelector("button");
  button.textContent = data.label;
  button.onclick = async () => {
    await navigator.clipboard.writeText(data.text);
    button.textContent = data.label + " ✓";
    setTimeout(() => { button.textContent = data.label; }, 1500);
  };
}
"""
COPY_STYLE = """
button { font: inherit; font-size: 0.875rem; cursor: pointer; padding: 0.25rem 0.5rem; border: none;
  border-radius: 2rem; background: none; color: var(--st-text-color); opacity: 0.6; }
button:hover { color: var(--st-primary-color); opacity: 1; }
"""


def as_html(text: str, cursor: bool = False) -> str:
    """What people and models wrote is text: no markup in it is followed, no picture in it fetched."""
    tail = '<span class="cursor"></span>' if cursor else ""
    return f'<div class="said">{html.escape(text)}{tail}</div>'


def view(page: Page) -> None:
    state = st.session_state
    bottom(page)  # first, so that it stands there while an answer comes
    if not state.exchanges:
        hero(page)
    for index, exchange in enumerate(state.exchanges):
        with st.chat_message("user", avatar=AVATARS["user"]):
            draw_question(page, index, exchange)
        with st.chat_message("assistant", avatar=AVATARS["assistant"]):
            if exchange.status == WAITING:
                generate(page, index, exchange)
            draw_answer(page, index, exchange)


def hero(page: Page) -> None:
    """What stands there before anything was said."""
    with st.container(key="hero", horizontal_alignment="center"):
        st.html(f'<div class="hero"><h1>{page.say("hero")}</h1><p>{page.say("hero_more")}</p></div>')
        pictures.gallery("talk", st.session_state.tray)
        with st.container(width=560):
            pictures.adder("hero", st.session_state.tray, page.say, page.asked.allow_urls)
        st.html(f'<div class="hero"><small>{page.say("hero_local")}</small></div>')


def bottom(page: Page) -> None:
    """Pictures that wait, suggestions, and the box to write in."""
    state, say = st.session_state, page.say
    with st.bottom:
        above = st.container(gap="small")  # filled when the box has been read: what it sends empties the tray
        message = st.chat_input(say("ask"), accept_file="multiple", file_type=pictures.TYPES, key="message")
    if message:
        before = len(state.tray)
        pictures.take(message.files, state.tray)
        if message.text.strip() or len(state.tray) > before:
            ask(message.text.strip() or say("ask_default"))
    with above:
        pictures.show_notices(say, keep=any(exchange.status == WAITING for exchange in state.exchanges))
        pictures.tray_row("talk", state.tray, say)
        if state.tray or pictures_of(state.exchanges):
            with st.container(horizontal=True, key="suggestions", gap="small", vertical_alignment="center"):
                for number in range(1, NUM_SUGGESTIONS + 1):
                    text = say(f"suggest_{number}")
                    st.button(text, key=f"suggest_{number}", on_click=ask, args=(text,))
                with st.popover("", icon=":material/add_photo_alternate:", type="tertiary", help=say("add_picture")):
                    pictures.gallery("more", state.tray)
                    pictures.adder("more", state.tray, say, page.asked.allow_urls)


def ask(question: str) -> None:
    """The question, with the pictures of the tray, waits for its answer."""
    state = st.session_state
    if state.exchanges and state.exchanges[-1].status == FAILED:
        state.exchanges.pop()
    state.exchanges.append(Exchange(question, list(state.tray)))
    state.tray.clear()


def ask_again(index: int, question: str | None = None) -> None:
    """Answer this question anew; what was said after it is dropped."""
    exchanges = st.session_state.exchanges
    exchanges[index:] = [exchanges[index].again(question)]
    st.session_state.editing = None


def draw_question(page: Page, index: int, exchange: Exchange) -> None:
    state, say = st.session_state, page.say
    if exchange.pictures:
        with st.container(horizontal=True, key=f"shown_{index}", gap="small"):
            for picture in exchange.pictures:
                st.image(picture, width=min(200, picture.width) if len(exchange.pictures) == 1 else 120)
    if state.editing == index:
        with st.form(f"edit_form_{index}", border=False):
            text = st.text_area(say("edit"), exchange.question, label_visibility="collapsed", key=f"edit_text_{index}")
            with st.container(horizontal=True):
                if st.form_submit_button(say("send"), type="primary") and text.strip():
                    ask_again(index, text.strip())
                    st.rerun()
                if st.form_submit_button(say("cancel"), type="tertiary"):
                    state.editing = None
                    st.rerun()
        return
    with st.container(horizontal=True, vertical_alignment="center", key=f"question_{index}"):
        st.html(as_html(exchange.question), width="content")
        if exchange.status != WAITING:
            st.button(
                "", icon=":material/edit:", type="tertiary", help=say("edit"), key=f"edit_{index}",
                on_click=lambda: state.update(editing=index),
            )  # fmt: skip


def generate(page: Page, index: int, exchange: Exchange) -> None:
    """Answer the question that waits, below a button that stops it."""
    place = st.empty()
    try:
        history = history_of(st.session_state.exchanges[:index], page.vlm, page.choice.label)
    except VisGLMError as error:  # the model that was picked meanwhile cannot read this conversation's pictures
        exchange.fail("failed", problem=str(error))
        st.rerun()
    st.button(page.say("stop"), icon=":material/stop_circle:", key="stop")
    stream_into(place, exchange, page.vlm, page.choice, history, page.prompt_language, page.sampling, page.say)
    st.rerun()


def stream_into(
    place: Any,
    exchange: Exchange,
    vlm: VisGLM,
    choice: Choice,
    history: History | None,
    language: str,
    sampling: dict[str, Any],
    say: Callable[..., str],
) -> None:
    """Show the answer in `place`, an `st.empty()`, as it comes, and keep it in `exchange`.

    Any click on the page ends this run at the next piece that is shown, with an exception that passes through here:
    the stream is closed then, which stops the model, and what was said so far stays, marked as stopped.
    """
    exchange.status, exchange.model = STOPPED, choice.label
    stream = None
    place.html(f'<div class="said waiting">{say("looking")}<span class="cursor"></span></div>')
    try:
        stream = vlm.stream_chat(exchange.pictures, exchange.question, history, language=language, **sampling)
        for piece in stream:
            exchange.answer += piece
            place.html(as_html(exchange.answer, cursor=True))
            if visitor_left():
                break
        else:
            exchange.take(stream.reply)
    except ContextLengthError:
        exchange.fail("too_long")
    except VisGLMError as error:
        exchange.fail("failed", problem=str(error))
    finally:
        if stream is not None:
            stream.close()
    place.html(as_html(exchange.answer))


def visitor_left() -> bool:
    """Whether the browser tab of this run is closed. Streamlit itself would let the run go on for minutes."""
    context = get_script_run_ctx()
    if context is None or not runtime.exists():
        return False
    return not runtime.get_instance().is_active_session(context.session_id)


def draw_answer(page: Page, index: int, exchange: Exchange) -> None:
    say, is_last = page.say, index == len(st.session_state.exchanges) - 1
    draw_text(exchange, say)
    if page.show_heat and exchange.status != FAILED:
        # The model that is loaded now may not be the one that answered.
        wanted = is_last and exchange.model == page.choice.label
        draw_overlay(exchange, st.session_state.exchanges[: index + 1], page.vlm, page, wanted=wanted)
    remarks = [say(exchange.status)] if exchange.status in (STOPPED, "length") else []
    if page.show_timings and exchange.timings is not None:
        remarks.append(timing_line(say, exchange))
    if remarks:
        st.html(f'<div class="remark">{" · ".join(remarks)}</div>')
    with st.container(horizontal=True, key=f"actions_{index}", gap="small", vertical_alignment="center"):
        if exchange.answer and exchange.status != FAILED:
            copy_button(exchange.answer, say("copy"), f"copy_{index}")
        if is_last:
            st.button(
                say("regenerate"), icon=":material/refresh:", type="tertiary", key="regenerate",
                on_click=ask_again, args=(index,),
            )  # fmt: skip


def draw_text(exchange: Exchange, say: Callable[..., str]) -> None:
    """The answer, or why there is none."""
    if exchange.failure is not None:
        st.warning(exchange.failure.said(say), icon=":material/error:")
    else:
        st.html(as_html(exchange.answer))


def timing_line(say: Callable[..., str], exchange: Exchange) -> str:
    rate = exchange.tokens_per_second
    return say(
        "timing_line",
        encode=exchange.timings.encode,
        first=exchange.timings.first_token,
        rate=say("rate", rate=rate) if rate is not None else "–",
        tokens=exchange.usage.completion_tokens,
    )


def draw_overlay(exchange: Exchange, exchanges: Sequence[Exchange], vlm: VisGLM, page: Page, *, wanted: bool) -> None:
    """The heat map over the last picture of `exchanges`, whose last is `exchange`; worked out if wanted, once."""
    if wanted and exchange.explanation is None and exchange.answer and pictures_of(exchanges):
        try:
            exchange.explanation = vlm.explain(
                pictures_of(exchanges),
                exchange.question,
                exchange.answer,
                History(turns_of(exchanges[:-1])),
                language=page.prompt_language,
            )
        except VisGLMError as error:
            st.warning(page.say("heat_failed", problem=error))
    if exchange.explanation is not None:
        st.image(exchange.explanation.overlay(), caption=page.say("heat_caption"), width=200)


def copy_button(text: str, label: str, key: str) -> None:
    button = st.components.v2.component("copy_button", html="<button></button>", css=COPY_STYLE, js=COPY_BUTTON)
    button(key=key, data={"text": text, "label": label}, width="content")
