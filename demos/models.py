"""Which models the page offers, and loading them: once for everybody, told while it happens."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st
from texts import Told, as_label

from visglm import ImageLimits, RemoteVisGLM, VisGLM, VisGLMError
from visglm.checkpoint import open_source
from visglm.errors import ServerError
from visglm.families import family_of
from visglm.sampling import GREEDY

EMBEDDED = "visglm-tiny"
LISTED_SECONDS = 30  # for which what a server lists is taken to be so
KEPT = 3  # models in memory at a time, over all visitors; the one used longest ago goes first


@dataclass(frozen=True)
class Choice:
    """A model to load: name, folder or hub id, and how; or the name of one that the server has."""

    model: str
    quantize: str | None = None
    server: str | None = None

    @property
    def label(self) -> str:
        name = Path(self.model).name or self.model
        return f"{name} · {self.quantize}" if self.quantize else name


def arguments() -> argparse.Namespace:
    """What stood behind `--` on the command line."""
    parser = argparse.ArgumentParser(prog="streamlit run demos/server.py --")
    parser.add_argument("--model", action="append", help="model or adapter folder, or hub id; may be given again")
    parser.add_argument("--server", help="address of a visglm serve, which answers in the place of models here")
    parser.add_argument("--quantize", help="how the first model is loaded at the start")
    parser.add_argument("--allow-urls", action="store_true", help="let visitors name pictures by address")
    parser.add_argument("--max-pixels", type=int, help="largest width × height of a picture")
    parser.add_argument("--library", help="the library that everybody asks; by default each visitor has one")
    parser.add_argument("--no-history", action="store_true", help="keep no conversation on this machine")
    parsed = parser.parse_args()
    if not parsed.server:
        parsed.model = list(dict.fromkeys([*(parsed.model or ()), EMBEDDED]))
    return parsed


def image_limits() -> ImageLimits:
    """How large pictures may be, as the page was started."""
    max_pixels = arguments().max_pixels
    return ImageLimits() if max_pixels is None else ImageLimits(max_pixels=max_pixels)


@st.cache_resource(max_entries=64, show_spinner=False)
def remote(server: str, model: str | None = None) -> RemoteVisGLM:
    """The server's model that everybody who chose it shares. Its key is in the environment."""
    return RemoteVisGLM(server, model=model)


@st.cache_data(ttl=LISTED_SECONDS, show_spinner=False)
def models_of(server: str) -> list[str]:
    """What the server has: the base, then its adapters."""
    return remote(server).models()


def told_of(error: ServerError, server: str) -> Told:
    """What is wrong with a server, and what to do, for whoever is on the page."""
    return Told(f"server_{error.reason}", {"server": server, "problem": str(error)})


def find_models(asked: argparse.Namespace, say: Callable[..., str]) -> ServerError | None:
    """Note in `asked` what the server has. Returns why it cannot be asked."""
    asked.model = [asked.server]
    try:
        with st.spinner(say("server_asking")):
            asked.model = models_of(asked.server)
    except ServerError as error:
        return error
    return None


@st.cache_resource(max_entries=KEPT, show_spinner=False)
def load(choice: Choice) -> VisGLM:
    """The model that everybody who chose it shares."""
    return load_fresh(choice)


@st.cache_data(max_entries=64, show_spinner=False)
def own_settings(choice: Choice) -> dict[str, float]:
    """What a model takes for settings that are not given, as its files say; it is not loaded for this."""
    if choice.server is not None:
        return dict(GREEDY)
    try:
        source = open_source(None if choice.model == EMBEDDED else choice.model)
        return {**GREEDY, **family_of(source.config).sampling(source.generation_config())}
    except (VisGLMError, OSError):  # told where it is loaded
        return dict(GREEDY)


def load_fresh(choice: Choice) -> VisGLM:
    """A model of one's own, to teach."""
    options: dict[str, Any] = {"quantize": choice.quantize} if choice.quantize else {}
    return VisGLM.from_pretrained(None if choice.model == EMBEDDED else choice.model, **options)


def load_or_tell(choice: Choice, say: Callable[..., str]) -> VisGLM | RemoteVisGLM:
    """The model; while it loads, a line that says so. Where it cannot be loaded, the page ends here with the reason."""
    if choice.server is not None:
        return remote(choice.server, choice.model)
    try:
        with st.spinner(say("loading", model=as_label(choice.label))):
            vlm = load(choice)
            vlm.image_limits = image_limits()
            return vlm
    except (VisGLMError, OSError) as error:
        st.error(f"**{say('load_failed')}**", icon=":material/error:")
        st.code(str(error), language=None, wrap_lines=True)
        st.stop()
