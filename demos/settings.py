"""Controls that both the side bar and the comparison show, and what they set."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit as st
from models import Choice, own_settings

from visglm import RemoteVisGLM, VisGLM
from visglm.quant import SCHEMES
from visglm.sampling import GREEDY


@dataclass(frozen=True)
class Page:
    """What every view needs: the language, the model that was picked, and how it is to answer."""

    say: Callable[..., str]
    asked: Namespace
    choice: Choice
    vlm: VisGLM | RemoteVisGLM
    sampling: dict[str, Any]
    prompt_language: str
    show_heat: bool
    show_timings: bool


def pick_model(key: str, asked: Namespace, say: Callable[..., str], *, is_second: bool = False) -> Choice:
    """Model or adapter, and quantization; the models are those the page was started with and those taught here.

    Args:
        is_second: of two to compare. It starts with another model than the first, or where there is none, with the
            same one in other bits.
    """
    names = [*asked.model, *st.session_state.taught]
    name = st.selectbox(
        say("model"), names, min(int(is_second), len(names) - 1), key=f"model_{key}",
        help=say("model_help_server" if asked.server else "model_help"),
        format_func=lambda name: Choice(name).label,
    )  # fmt: skip
    if asked.server:
        return Choice(name, server=asked.server)
    schemes = ["none", *SCHEMES]
    start = asked.quantize if name == asked.model[0] and asked.quantize in SCHEMES else "none"
    if is_second and len(names) == 1:
        start = "int8" if start == "none" else "none"
    quantize = st.selectbox(
        say("quantize"), schemes, schemes.index(start), key=f"quantize_{key}", help=say("quantize_help"),
        format_func=lambda name: say(name) if name == "none" else name,
    )  # fmt: skip
    return Choice(name, None if quantize == "none" else quantize)


def say_labels_again() -> None:
    """For a change of the page's language: a select box goes on showing the label of the old one unless it is set."""
    state = st.session_state
    for key in [key for key in state if str(key).startswith("quantize_")]:
        state[key] = state[key]


def sampling_controls(key: str, asked: Namespace, say: Callable[..., str], choice: Choice) -> dict[str, Any]:
    """The settings of `visglm.sampling.Sampling`, as `chat` takes them; for a server those that its protocol has.

    They begin as the model's own are, and do so again where a model of others is picked.
    """
    own, state = own_settings(choice), st.session_state
    if state.get(f"own_{key}", GREEDY) != own:
        state.update({f"{name}_{key}": value for name, value in own.items()})
    state[f"own_{key}"] = own
    for name, value in own.items():
        state.setdefault(f"{name}_{key}", value)

    def words(name: str) -> dict[str, str]:
        return {"label": say(name), "help": say(f"{name}_help"), "key": f"{name}_{key}"}

    def bounds(name: str, least: float, most: float) -> dict[str, float]:
        return {"min_value": min(least, own[name]), "max_value": max(most, own[name])}

    max_new_tokens = st.number_input(**words("max_new_tokens"), min_value=0, max_value=4096, value=0, step=16)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens or None}
    settings |= {
        "temperature": st.slider(**words("temperature"), **bounds("temperature", 0.0, 2.0)),
        "top_p": st.slider(**words("top_p"), **bounds("top_p", 0.05, 1.0)),
    }
    if not asked.server:
        settings |= {
            "top_k": st.number_input(**words("top_k"), **bounds("top_k", 0, 1000)),
            "repetition_penalty": st.slider(**words("repetition_penalty"), **bounds("repetition_penalty", 0.5, 2.0)),
        }
    return settings | {"seed": st.number_input(**words("seed"), min_value=0, value=None, step=1)}
