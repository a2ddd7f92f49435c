"""A conversation saved, loaded again, and gone on with by another model."""

from __future__ import annotations

import json
import re

import pytest
from conversation import STOPPED, Exchange, from_json, history_of, picture_url, shrunk, to_json, to_markdown
from PIL import Image
from texts import LANGUAGES, TEXTS, as_markdown, speak

from visglm import History, Reply, VisGLM, VisGLMError
from visglm.prompt import Turn
from visglm.reply import Box, Timings, Usage

from .samples import disc


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained()


def exchanges() -> list[Exchange]:
    return [
        Exchange("这是什么？", [disc("red"), disc("blue")], "两个圆。", "stop", "a"),
        Exchange("And <now>?", [], "Still two.", "stop", "a"),
    ]


def test_saved_and_loaded_again_it_is_the_same():
    again = from_json(to_json(exchanges()).encode())
    assert [(item.question, item.answer, len(item.pictures)) for item in again] == [
        ("这是什么？", "两个圆。", 2),
        ("And <now>?", "Still two.", 0),
    ]
    centre = again[0].pictures[1].getpixel((60, 45))
    assert centre[2] > 200 and centre[0] < 60


def test_saved_pictures_are_made_smaller():
    large = Exchange("?", [Image.new("RGB", (3000, 1500))], "!", "stop")
    assert from_json(to_json([large]).encode())[0].pictures[0].size == (1460, 730)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"[1, 2]",
        b'{"messages": 3}',
        b'{"messages": []}',
        b'{"messages": [{"role": "wizard", "content": "x"}]}',
        b"[" * 100_000,
        json.dumps({"messages": [{"role": "user", "content": "\ud800"}]}).encode(),
        json.dumps(
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "data:image/png,x"}]}]}
        ).encode(),
    ],
)
def test_what_is_no_conversation_is_refused(data):
    with pytest.raises(VisGLMError):
        from_json(data)


@pytest.mark.parametrize("part", [{"path": "{path}"}, {"url": "http://127.0.0.1:1/"}, {"image": "{path}"}, {}])
def test_a_conversation_from_elsewhere_opens_no_files(tmp_path, part):
    disc().save(tmp_path / "secret.png")
    part = {key: value.format(path=tmp_path / "secret.png") for key, value in part.items()}
    messages = [{"role": "user", "content": [{"type": "image", **part}, {"type": "text", "text": "?"}]}]
    with pytest.raises(VisGLMError, match="data URLs"):
        from_json(json.dumps({"messages": messages}).encode())


def test_markdown_holds_everything():
    text = to_markdown(exchanges(), "Title")
    assert text.startswith("# Title\n")
    assert text.count("![](data:image/jpeg;base64,") == 2
    assert "**这是什么？**" in text and "Still two." in text


def test_what_is_kept_has_the_question_that_waits():
    waiting = Exchange("And then?", [disc("green")])
    again = from_json(to_json([*exchanges(), waiting], whole=True), most=None)
    assert [item.status for item in again] == ["stop", "stop", STOPPED]
    assert again[2].question == "And then?" and len(again[2].pictures) == 1 and again[2].answer == ""
    assert [item.model for item in again] == ["a", "a", ""]
    stopped = Exchange("Why?", [], "Beca", STOPPED, "a")
    assert from_json(to_json([stopped]))[0].status == STOPPED


def test_text_stays_text_in_markdown():
    assert as_markdown("Two. It is 3.5, isn't it?") == "Two. It is 3.5, isn't it?"
    assert as_markdown("- a\n1. b\n===") == "\\- a\\\n1\\. b\\\n\\==="
    told = Exchange("![x](http://example.org/x.png) <b> &lt;\n# two", [], "*a* `b`", "stop")
    text = to_markdown([told], "Title")
    for mark in ("![", "](", "<b>", "&lt;", "*a*", "`b`", "\n# two"):
        assert not re.search(r"(?<!\\)" + re.escape(mark), text.removeprefix("# Title")), mark


def test_many_pictures_are_refused_from_elsewhere_only():
    many = to_json([Exchange("?", [disc()] * 33, "!", "stop")])
    with pytest.raises(VisGLMError, match="33 pictures"):
        from_json(many)
    assert len(from_json(many, most=None)[0].pictures) == 33


def test_a_failure_is_no_answer_to_keep():
    failed = Exchange("And?", [disc()])
    failed.fail("failed", problem="no room")
    assert failed.failure.said(speak("zh")) == speak("zh")("failed", problem="no room")
    assert len(from_json(to_json([*exchanges(), failed]).encode())) == 2
    assert "And?" not in to_markdown([*exchanges(), failed], "Title")


def test_the_models_own_history_is_used_again(vlm):
    reply = vlm.chat(disc(), "What is this?", max_new_tokens=4)
    said = Exchange("What is this?", [disc()], model="this")
    said.take(reply)
    assert history_of([said], vlm, "this") is reply.history
    assert history_of([], vlm, "this") is None


def test_another_model_looks_at_the_pictures_itself(vlm):
    reply = vlm.chat(disc(), "What is this?", max_new_tokens=4)
    said = Exchange("What is this?", [disc()], model="other")
    said.take(reply)
    history = history_of([said], vlm, "this")
    assert history is not reply.history
    assert history.turns == reply.history.turns
    assert vlm.chat(None, "And now?", history, max_new_tokens=4).text
    assert history.image_embeds.equal(vlm.encode(disc()))


def test_asking_again_leaves_the_old_answer_alone():
    """A run that is being stopped may still write into the old one."""
    old = exchanges()[0]
    new = old.again("什么颜色？")
    assert (new.question, new.answer, new.pictures) == ("什么颜色？", "", old.pictures)
    assert old.answer == "两个圆。" and old.again().question == old.question
    assert new.status != STOPPED


def test_picture_urls_are_small():
    assert len(picture_url(shrunk(Image.effect_noise((2000, 2000), 60).convert("RGB")))) < 3_000_000


def test_every_text_is_there_in_both_languages_with_the_same_names():
    import string

    def names(text):
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    for key, texts in TEXTS.items():
        assert len(texts) == len(LANGUAGES) and all(texts), key
        assert names(texts[0]) == names(texts[1]), key
    assert speak("zh")("stop") == "停止" and speak("en")("stop") == "Stop"
    assert speak("en")("picture_refused", name="a.png", reason="{}") == "“a.png”: {}"


def test_thoughts_are_kept_apart_and_places_are_marked():
    shown = Image.new("RGB", (60, 40))
    exchange = Exchange("Where?", [shown])
    history = History((Turn("Where?", "Here.", 1),))
    exchange.take(
        Reply("Here.", history, Usage(3, 9, 4), Timings(0, 0, 0), "stop", thinking="hm", boxes=(Box(9, 9, 30, 30),))
    )
    assert (exchange.answer, exchange.thinking) == ("Here.", "hm") and "hm" not in to_json([exchange])
    assert exchange.marked.getpixel((9, 20)) != (0, 0, 0) == shown.getpixel((9, 20))
