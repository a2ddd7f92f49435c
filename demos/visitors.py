"""Who is on the page, and how much each of them may hold here."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import hashlib
import re
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import streamlit as st
from PIL import Image
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

COOKIE = "visglm_visitor"
KEY = re.compile(r"[A-Za-z0-9_-]{43}")
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
LEFT_SECONDS = 30  # until what a visitor had here is freed; a telephone may only have slept
VISITOR_UPLOADS = 96 * 2**20  # bytes of files that one tab has sent and not asked about yet
VISITOR_PICTURES = 160 * 2**20  # bytes of pixels of one visitor, over all tabs: some thirty pictures of full size
EVERYBODYS_PICTURES = 2 * 2**30  # bytes of pixels of all visitors


def new_key() -> str:
    return secrets.token_urlsafe(32)


def is_key(text: str) -> bool:
    return KEY.fullmatch(text) is not None


def visitor() -> str | None:
    """The visitor's name on this machine; None where the browser keeps no cookies. It is a digest: whoever reads it
    here has not got the key that the browser shows."""
    key = str(st.context.cookies.get(COOKIE, ""))
    return hashlib.sha256(key.encode()).hexdigest() if is_key(key) else None


def session_id() -> str:
    context = get_script_run_ctx()
    return context.session_id if context is not None else ""


def has_left(session: str) -> bool:
    """Whether the browser tab of a session is closed. Streamlit itself would let its run go on for minutes."""
    return runtime.exists() and not runtime.get_instance().is_active_session(session)


def visitor_left() -> bool:
    return bool(session_id()) and has_left(session_id())


def at_the_machine() -> bool:
    """Whether whoever looks at the page sits at the machine that runs it, whose folders are his or hers already."""
    headers = st.context.headers
    return is_local(st.get_option("server.address"), st.context.ip_address, headers.to_dict())


def is_local(listens: str | None, caller: str | None, headers: Mapping[str, str]) -> bool:
    """Whether nobody from elsewhere can have sent this.

    Args:
        listens: the address that the server listens on.
        caller: the visitor's address; None for this machine.
        headers: of the visitor's connection. A proxy on this machine is a caller from here, too: it shows by the name
            that the page was called by, or by what it adds.
    """
    names = {name.lower(): value for name, value in headers.items()}
    host = urlsplit(f"//{names.get('host', '')}").hostname
    is_handed_on = any(name in names for name in ("forwarded", "via", "x-real-ip")) or any(
        name.startswith("x-forwarded") for name in names
    )
    return listens in THIS_MACHINE and caller is None and host in THIS_MACHINE and not is_handed_on


# --- how much ------------------------------------------------------------------------------------------------------


class Ledger:
    """What every session holds in pictures. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: dict[str, tuple[str, int]] = {}  # session → visitor and bytes

    def note(self, session: str, name: str, num_bytes: int) -> None:
        with self.lock:
            self.held[session] = (name, num_bytes)

    def sessions(self) -> list[str]:
        with self.lock:
            return list(self.held)

    def forget(self, session: str) -> None:
        with self.lock:
            self.held.pop(session, None)

    def room(self, name: str) -> int:
        """Bytes that may come to what this visitor has."""
        with self.lock:
            rows = list(self.held.values())
        mine = sum(held for owner, held in rows if owner == name)
        return min(VISITOR_PICTURES - mine, EVERYBODYS_PICTURES - sum(held for _, held in rows))


LEDGER = Ledger()
HELD: dict[str, list[Any]] = {}  # session → what is large of what it keeps
HEAVY = (
    *("tray", "exchanges", "compared_picture", "compared", "lessons", "lesson", "taught_last", "school"),
    *("asked_library", "library_folder"),
)


def empty(session: str) -> None:
    """Streamlit may go on holding the state of a session that is closed: what is large in it is taken out."""
    for held in HELD.pop(session, ()):
        if isinstance(held, list):
            held.clear()
        elif isinstance(held, tempfile.TemporaryDirectory):
            held.cleanup()
        elif held is not None:
            held.rows.clear()  # of a lesson


def give_back() -> None:
    """What is free goes back to the system. glibc keeps blocks of the size of pictures once larger ones were freed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # other C libraries have none, and need none
        trim(0)


async def close_those_who_left() -> None:
    """Free what visitors had here, a while after they have gone. Streamlit by itself keeps the last 128 of them until
    others come. Runs for as long as the server, on its event loop."""
    seen_leaving: dict[str, float] = {}  # session → when, in seconds
    while True:
        await asyncio.sleep(LEFT_SECONDS / 6)
        gone = [session for session in LEDGER.sessions() if has_left(session)]
        seen_leaving = {session: seen_leaving.get(session, time.monotonic()) for session in gone}
        due = [session for session, since in seen_leaving.items() if time.monotonic() - since >= LEFT_SECONDS]
        for session in due:
            runtime.get_instance().close_session(session)
            LEDGER.forget(session)
            empty(session)
        if due:
            gc.collect()  # a session is full of circles
            give_back()


def bytes_of(picture: Image.Image) -> int:
    return picture.width * picture.height * len(picture.getbands())


def pictures_held() -> list[Image.Image]:
    """Every picture that this session has, wherever on the page it waits."""
    state = st.session_state
    exchanges = [*state.exchanges, *(exchange for _, _, exchange in state.compared)]
    lessons = [lesson for lesson in (state.lesson, state.taught_last) if lesson is not None]
    return [
        *state.tray,
        *state.compared_picture,
        *state.lessons,
        *(picture for exchange in exchanges for picture in exchange.pictures),
        *(picture for lesson in lessons for picture, _ in lesson.rows),
    ]


def count_pictures() -> None:
    """Write down what this session holds now."""
    if runtime.exists():
        HELD[session_id()] = [st.session_state[name] for name in HEAVY]
    distinct = {id(picture): bytes_of(picture) for picture in pictures_held()}
    LEDGER.note(session_id(), visitor() or session_id(), sum(distinct.values()))


class Room:
    """What may still come to what this visitor has; asks the page once, when it is made."""

    def __init__(self) -> None:
        count_pictures()
        self.left = LEDGER.room(visitor() or session_id())

    def take(self, *pictures: Image.Image) -> bool:
        """Whether there is room for all of these, which is used up then."""
        needed = sum(map(bytes_of, pictures))
        if needed > self.left:
            return False
        self.left -= needed
        return True


def uploaded_bytes(session: str) -> int:
    """Bytes of files that a session has sent and that wait for being used."""
    if not runtime.exists():
        return 0
    files = runtime.get_instance().uploaded_file_mgr.file_storage.get(session, {})
    return sum(len(file.data) for file in list(files.values()))


def free_uploads(files: Iterable[Any]) -> None:
    """Forget what was sent, once it has been read; Streamlit would hold it until the visitor leaves."""
    if runtime.exists():
        for file in files:
            if hasattr(file, "file_id"):
                runtime.get_instance().uploaded_file_mgr.remove_file(session_id(), file.file_id)
