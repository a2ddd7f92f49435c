"""Pictures into the page: upload, camera, samples, address. What cannot be used gets a sentence, never a traceback."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from pathlib import Path
from typing import Any

import streamlit as st
from conversation import picture_url
from models import image_limits
from PIL import Image
from texts import Told

from visglm import load_image
from visglm.errors import ImageError

SAMPLES = Path(__file__).parents[1] / "examples"
TYPES = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "avif", "heic", "heif"]
# What an ImageError says → the text that tells it to a visitor, in order; the errors are written for programmers.
REASONS = {
    "pixels": "reason_pixels",
    "bytes": "reason_bytes",
    "is empty": "reason_empty",
    "ends early": "reason_damaged",
    "its content is": "reason_format",
}

Say = Callable[..., str]


def read(source: Any, name: str, allow_urls: bool = False) -> Image.Image | None:
    """One picture, or None and a `Told` that waits in `st.session_state.notices` to be shown."""
    try:
        return load_image(source, limits=image_limits(), allow_urls=allow_urls)
    except ImageError as error:
        cause = str(error).partition("as an image:")[2]
        found = next((text for words, text in REASONS.items() if words in cause), "reason_other")
        reason = "reason_url" if allow_urls else found
        st.session_state.notices.append(Told("picture_refused", {"name": name, "reason": Told(reason)}))
        return None


def show_notices(say: Say, keep: bool = False) -> None:
    """What went wrong since the last time, once; or again next time, where this run of the page will not last."""
    for notice in st.session_state.notices:
        st.warning(notice.said(say), icon=":material/image_not_supported:")
    if not keep:
        st.session_state.notices.clear()


def sample_paths() -> list[Path]:
    return sorted(path for path in SAMPLES.glob("*.*") if path.suffix in (".png", ".jpg"))[:8]


@st.cache_data(show_spinner=False)
def thumbnail_of(path: Path) -> str:
    image = load_image(path)
    image.thumbnail((224, 224))
    return picture_url(image)


def gallery(key: str, tray: MutableSequence[Image.Image]) -> None:
    """The sample pictures; a click puts one into the tray."""
    paths = sample_paths()
    if not paths:
        return
    with st.container(horizontal=True, horizontal_alignment="center", key=f"gallery_{key}"):
        for path in paths:
            if st.button(f"![{path.stem}]({thumbnail_of(path)})", key=f"sample_{key}_{path.stem}"):
                take([path], tray)
                st.rerun()


def take(sources: list[Any], tray: MutableSequence[Image.Image], allow_urls: bool = False) -> None:
    """Put what can be read into the tray."""
    for source in sources:
        name = Path(str(getattr(source, "name", source))).name
        picture = read(source, name, allow_urls)
        if picture is not None:
            tray.append(picture)


def adder(key: str, tray: MutableSequence[Image.Image], say: Say, allow_urls: bool) -> None:
    """Upload, camera and, where allowed, address. Each puts what it got into the tray and is empty again."""
    state = st.session_state
    count = state.setdefault(f"adder_{key}", 0)  # a new widget each time: the old one would hand its file in again

    def done(sources: list[Any], allow: bool = False) -> None:
        state[f"adder_{key}"] = count + 1
        take(sources, tray, allow)
        st.rerun()

    files = st.file_uploader(say("upload"), TYPES, accept_multiple_files=True, key=f"upload_{key}_{count}")
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


def tray_row(key: str, tray: MutableSequence[Image.Image], say: Say, width: int = 80) -> None:
    """The pictures that wait for a question, each with a button that removes it."""
    if not tray:
        return
    with st.container(horizontal=True, key=f"tray_{key}", gap="small"):
        for index, picture in enumerate(tray):
            with st.container(width=width, gap=None, key=f"waiting_{key}_{index}"):
                st.image(picture, width=width)
                if st.button(
                    "", icon=":material/close:", key=f"remove_{key}_{index}", help=say("remove"), type="tertiary"
                ):
                    del tray[index]
                    st.rerun()
