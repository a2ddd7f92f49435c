"""Pictures into the page: upload, camera, samples, address. What cannot be used gets a sentence, never a traceback."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from pathlib import Path
from typing import Any

import streamlit as st
from conversation import jpeg_of, load_shrunk, picture_url
from models import image_limits
from PIL import Image
from texts import Told, as_label, notice
from visitors import Room, free_uploads

from visglm.errors import ImageError

SAMPLES = Path(__file__).parents[1] / "examples"
# What an ImageError says → the text that tells it to a visitor, in order; the errors are written for programmers.
REASONS = {
    "pixels": "reason_pixels",
    "bytes": "reason_bytes",
    "is empty": "reason_empty",
    "ends early": "reason_damaged",
    "its content is": "reason_format",
}

Say = Callable[..., str]


def read(source: Any, allow_urls: bool = False) -> Image.Image | str:
    """One picture, or the text that says why there is none."""
    try:
        return load_shrunk(source, limits=image_limits(), allow_urls=allow_urls)
    except ImageError as error:
        if allow_urls:
            return "reason_url"
        cause = str(error).partition("as an image:")[2]
        return next((text for words, text in REASONS.items() if words in cause), "reason_other")


def read_all(sources: list[Any], allow_urls: bool = False) -> tuple[list[Image.Image], list[Told]]:
    """What can be used, as much as there is room for, and what is to be said about the rest.

    Nothing of the page is touched here but at the beginning: Streamlit may end a run wherever it is touched, and half
    of what was sent would be lost, or taken twice.
    """
    room = Room()
    found, told = [], []
    for source in sources:
        picture = read(source, allow_urls)
        if not isinstance(picture, str) and not room.take(picture):
            picture = "reason_full"
        if isinstance(picture, str):
            name = Path(str(getattr(source, "name", source))).name
            told.append(Told("picture_refused", {"name": name, "reason": Told(picture)}))
        else:
            found.append(picture)
    return found, told


def notify(place: str, told: Told) -> None:
    """The sentence waits to be shown there."""
    st.session_state.notices.append((place, told))


def show_notices(place: str, say: Say, keep: bool = False) -> None:
    """What went wrong here since the last time, once; or again next time, where this run of the page will not last."""
    state = st.session_state
    for sentence in dict.fromkeys(told.said(say) for where, told in state.notices if where == place):
        st.html(notice(sentence))
    if not keep:  # in place: what is being read meanwhile adds to this very list
        notices = state.notices
        notices[:] = [(where, told) for where, told in notices if where != place]


def sample_paths() -> list[Path]:
    return sorted(path for path in SAMPLES.glob("*.*") if path.suffix in (".png", ".jpg"))[:8]


@st.cache_data(show_spinner=False)
def thumbnail_of(path: Path) -> str:
    image = load_shrunk(path)
    image.thumbnail((224, 224))
    return picture_url(image)


def gallery(key: str, tray: MutableSequence[Image.Image], say: Say) -> None:
    """The sample pictures; a click puts one into the tray."""
    paths = sample_paths()
    if not paths:
        return
    with st.container(horizontal=True, horizontal_alignment="center", key=f"gallery_{key}"):
        for path in paths:
            name = as_label(say("picture_sample", name=path.stem))
            if st.button(f"![{name}]({thumbnail_of(path)})", key=f"sample_{key}_{path.stem}"):
                notices = st.session_state.notices
                found, told = read_all([path])
                tray.extend(found)
                notices.extend((key, each) for each in told)
                st.rerun()


def adder(key: str, tray: MutableSequence[Image.Image], say: Say, allow_urls: bool) -> None:
    """Upload, camera and, where allowed, address. Each puts what it got into the tray and is empty again."""
    state = st.session_state
    count = state.setdefault(f"adder_{key}", 0)  # a new widget each time: the old one would hand its file in again

    def done(sources: list[Any], allow: bool = False) -> None:
        notices = state.notices
        found, told = read_all(sources, allow)
        state[f"adder_{key}"] = count + 1  # a run that ends here has done nothing: the next one finds the files again
        tray.extend(found)
        notices.extend((key, each) for each in told)
        free_uploads(sources)
        st.rerun()

    # Of any type: what the browser refuses by its name it does not explain.
    files = st.file_uploader(say("upload"), accept_multiple_files=True, key=f"upload_{key}_{count}")
    show_notices(key, say)
    if files:
        done(files)
    if st.toggle(say("camera_start"), key=f"camera_on_{key}_{count}"):
        photo = st.camera_input(say("camera"), key=f"camera_{key}_{count}", label_visibility="collapsed")
        if photo is not None:
            done([photo])
    if allow_urls:
        with st.form(f"url_form_{key}_{count}", border=False):
            address = st.text_input(say("url"), placeholder="https://…", key=f"url_{key}_{count}")
            if st.form_submit_button(say("url_fetch")) and address.strip():
                # Whatever is no URL would be a path on this machine; as one, it can only be fetched or refused.
                is_url = address.strip().lower().startswith(("http://", "https://"))
                done([address.strip() if is_url else f"https://{address.strip()}"], allow=True)


def shown(picture: Image.Image, width: int, say: Say, caption: str | None = None) -> None:
    """The picture at this width at the most. The browser gets all of it, and shows that on a click."""
    with st.container(width=min(width, max(picture.width, 48))):
        st.image(jpeg_of(picture), caption=caption, width="stretch", alt=say("picture"))


def tray_row(key: str, tray: MutableSequence[Image.Image], say: Say, width: int = 80) -> None:
    """The pictures that wait for a question, each with a button that removes it."""
    if not tray:
        return
    with st.container(horizontal=True, key=f"tray_{key}", gap="small"):
        for index, picture in enumerate(tray):
            with st.container(width=width, gap=None, key=f"waiting_{key}_{index}"):
                shown(picture, width, say)
                if st.button(say("remove"), icon=":material/close:", key=f"remove_{key}_{index}", type="tertiary"):
                    del tray[index]
                    st.rerun()
