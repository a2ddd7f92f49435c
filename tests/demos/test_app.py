"""The page without a browser: what it answers, keeps, refuses and forgets. The model may hold random weights."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import re
import sys
import threading
import time
import zipfile
from itertools import cycle
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the page's tests run with the demo extra: make test-browser")

import streamlit as st
import teach
from answering import Answering
from compare import SIDES
from conversation import FAILED, STOPPED, to_json
from models import EMBEDDED, Choice, load
from streamlit.testing.v1 import AppTest
from teach import zipped
from texts import speak

from tests.families.made import make
from visglm import VisGLM
from visglm.errors import ConfigError
from visglm.recipe import FinetuneArguments

from .samples import UPLOADS, disc, encode

APP = Path(__file__).parents[2] / "demos/streamlit_app.py"
say = speak("en")
# The page itself runs on the lower bound in setup.cfg; what drives it there cannot hand it a file.
pytestmark = pytest.mark.skipif(
    not hasattr(AppTest, "camera_input"), reason="AppTest of Streamlit 1.65, the last for Python 3.10, uploads no files"
)


@pytest.fixture(scope="module", autouse=True)
def model():
    """Loaded before the first page, whose time is limited."""
    return load(Choice(EMBEDDED))


@pytest.fixture
def open_page(monkeypatch):
    def open_page(*arguments: str, short: bool = True) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["streamlit_app.py", *arguments])
        page = AppTest.from_file(APP, default_timeout=60).run()
        if short:
            page.number_input(key="max_new_tokens_main").set_value(6).run()
        return check(page)

    return open_page


def check(page: AppTest) -> AppTest:
    assert not page.exception, [error.value for error in page.exception]
    return page


def ask(page: AppTest, question: str, *files: tuple[str, bytes]) -> AppTest:
    for name, content in files:
        page.chat_input[0].upload(name, content)
    page.chat_input[0].set_value(question)
    return check(page.run())


def shown(page: AppTest) -> str:
    """What stands on the page as text."""
    return "\n".join(block.proto.body for block in page.get("html"))


def notices(page: AppTest) -> list[str]:
    """Sentences of the page in which names may stand."""
    found = re.findall(r'<div class="notice" role="alert"><b>!</b><span>(.*?)</span></div>', shown(page), re.DOTALL)
    return [html.unescape(text) for text in found]


def test_a_picture_and_two_questions(open_page, model):
    page = open_page()
    assert say("hero") in shown(page)
    ask(page, "What is this?", ("disc.png", encode(disc())))
    first = page.session_state.exchanges[0]
    expected = model.chat(disc(), "What is this?", max_new_tokens=6)
    assert first.answer == expected.text
    assert say("hero") not in shown(page)
    ask(page, "Where is it?")
    second = page.session_state.exchanges[1]
    assert second.answer == model.chat(None, "Where is it?", expected.history, max_new_tokens=6).text
    assert "tokens/s" in shown(page)


def test_a_picture_alone_is_described(open_page):
    page = ask(open_page(), "", ("disc.png", encode(disc())))
    assert page.session_state.exchanges[0].question == say("ask_default")


def test_what_people_write_is_never_markup(open_page):
    page = ask(open_page(), "<img src=x onerror=alert(1)> $x$ **bold**")
    assert "<img" not in shown(page) and "&lt;img src=x" in shown(page)


def test_the_page_speaks_chinese(open_page):
    page = open_page(short=False)
    page.session_state["language"] = "zh"
    check(page.run())
    assert speak("zh")("hero") in shown(page)
    assert page.toggle(key="heat").label == "它看了哪里"


def test_suggestions_wait_for_a_picture(open_page):
    page = open_page()
    assert not [button for button in page.button if button.key.startswith("suggest_")]
    page.session_state["tray"] = [disc()]
    check(page.run())
    check(page.button(key="suggest_2").click().run())
    assert page.session_state.exchanges[0].question == say("suggest_2")
    assert page.session_state.exchanges[0].pictures and not page.session_state.tray


def test_answer_again_edit_and_new(open_page):
    page = ask(open_page(), "What is this?", ("disc.png", encode(disc())))
    ask(page, "And?")
    check(page.button(key="regenerate").click().run())
    assert [item.question for item in page.session_state.exchanges] == ["What is this?", "And?"]
    check(page.button(key="edit_0").click().run())
    page.text_area(key="edit_text_0").set_value("What colour is it?")
    check(next(button for button in page.button if button.label == say("send")).click().run())
    (only,) = page.session_state.exchanges
    assert (only.question, len(only.pictures)) == ("What colour is it?", 1) and only.answer
    check(page.button(key="new").click().run())
    assert page.session_state.exchanges == [] and say("hero") in shown(page)


def test_heat_map(open_page):
    page = ask(open_page(), "What is this?", ("disc.png", encode(disc())))
    assert page.session_state.exchanges[0].explanation is None
    check(page.toggle(key="heat").set_value(True).run())
    assert page.session_state.exchanges[0].explanation.image.size == disc().size
    ask(page, "Where is it?")
    assert page.session_state.exchanges[1].explanation.answer == page.session_state.exchanges[1].answer


@pytest.mark.parametrize("name, language", list(zip(UPLOADS, cycle(["en", "zh"]), strict=False)))
def test_uploads(open_page, name, language):
    content, reason = UPLOADS[name]
    page = open_page(short=False)
    page.session_state["language"] = language
    page.number_input(key="max_new_tokens_main").set_value(2)
    page.run()
    page.chat_input[0].upload(name, content)
    check(page.run())
    told = notices(page)
    if reason is None:
        assert told == [] and len(page.session_state.exchanges[0].pictures) == 1
    else:
        words = speak(language)
        assert told == [words("picture_refused", name=name, reason=words(reason))]
        assert page.session_state.exchanges == []


def test_a_good_picture_beside_a_bad_one_waits_with_the_question(open_page):
    """Asked without the bad one, the answer would be about something else."""
    page = ask(open_page(), "What?", ("bad.png", b"no picture"), ("good.png", encode(disc())))
    assert page.session_state.exchanges == [] and len(page.session_state.tray) == 1
    assert [say("reason_format") in told for told in notices(page)] == [True]
    ask(page, "What?")
    assert len(page.session_state.exchanges[0].pictures) == 1 and notices(page) == []


def test_half_a_character_is_told_and_not_asked(open_page, monkeypatch):
    import talk

    page = ask(open_page(), "Hello?")
    monkeypatch.setattr(talk, "NUM_SUGGESTIONS", 1)
    page.session_state["tray"] = [disc()]
    check(page.run())
    monkeypatch.setattr(talk, "is_text", lambda text: text != say("suggest_1"))
    check(page.button(key="suggest_1").click().run())
    assert notices(page) == [say("text_broken")] and len(page.session_state.exchanges) == 1
    ask(page, "Still there?")
    assert page.session_state.exchanges[1].answer


def test_a_fault_of_the_page_ends_nobodys_session(open_page, monkeypatch):
    import talk

    page = open_page()
    with monkeypatch.context() as patch:
        patch.setattr(talk, "hero", lambda page: 1 / 0)
        check(page.run())
        assert notices(page) == [say("broken")]
    ask(page, "Hello?")
    assert page.session_state.exchanges[0].answer and notices(page) == []


def test_too_long_a_conversation_is_told(open_page):
    page = ask(open_page(), "long " * 3000)
    assert page.session_state.exchanges[0].status == FAILED
    assert notices(page) == [say("too_long")]
    ask(page, "Short?")
    assert [item.question for item in page.session_state.exchanges] == ["Short?"]


def test_addresses_are_off_unless_allowed(open_page):
    key = "url_hero_0"
    assert key not in [field.key for field in open_page(short=False).text_input]
    page = open_page("--allow-urls", short=False)
    page.text_input(key=key).set_value("http://127.0.0.1:9/picture.png")
    check(next(button for button in page.button if button.label == say("url_fetch")).click().run())
    assert [say("reason_url") in told for told in notices(page)] == [True]
    page.text_input(key="url_hero_1").set_value("/etc/hostname")
    check(next(button for button in page.button if button.label == say("url_fetch")).click().run())
    assert [say("reason_url") in told for told in notices(page)] == [True]


def test_no_address_is_opened_as_a_file(open_page, tmp_path, monkeypatch):
    """Though a folder of this machine is called like its scheme."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:").mkdir()
    (tmp_path / "a:" / "x.png").write_bytes(encode(disc()))
    page = open_page("--allow-urls", short=False)
    for number, address in enumerate(("a://x.png", " a:/x.png", "./a:/x.png")):
        page.text_input(key=f"url_hero_{number}").set_value(address)
        check(next(button for button in page.button if button.label == say("url_fetch")).click().run())
        assert [say("reason_url") in told for told in notices(page)] == [True]


def test_how_large_pictures_may_be_is_told_when_the_page_is_started(open_page):
    for max_pixels, is_refused in ((disc().width * disc().height - 1, True), (disc().width * disc().height, False)):
        page = ask(open_page("--max-pixels", str(max_pixels)), "What?", ("good.png", encode(disc())))
        assert [say("reason_pixels") in told for told in notices(page)] == [True] * is_refused


def test_two_visitors_have_a_conversation_each(open_page):
    one, other = open_page(), open_page()
    ask(one, "What is this?", ("disc.png", encode(disc())))
    check(other.run())
    assert other.session_state.exchanges == [] and len(one.session_state.exchanges) == 1


def test_a_saved_conversation_is_loaded_and_gone_on_with(open_page):
    page = ask(open_page(), "What is this?", ("disc.png", encode(disc())))
    saved = to_json(page.session_state.exchanges)
    again = open_page()
    again.file_uploader(key="load_0").upload("visglm.json", saved.encode(), "application/json")
    check(again.run())
    ask(again, "Where is it?")
    assert [item.question for item in again.session_state.exchanges] == ["What is this?", "Where is it?"]
    again.file_uploader(key="load_1").upload("visglm.json", b"{}", "application/json")
    check(again.run())
    assert notices(again) == [say("load_refused")]
    assert len(again.session_state.exchanges) == 2


def test_a_model_that_cannot_be_loaded_is_told(open_page, tmp_path):
    page = open_page("--model", str(tmp_path), short=False)
    assert [say("load_failed") in error.value for error in page.error] == [True]
    assert "config.json is missing" in page.code[0].value


def test_quantization_can_be_picked(open_page):
    page = open_page()
    page.selectbox(key="quantize_main").set_value("int8")
    ask(page, "What is this?", ("disc.png", encode(disc())))
    assert page.session_state.exchanges[0].model == "visglm-tiny · int8"
    assert open_page("--quantize", "int4").selectbox(key="quantize_main").value == "int4"


def test_stopped_mid_answer_the_model_is_free(open_page, model, monkeypatch):
    """A run that ends while an answer comes closes the stream and keeps what was said."""
    import talk

    class Stopped(Answering):
        """Left behind its first piece."""

        def read(self, stream):
            self.text = next(stream)
            stream.close()

    monkeypatch.setattr(talk, "Answering", Stopped)
    page = open_page(short=False)
    ask(page, "Describe everything.", ("disc.png", encode(disc())))
    said = page.session_state.exchanges[0]
    assert said.status == STOPPED and said.answer and said.timings is None
    assert model.chat(disc(), "Free?", max_new_tokens=2).text is not None
    assert say("stopped") in shown(page)


def test_what_is_seen_of_an_answer_is_kept_at_once(open_page, monkeypatch):
    """A click draws the page in a run of its own, beside the one that still waits for the next piece."""
    import talk

    kept = []

    class Watched(Answering):
        is_drawn = False

        def read(self, stream):
            self.text, self.seen = next(stream), threading.Event()
            self.news.set()
            assert self.seen.wait(60)
            stream.close()

        def wait(self):
            if self.is_drawn:
                kept.append(st.session_state.exchanges[0].answer)
                self.seen.set()
            super().wait()
            self.is_drawn = bool(self.text)  # next, before the page waits again

    monkeypatch.setattr(talk, "Answering", Watched)
    page = open_page(short=False)
    ask(page, "Describe everything.", ("disc.png", encode(disc())))
    assert kept and kept[0] == page.session_state.exchanges[0].answer != ""


def test_a_failure_speaks_the_language_of_the_page(open_page, model):
    page = ask(open_page(), "cat " * model.context_length)
    assert notices(page) == [say("too_long")]
    page.session_state["language"] = "zh"
    check(page.run())
    assert notices(page) == [speak("zh")("too_long")]


def test_a_photograph(open_page):
    page = open_page()
    check(page.toggle(key="camera_on_hero_0").set_value(True).run())
    page.camera_input[0].set_value(("photo.jpg", encode(disc("blue"), "JPEG"), "image/jpeg"))
    check(page.run())
    (photo,) = page.session_state.tray
    assert photo.size == disc().size and photo.getpixel((60, 45))[2] > 200
    assert not page.camera_input, "it is off again: the next picture need not be a photograph"
    ask(page, "What is this?")
    assert page.session_state.exchanges[0].pictures == [photo]


def test_two_to_compare_differ_from_the_start(open_page, tmp_path):
    def choices(*arguments: str) -> list[str]:
        page = open_page(*arguments)
        page.segmented_control(key="view").set_value("compare")
        check(page.run())
        assert say("compare_same") not in [caption.value for caption in page.caption]
        return [page.selectbox(key=f"{kind}_{side}").value for side in SIDES for kind in ("model", "quantize")]

    assert choices() == [EMBEDDED, "none", EMBEDDED, "int8"]
    assert choices("--quantize", "int4") == [EMBEDDED, "int4", EMBEDDED, "none"]
    load(Choice(EMBEDDED)).save_pretrained(tmp_path)
    assert choices("--model", str(tmp_path)) == [str(tmp_path), "none", EMBEDDED, "none"]


def test_two_of_a_kind_are_told(open_page):
    page = open_page()
    page.segmented_control(key="view").set_value("compare")
    check(page.run())
    check(page.selectbox(key="quantize_right").set_value("none").run())
    assert say("compare_same") in [caption.value for caption in page.caption]


def test_compare(open_page):
    page = open_page()
    page.segmented_control(key="view").set_value("compare")
    check(page.run())
    check(next(button for button in page.button if button.label == say("compare_run")).click().run())
    assert [info.value for info in page.info] == [say("compare_need")]
    page.session_state["compared_picture"] = [disc()]
    for side in ("left", "right"):
        page.number_input(key=f"max_new_tokens_{side}").set_value(4 if side == "left" else 2)
    check(page.run())
    check(next(button for button in page.button if button.label == say("compare_run")).click().run())
    tokens = [exchange.usage.completion_tokens for _, _, exchange in page.session_state.compared]
    assert tokens[0] > tokens[1] > 0


def test_teach(open_page, model):
    """Two pictures are learnt by an adapter of the visitor's own; the shared model stays as it was."""
    pytest.importorskip("peft", reason="teaching needs the finetune extra")
    page = open_page()
    page.segmented_control(key="view").set_value("teach")
    check(page.run())
    check(page.button(key="teach").click().run())
    assert [info.value for info in page.info] == [say("teach_need", num=2)]
    lessons = page.session_state["lessons"] = [disc("red"), disc("blue")]
    check(page.run())
    for picture, name in zip(lessons, ("It is a wug.", "It is a dax."), strict=True):
        page.text_input(key=f"name_{id(picture)}").set_value(name)
    plan = teach.outlook(model.model, 2, "lora")
    assert teach.foretell(plan, say) in [caption.value for caption in check(page.run()).caption]
    before = model.chat(disc("red"), "What is this?", max_new_tokens=4).text
    check(page.button(key="teach").click().run(timeout=300))
    last = page.session_state.taught_last
    settings = json.loads((last.adapter / "report.json").read_text("utf-8"))["settings"]
    defaults = dataclasses.asdict(FinetuneArguments().for_size(2))
    own = {"output_dir", *teach.SURROUNDINGS}
    assert all(settings[name] == value for name, value in defaults.items() if name not in own)
    assert len(last.curve) > 3
    losses = list(last.curve.values())
    assert losses[-1] < losses[0]
    assert len(last.before) == len(last.after) == 2 and not page.info
    assert [message.value for message in [*page.success, *page.warning, *page.error]] == [say("taught_all", num=2)]
    assert model.chat(disc("red"), "What is this?", max_new_tokens=4).text == before
    with zipfile.ZipFile(io.BytesIO(zipped(last.adapter))) as archive:
        archive.extractall(last.folder / "home")
    assert VisGLM.from_pretrained(last.folder / "home/visglm-adapter").chat(disc("red"), "What is this?").text
    assert Choice(str(last.adapter)).label in page.selectbox(key="model_main").options


def open_lesson(open_page):
    """The page about to teach two pictures the same name."""
    page = open_page()
    page.segmented_control(key="view").set_value("teach")
    page.session_state["lessons"] = [disc("red"), disc("blue")]
    check(page.run())
    for picture in page.session_state["lessons"]:
        page.text_input(key=f"name_{id(picture)}").set_value("It is a wug.")
    return page


def test_a_lesson_can_be_left_stopped_and_kept(open_page, monkeypatch):
    """The run of the page that began it ends mid-lesson, as a click ends it; the next one finds it and stops it."""
    pytest.importorskip("peft", reason="teaching needs the finetune extra")
    page = open_lesson(open_page)
    with monkeypatch.context() as patch:
        patch.setattr(teach, "draw_curve", lambda *arguments: st.stop())
        check(page.button(key="teach").click().run(timeout=300))
    lesson = page.session_state.lesson
    assert lesson.is_alive() and page.button(key="teach").disabled
    assert page.session_state.taught_last is None
    while not lesson.num_done:  # stopped before, it would have learnt nothing to keep
        assert lesson.is_alive()
        time.sleep(0.05)
    check(page.button(key="teach_stop").click().run(timeout=300))
    assert page.session_state.lesson is None and not lesson.is_alive()
    assert 1 <= lesson.num_done < lesson.num_steps
    told = say("taught_partly", step=lesson.num_done, num=lesson.num_steps)
    assert [info.value for info in page.info] == [told]
    assert VisGLM.from_pretrained(lesson.adapter).chat(disc("red"), "What is this?").text == lesson.after[0]
    assert not page.button(key="teach").disabled


def test_a_lesson_that_failed_says_so_in_the_language_of_the_page(open_page, monkeypatch):
    def fail(choice):
        raise ConfigError("there is no such model.")

    monkeypatch.setattr(teach, "load_fresh", fail)
    page = open_lesson(open_page)
    check(page.button(key="teach").click().run())
    assert say("teach_failed") in page.error[0].value and page.code[0].value == "there is no such model."
    page.session_state["language"] = "zh"
    check(page.run())
    assert speak("zh")("teach_failed") in page.error[0].value
    assert page.session_state.taught == [] and not page.button(key="teach").disabled


def test_a_lesson_that_changed_nothing_says_so(open_page, monkeypatch):
    """The loss may fall without a single answer being another one: asking again decides."""
    pytest.importorskip("peft", reason="teaching needs the finetune extra")
    monkeypatch.setattr(teach, "SURROUNDINGS", teach.SURROUNDINGS | {"learning_rate": 1e-12, "max_steps": 4})
    page = open_lesson(open_page)
    check(page.button(key="teach").click().run(timeout=300))
    assert [error.value for error in page.error] == [say("taught_nothing")]
    last = page.session_state.taught_last
    assert last.before == last.after and last.before[0] in html.unescape(shown(page))


def test_a_lesson_stopped_before_it_began_says_so(open_page, monkeypatch):
    monkeypatch.setattr(teach.Lesson, "learn", lambda lesson: lesson.stopped.set())
    page = open_lesson(open_page)
    check(page.button(key="teach").click().run(timeout=60))
    assert [info.value for info in page.info] == [say("taught_stopped")]
    assert page.session_state.taught == [] and not page.button(key="teach").disabled


def test_lessons_wait_for_each_other_and_can_leave_the_queue(tmp_path, monkeypatch):
    order, go_on = [], threading.Event()

    def learn(lesson):
        order.append(lesson.folder.name)
        assert go_on.wait(30)

    monkeypatch.setattr(teach.Lesson, "learn", learn)
    lessons = [teach.Lesson("a", [], "?", tmp_path / name, "lora") for name in ("first", "second", "third")]
    other = teach.Lesson("b", [], "?", tmp_path / "other", "lora")
    for lesson in (*lessons, other):
        lesson.start()
    assert [teach.SCHOOL.num_before(lesson) for lesson in (*lessons, other)] == [0, 1, 2, 0]
    lessons[1].stopped.set()
    lessons[1].join(30)
    assert teach.SCHOOL.num_before(lessons[2]) == 1
    go_on.set()
    for lesson in (*lessons, other):
        lesson.join(30)
    assert sorted(order) == ["first", "other", "third"] and order.index("first") < order.index("third")


def test_a_second_picture_is_told_where_the_model_was_taught_one(open_page, model, monkeypatch):
    monkeypatch.setattr(model.model.config, "max_pictures", 1)
    page = ask(open_page(), "What is this?", ("disc.png", encode(disc())))
    assert "mix" not in captions(page) and "混淆" not in captions(page)
    page = ask(page, "And this?", ("disc.png", encode(disc())))
    assert "mix" in captions(page) or "混淆" in captions(page)


def captions(page: AppTest) -> str:
    return " ".join(caption.value for caption in page.caption)


def test_settings_begin_as_the_models_own(open_page, tmp_path):
    drawn = make("glm_ocr", tmp_path / "draws", do_sample=True, temperature=0.8, top_p=0.6, top_k=2)
    page = open_page("--model", str(drawn))
    assert page.slider(key="temperature_main").value == 0.8 and page.slider(key="top_p_main").value == 0.6
    assert page.number_input(key="top_k_main").value == 2
    page.slider(key="temperature_main").set_value(1.5).run()
    assert page.slider(key="temperature_main").value == 1.5
    page.selectbox(key="model_main").set_value("visglm-tiny").run()  # whose own are others
    assert page.slider(key="temperature_main").value == 0.0 and page.number_input(key="top_k_main").value == 0
