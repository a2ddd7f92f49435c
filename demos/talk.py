"""The conversation: what was said, what waits to be asked, and the answer as it comes."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import history
import pictures
import streamlit as st
from answering import Answering
from conversation import FAILED, STOPPED, WAITING, Exchange, history_of, is_text, pictures_of, shown_to, turns_of
from models import Choice, told_of
from settings import Page
from texts import Told, notice
from visitors import free_uploads, visitor_left

from visglm import Explanation, History, RemoteVisGLM, VisGLM, VisGLMError
from visglm.errors import ContextLengthError, ServerError

NUM_SUGGESTIONS = 4
PLACE = "talk"  # of what the box to write in has to say
AVATARS = {"user": ":material/person:", "assistant": ":material/visibility:"}
# Browsers have a clipboard for pages that came over https or from this machine; for others there is the older way.
COPY_BUTTON = """
const copyTheOldWay = (text) => {
  const area = document.createElement("textarea");
  Object.assign(area.style, { position: "fixed", opacity: 0 });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
};
export default function ({ parentElement, data }) {
  const button = parentElement.querySelector("button");
  button.textContent = data.label;
  button.onclick = async () => {
    let done = true;
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(data.text).catch(() => { done = copyTheOldWay(data.text); });
    } else {
      done = copyTheOldWay(data.text);
    }
    button.textContent = done ? data.copied : data.failed;
    setTimeout(() => { button.textContent = data.label; }, 2000);
  };
}
"""
COPY_STYLE = """
button { font: inherit; font-size: 0.875rem; cursor: pointer; padding: 0.25rem 0.5rem; border: none; margin: 0;
  border-radius: 2rem; background: none; color: var(--st-text-color); opacity: 0.75; min-height: 2rem; }
button:hover { color: var(--st-primary-color); opacity: 1; }
button:focus-visible { outline: 2px solid var(--st-primary-color); opacity: 1; }
@media (pointer: coarse), (max-width: 640px) { button { min-height: 44px; min-width: 44px; } }
"""


def as_html(text: str, cursor: bool = False, kind: str = "said") -> str:
    """What people and models wrote is text: no markup in it is followed, no picture in it fetched."""
    tail = '<span class="cursor"></span>' if cursor else ""
    return f'<div class="{kind}">{html.escape(text)}{tail}</div>'


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
        pictures.gallery("hero", st.session_state.tray, page.say)
        with st.container(width=560):
            pictures.adder("hero", st.session_state.tray, page.say, page.asked.allow_urls)
        st.html(
            f'<div class="hero"><small>{page.say("hero_server" if page.asked.server else "hero_local")}</small></div>'
        )


def bottom(page: Page) -> None:
    """Pictures that wait, suggestions, and the box to write in; while an answer comes, the button that stops it."""
    state, say = st.session_state, page.say
    if state.returned:  # a question that was not asked goes back into the box
        state.message = state.returned[0]
        state.returned.clear()
    with st.bottom:
        above = st.container(gap="small")  # filled when the box has been read: what it sends empties the tray
        message = st.chat_input(say("ask"), accept_file="multiple", key="message")
    if message:
        read_message(message.text.strip(), message.files, say)
    is_waiting = any(exchange.status == WAITING for exchange in state.exchanges)
    with above:
        pictures.show_notices(PLACE, say, keep=is_waiting)
        pictures.tray_row("talk", state.tray, say)
        if is_waiting:
            with st.container(horizontal=True, horizontal_alignment="center", key="stopping"):
                st.button(say("stop"), icon=":material/stop_circle:", key="stop")
        elif state.tray or state.exchanges:
            with st.container(horizontal=True, key="suggestions", gap="small", vertical_alignment="center"):
                for number in range(1, NUM_SUGGESTIONS + 1) if state.tray or pictures_of(state.exchanges) else ():
                    text = say(f"suggest_{number}")
                    st.button(text, key=f"suggest_{number}", on_click=ask, args=(text,))
                icon = ":material/add_photo_alternate:"
                with st.popover(say("add_picture"), icon=icon, type="tertiary", key="adding"):
                    pictures.gallery("more", state.tray, say)
                    pictures.adder("more", state.tray, say, page.asked.allow_urls)


def read_message(text: str, files: list[Any], say: Callable[..., str]) -> None:
    """Ask what was sent. With a picture that cannot be used it is not asked: the answer would be about something
    else. What was written is in the box again then, what could be used in the tray, and the reason above it."""
    state = st.session_state
    # All that is needed of the page before the pictures are decoded: a run may end wherever the page is touched.
    exchanges, tray, notices, returned = state.exchanges, state.tray, state.notices, state.returned
    found, told = pictures.read_all(files)
    tray.extend(found)
    notices.extend((PLACE, each) for each in told)
    free_uploads(files)
    if told:
        returned[:] = [text] if text else []
        st.rerun()
    if text or found:
        put(text or say("ask_default"), exchanges, tray, notices)
        history.keep()


def ask(question: str) -> None:
    """The question, with the pictures of the tray, waits for its answer."""
    state = st.session_state
    put(question, state.exchanges, state.tray, state.notices)
    history.keep()


def put(question: str, exchanges: list[Exchange], tray: list[Any], notices: list[Any]) -> None:
    if not is_text(question):
        notices.append((PLACE, Told("text_broken")))
        return
    if exchanges and exchanges[-1].status == FAILED:
        exchanges.pop()
    exchanges.append(Exchange(question, list(tray)))
    tray.clear()


def ask_again(index: int, question: str | None = None) -> None:
    """Answer this question anew; what was said after it is dropped."""
    exchanges = st.session_state.exchanges
    exchanges[index:] = [exchanges[index].again(question)]
    st.session_state.editing = None
    history.keep()


def draw_question(page: Page, index: int, exchange: Exchange) -> None:
    state, say = st.session_state, page.say
    if exchange.pictures:
        with st.container(horizontal=True, key=f"shown_{index}", gap="small"):
            for picture in exchange.pictures:
                pictures.shown(picture, 220 if len(exchange.pictures) == 1 else 120, say)
        number = sum(len(each.pictures) for each in state.exchanges[: index + 1])
        most = None if isinstance(page.vlm, RemoteVisGLM) else page.vlm.max_pictures
        if most is not None and number > most:
            st.caption(say("many_pictures", most=most, number=number))
    if state.editing == index:
        with st.form(f"edit_form_{index}", border=False):
            text = st.text_area(say("edit"), exchange.question, label_visibility="collapsed", key=f"edit_text_{index}")
            with st.container(horizontal=True):
                if st.form_submit_button(say("send"), type="primary") and text.strip():
                    if is_text(text):
                        ask_again(index, text.strip())
                    else:
                        pictures.notify(PLACE, Told("text_broken"))
                    st.rerun()
                if st.form_submit_button(say("cancel"), type="tertiary"):
                    state.editing = None
                    st.rerun()
        return
    with st.container(horizontal=True, vertical_alignment="center", key=f"question_{index}"):
        st.html(as_html(exchange.question), width="content")
        if exchange.status != WAITING:
            st.button(
                say("edit"), icon=":material/edit:", type="tertiary", key=f"edit_{index}",
                on_click=lambda: state.update(editing=index),
            )  # fmt: skip


def generate(page: Page, index: int, exchange: Exchange) -> None:
    """Answer the question that waits."""
    before = st.session_state.exchanges[:index]
    try:
        stream_into(
            st.empty(), exchange, page.vlm, page.choice, page.prompt_language, page.sampling, page.say,
            lambda: history_of(before, page.vlm, page.choice.label),
        )  # fmt: skip
    finally:  # also where a click ends this run
        history.keep()
    st.rerun()


def stream_into(
    place: Any,
    exchange: Exchange,
    vlm: VisGLM | RemoteVisGLM,
    choice: Choice,
    language: str,
    sampling: dict[str, Any],
    say: Callable[..., str],
    history: Callable[[], Any] = lambda: None,
) -> None:
    """Show the answer in `place`, an `st.empty()`, as it comes, and keep it in `exchange`.

    Any click on the page ends this run at the next thing that is drawn, with an exception that passes through here:
    the model is stopped then, and what was seen so far stays, marked as stopped. The run of the click does not wait for
    that: it draws what `exchange` holds by then.
    """
    state = st.session_state
    exchange.status, exchange.model = STOPPED, choice.label

    frame = {} if isinstance(vlm, RemoteVisGLM) else {"language": language}
    exchange.sampling = sampling

    def start() -> Any:
        # The model that was picked meanwhile may not be able to read this conversation's pictures.
        return vlm.stream_chat(shown_to(vlm, exchange.pictures), exchange.question, history(), **frame, **sampling)

    answering = state.answering = Answering(start, state.answering)
    place.html(f'<div class="said waiting">{html.escape(say("looking"))}<span class="cursor"></span></div>')
    answering.start()
    try:
        while answering.is_alive() and not visitor_left():
            answering.wait()
            # Drawn every time, for only where something is drawn does Streamlit notice a click.
            exchange.thinking = answering.thinking
            if text := answering.text:
                place.html(as_html(text, cursor=True))
                exchange.answer = text
            elif exchange.thinking:
                place.html(as_html(exchange.thinking, cursor=True, kind="said thought"))
            else:
                place.html(f'<div class="said waiting">{html.escape(say("looking"))}<span class="cursor"></span></div>')
    finally:
        answering.stopped.set()
    exchange.answer = answering.text
    if answering.reply is not None:
        exchange.take(answering.reply)
    elif isinstance(answering.error, ContextLengthError):
        exchange.fail("too_long")
    elif isinstance(answering.error, ServerError) and choice.server is not None:
        told = told_of(answering.error, choice.server)
        exchange.fail(told.key, **told.values)
    elif isinstance(answering.error, VisGLMError):
        exchange.fail("failed", problem=str(answering.error))
    elif answering.error is not None:
        raise answering.error
    place.html(as_html(exchange.answer))


def draw_answer(page: Page, index: int, exchange: Exchange) -> None:
    say, is_last = page.say, index == len(st.session_state.exchanges) - 1
    draw_text(exchange, say)
    if page.show_heat and exchange.status != FAILED and "explain" in page.vlm.abilities:
        # The model that is loaded now may not be the one that answered.
        wanted = is_last and exchange.model == page.choice.label
        draw_overlay(exchange, st.session_state.exchanges[: index + 1], page.vlm, page, wanted=wanted)
    remarks = [say(exchange.status)] if exchange.status in (STOPPED, "length") else []
    if page.show_timings and exchange.timings is not None:
        remarks.append(timing_line(say, exchange))
    with st.container(horizontal=True, key=f"actions_{index}", gap="small", vertical_alignment="center"):
        if remarks:
            st.html(f'<div class="remark">{html.escape(" · ".join(remarks))}</div>', width="content")
        if exchange.answer and exchange.status != FAILED:
            copy_button(exchange.answer, say, f"copy_{index}")
        if is_last:
            st.button(
                say("regenerate"), icon=":material/refresh:", type="tertiary", key="regenerate",
                on_click=ask_again, args=(index,),
            )  # fmt: skip


def draw_text(exchange: Exchange, say: Callable[..., str]) -> None:
    """The answer, or why there is none; before it, folded, what the model thought, and the picture it points into."""
    if exchange.thinking:
        with st.expander(say("thinking")):
            st.html(as_html(exchange.thinking, kind="said thought"))
    if exchange.marked is not None:
        pictures.shown(exchange.marked, 220, say)
    if exchange.failure is not None:
        st.html(notice(exchange.failure.said(say)))
    else:
        st.html(as_html(exchange.answer))


def timing_line(say: Callable[..., str], exchange: Exchange) -> str:
    rate = exchange.tokens_per_second
    return say(
        "timing_line" if exchange.timings.encode else "timing_line_whole",  # a server does not tell them apart
        encode=exchange.timings.encode,
        first=exchange.timings.first_token,
        rate=say("rate", rate=rate) if rate is not None else "–",
        tokens=exchange.usage.completion_tokens,
    )


def draw_overlay(exchange: Exchange, exchanges: Sequence[Exchange], vlm: Any, page: Page, *, wanted: bool) -> None:
    """The heat map over the last picture of `exchanges`, whose last is `exchange`; worked out if wanted, once."""
    if wanted and exchange.explanation is None and exchange.answer and pictures_of(exchanges):
        try:
            exchange.explanation = explained(exchange, exchanges, vlm, page)
        except VisGLMError as error:
            st.html(notice(page.say("heat_failed", problem=error)))
    if exchange.explanation is not None:
        with st.container(key=f"heat_{len(exchanges)}_{id(exchange)}"):
            pictures.shown(exchange.explanation.overlay(), 220, page.say, page.say("heat_caption"))


def explained(exchange: Exchange, exchanges: Sequence[Exchange], vlm: Any, page: Page) -> Explanation:
    """Where the last answer comes from. A server is asked the same again: it explains what it answers."""
    if isinstance(vlm, RemoteVisGLM):
        before = history_of(exchanges[:-1], vlm, exchange.model)
        pictures = shown_to(vlm, exchange.pictures)
        return vlm.explain(pictures, exchange.question, exchange.answer, before, **exchange.sampling)
    return vlm.explain(
        pictures_of(exchanges), exchange.question, exchange.answer, History(turns_of(exchanges[:-1])),
        language=page.prompt_language,
    )  # fmt: skip


def copy_button(text: str, say: Callable[..., str], key: str) -> None:
    words = {"text": text, "label": say("copy"), "copied": say("copied"), "failed": say("copy_failed")}
    button = st.components.v2.component("copy_button", html="<button></button>", css=COPY_STYLE, js=COPY_BUTTON)
    button(key=key, data=words, width="content", height="content")
