"""What a conversation looks like to who goes on from it: in a REPL, in a notebook, and to the model."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.tiny import GOLDEN_HF
from visglm import History, VisGLM
from visglm.errors import PicturesWarning
from visglm.prompt import Turn, render_text

PICTURE = Path(__file__).parents[1] / "examples" / "cat.png"


def test_a_history_says_what_was_said_last():
    history = History((Turn("What is <this>?", "It is a cat.", num_images=1), Turn("哪里？", "左边。")), language="en")
    assert repr(history) == "History(2 turns, 1 picture, language='en', last: '哪里？' → '左边。')"
    assert repr(History()) == "History(0 turns, 0 pictures, language='auto')"
    shown = history._repr_html_()
    assert "<dt>What is &lt;this&gt;? <i>(1 picture)</i></dt><dd>It is a cat.</dd>" in shown
    assert shown.index("cat") < shown.index("左边")
    assert "0 turns" in History()._repr_html_()


def test_an_answer_is_lined_up_like_a_text():
    reply = VisGLM.from_pretrained().chat(None, "你好", max_new_tokens=4)
    assert f"{reply}" == str(reply) and f"[{reply:>20}|{reply:.1}]" == f"[{str(reply):>20}|{str(reply)[0]}]"


def test_long_answers_do_not_fill_the_screen():
    assert len(repr(History((Turn("x" * 5000, "y" * 5000),)))) < 500


def test_a_conversation_keeps_the_frame_it_began_with():
    """As the code published with VisualGLM-6B does: one language of the frame for all of a prompt."""
    turns = [Turn("What is this?", "It is a cat.", num_images=1), Turn("它在哪里？")]
    assert "问：" not in render_text(turns, style="visualglm")
    assert render_text(turns, style="visualglm").count("Q:") == 2
    assert "Q:" not in render_text(list(reversed([Turn("It is?"), Turn("什么？", "猫。")])), style="visualglm")


@pytest.fixture(scope="module")
def legacy() -> VisGLM:
    """A checkpoint in the layout of VisualGLM-6B."""
    return VisGLM.from_pretrained(GOLDEN_HF, device="cpu")


def test_a_second_picture_is_told_where_the_model_was_taught_one(legacy, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PicturesWarning)
        first = legacy.chat(PICTURE, "What?", max_new_tokens=1)
        legacy.chat(None, "What?", history=first.history, max_new_tokens=1)
    with pytest.warns(PicturesWarning, match="taught with one picture in a conversation, and this one has 2"):
        legacy.chat(PICTURE, "What?", history=first.history, max_new_tokens=1)
    legacy.save_pretrained(tmp_path / "native")
    again = VisGLM.from_pretrained(tmp_path / "native", device="cpu")
    with pytest.warns(PicturesWarning):
        again.chat([PICTURE, PICTURE], "What?", max_new_tokens=1)


def test_a_model_without_that_limit_says_nothing(recwarn):
    VisGLM.from_pretrained(device="cpu").chat([PICTURE, PICTURE], "What?", max_new_tokens=1)
    assert not [warning for warning in recwarn if warning.category is PicturesWarning]
