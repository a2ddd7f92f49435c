"""Show it a handful of pictures with their names, let it learn, and see what it answers before and after."""

from __future__ import annotations

import html
import io
import json
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pictures
import streamlit as st
from conversation import is_text
from models import Choice, image_limits, load_fresh, load_or_tell
from PIL import Image
from settings import Page
from texts import notice
from visitors import has_left, session_id

from visglm import VisGLM
from visglm.training import METHODS, Outlook, outlook

FEWEST = 2  # pictures
# Those whose result is an adapter to take home, over any base.
OFFERED = [name for name, method in METHODS.items() if method.keeps_base and not method.quantizes]
# Where a run is, and nothing about how it learns: that is the library's.
SURROUNDINGS: dict[str, Any] = {"max_bad_rows": 0.0, "num_workers": 0, "report_to": "none"}
ANSWER_TOKENS = 48  # of the answers before and after
POLL_SECONDS = 0.5
WAITING, BEFORE, LEARNING, AFTER = "waiting", "before", "learning", "after"  # what a lesson is at, in order


class School:
    """Lets one lesson at a time at a model, in the order in which they came. Thread-safe."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.queues: dict[str, list[Lesson]] = {}  # model → those who are there, the one that learns first

    def enter(self, lesson: Lesson) -> None:
        with self.changed:
            self.queues.setdefault(lesson.model, []).append(lesson)

    def num_before(self, lesson: Lesson) -> int:
        with self.changed:
            queue = self.queues.get(lesson.model, [])
            return queue.index(lesson) if lesson in queue else 0

    def wait(self, lesson: Lesson) -> None:
        """Until it is this lesson's turn, or it was stopped."""
        with self.changed:
            while self.queues[lesson.model][0] is not lesson and not lesson.is_over():
                self.changed.wait(POLL_SECONDS)

    def leave(self, lesson: Lesson) -> None:
        with self.changed:
            self.queues[lesson.model].remove(lesson)
            self.changed.notify_all()


SCHOOL = School()  # of all visitors


class Lesson(threading.Thread):
    """A fine-tuning run beside the page, which may look away and come back: `curve` grows while it runs.

    Args:
        rows: pictures, and what the model is to answer when asked `question` about them.
        folder: of the run's own, empty; the adapter is in `adapter` below it.
        session: whose lesson it is; it ends when that visitor leaves.
    """

    def __init__(
        self,
        model: str,
        rows: list[tuple[Image.Image, str]],
        question: str,
        folder: Path,
        method: str,
        session: str = "",
    ):
        super().__init__(name="visglm-lesson", daemon=True)
        self.model, self.rows, self.question, self.folder = model, rows, question, folder
        self.method, self.num_done = method, 0
        self.outlook: Outlook | None = None  # until the model is there
        self.began = self.last = 0.0  # by time.monotonic, of the first step and the newest
        self.session = session
        self.stopped = threading.Event()
        self.stage = WAITING
        self.before: list[str] = []
        self.after: list[str] = []
        self.error: Exception | None = None

    def start(self) -> None:
        SCHOOL.enter(self)  # here, in the order in which visitors asked
        super().start()

    def run(self) -> None:
        """Train a model of its own, the shared one stays as it is; ask it about every picture before and after."""
        try:
            SCHOOL.wait(self)
            if not self.is_over():
                self.learn()
        except Exception as error:  # shown by the page, which is another thread
            self.error = error
        finally:
            SCHOOL.leave(self)

    def learn(self) -> None:
        vlm = load_fresh(Choice(self.model))
        vlm.image_limits = image_limits()
        self.outlook = outlook(vlm.model, len(self.rows), self.method)
        self.stage = BEFORE
        self.before = self.answers(vlm)
        if self.is_over():
            return
        self.stage = LEARNING
        vlm.finetune(
            write_rows(self.rows, self.question, self.folder / "pictures"), self.method, self.adapter, self.stop,
            **SURROUNDINGS,
        )  # fmt: skip
        self.stage = AFTER
        self.after = self.answers(vlm)

    @property
    def num_right(self) -> int:
        return sum(after.strip() == wanted for (_, wanted), after in zip(self.rows, self.after, strict=True))

    @property
    def num_changed(self) -> int:
        """Answers that are others than before, right ones left out."""
        rows = zip(self.rows, self.before, self.after, strict=True)
        return sum(before != after and after.strip() != wanted for (_, wanted), before, after in rows)

    def stop(self) -> bool:
        """What the run asks after every step."""
        self.last = time.monotonic()
        self.began = self.began or self.last
        self.num_done += 1
        return self.is_over()

    @property
    def num_steps(self) -> int:
        """How many there are at the most; 0 until that is known."""
        return self.outlook.num_steps if self.outlook is not None else 0

    @property
    def seconds_left(self) -> int | None:
        """As long as all that are left would take, at the pace so far."""
        if self.num_done < 2:
            return None
        return round((self.last - self.began) / (self.num_done - 1) * (self.num_steps - self.num_done))

    def is_over(self) -> bool:
        """Whether it was stopped, or the visitor has left, whichever view was open: others wait for their turn."""
        if self.session and has_left(self.session):
            self.stopped.set()
        return self.stopped.is_set()

    def answers(self, vlm: VisGLM) -> list[str]:
        requests = [(picture, self.question) for picture, _ in self.rows]
        return [str(reply) for reply in vlm.batch(requests, progress=False, max_new_tokens=ANSWER_TOKENS)]

    @property
    def adapter(self) -> Path:
        # The folder's name is what the list of models shows.
        return self.folder / self.folder.name

    @property
    def curve(self) -> dict[int, float]:
        """Step → training loss, as the newest checkpoint has it."""
        states = sorted(self.adapter.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
        if not states:
            return {}
        rows = json.loads(states[-1].read_text("utf-8"))["log_history"]
        return {row["step"]: row["loss"] for row in rows if "loss" in row}


def view(page: Page) -> None:
    state, say = st.session_state, page.say
    st.html(f'<p class="lead">{html.escape(say("teach_lead"))}</p>')
    pictures.gallery("teach", state.lessons, say)
    pictures.adder("teach", state.lessons, say, page.asked.allow_urls)
    names = name_pictures(state.lessons, say)
    with st.container(border=True):
        question = st.text_input(say("question"), say("suggest_1"), key="taught_question")
        method = st.segmented_control(
            say("method"), OFFERED, default=OFFERED[0], required=True, key="method", help=say("method_help")
        )
        if len(names) >= FEWEST:
            vlm = load_or_tell(Choice(page.choice.model), say)
            st.caption(foretell(outlook(vlm.model, len(names), method), say))
        asked = st.button(
            say("teach_run"), type="primary", icon=":material/school:", key="teach", disabled=state.lesson is not None
        )
    if asked and (len(names) < FEWEST or not all(names) or not question.strip()):
        st.info(say("teach_need", num=FEWEST), icon=":material/label:")
    elif asked and not is_text("".join([question, *names])):
        st.html(notice(say("text_broken")))
    elif asked:
        begin(page, list(zip(state.lessons, names, strict=True)), question.strip(), method)
    if state.lesson is not None:
        attend(state.lesson, say)
    elif state.lesson_failed == "":
        st.info(say("taught_stopped"), icon=":material/stop_circle:")
    elif state.lesson_failed is not None:
        st.error(f"**{say('teach_failed')}**", icon=":material/error:")
        st.code(state.lesson_failed, language=None, wrap_lines=True)
    elif state.taught_last is not None:
        show_result(state.taught_last, say)


def name_pictures(shown: list[Image.Image], say: Callable[..., str]) -> list[str]:
    """A row per picture: what it is to be called. Gives the names, "" where there is none yet."""
    names = []
    for index, picture in enumerate(shown):
        with st.container(horizontal=True, vertical_alignment="center", key=f"lesson_{index}"):
            pictures.shown(picture, 64, say)
            names.append(
                st.text_input(
                    say("answer_for", number=index + 1), placeholder=say("answer_hint"), key=f"name_{id(picture)}",
                    label_visibility="collapsed",
                ).strip()
            )  # fmt: skip
            if st.button(say("remove"), icon=":material/close:", key=f"unteach_{index}", type="tertiary"):
                del shown[index]
                st.rerun()
    return names


def begin(page: Page, rows: list[tuple[Image.Image, str]], question: str, method: str) -> None:
    state = st.session_state
    school = state.school or tempfile.TemporaryDirectory(prefix="visglm-school-")  # gone with the visitor
    folder = Path(school.name) / f"lesson-{len(list(Path(school.name).iterdir())) + 1}"
    folder.mkdir()
    lesson = Lesson(page.choice.model, rows, question, folder, method, session_id())
    state.school, state.lesson_failed, state.lesson = school, None, lesson
    lesson.start()
    st.rerun()  # the button that began it is drawn anew, and waits


def attend(lesson: Lesson, say: Callable[..., str]) -> None:
    """Watch a lesson until it ends. Whatever is clicked meanwhile ends this run of the page, not the lesson: the next
    run is here again."""
    state = st.session_state
    with st.status(say("teaching"), expanded=True) as status:
        st.button(
            say("teach_stop"), icon=":material/stop_circle:", key="teach_stop", on_click=lesson.stopped.set,
            disabled=lesson.stopped.is_set(),
        )  # fmt: skip
        if lesson.stopped.is_set():
            status.update(label=say("teach_stopping"))
        bar, place = st.empty(), st.empty()
        while lesson.is_alive():
            # Drawn every time, for only where something is drawn does Streamlit notice a click.
            bar.progress(*progress_of(lesson, say))
            draw_curve(place, lesson.curve, say)
            lesson.join(POLL_SECONDS)
    state.lesson = None
    if lesson.error is not None:
        state.lesson_failed = str(lesson.error)
    elif not lesson.after:
        state.lesson_failed = ""
    else:
        state.taught_last = lesson
        state.taught.append(str(lesson.adapter))
    st.rerun()


def progress_of(lesson: Lesson, say: Callable[..., str]) -> tuple[float, str]:
    """How far a lesson is, from 0 to 1, and what it is at."""
    if lesson.stage == WAITING and (num := SCHOOL.num_before(lesson)):
        return 0.0, say("teach_queue", num=num)
    if lesson.stage in (BEFORE, AFTER):
        return float(lesson.stage == AFTER), say(f"teach_{lesson.stage}")
    if lesson.stage == WAITING or not lesson.num_done:
        return 0.0, say("teach_ready")
    share = min(lesson.num_done / lesson.num_steps, 1.0)
    told = say("teach_progress", step=lesson.num_done, num=lesson.num_steps)
    left = lesson.seconds_left
    return share, told if left is None else f"{told} {say('teach_left', seconds=left)}"


def foretell(plan: Outlook, say: Callable[..., str]) -> str:
    """What will be trained, beside what, and for how long at the most."""
    lines = [
        say(f"trains_{plan.method}", num=f"{plan.num_weights:,}", share=f"{plan.share:.1%}"),
        say("teach_steps_most" if plan.is_most else "teach_steps", num=plan.num_steps),
    ]
    return " ".join([*lines, say("teach_general")] if plan.num_general else lines)


def write_rows(rows: list[tuple[Image.Image, str]], question: str, folder: Path) -> Path:
    """The pictures and a file of rows in VisualGLM's own format, which `VisGLM.finetune` reads."""
    folder.mkdir()
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for index, (picture, answer) in enumerate(rows):
            picture.save(folder / f"{index}.png")
            row = {"img": f"{index}.png", "prompt": question, "label": answer}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return folder / "train.jsonl"


def draw_curve(place: Any, curve: dict[int, float], say: Callable[..., str]) -> None:
    if curve:
        points = [{say("step"): step, say("loss"): loss} for step, loss in curve.items()]
        place.line_chart(points, x=say("step"), y=say("loss"), height=200)


def show_result(lesson: Lesson, say: Callable[..., str]) -> None:
    """The curve, the answers before and after, and the adapter to take home."""
    if lesson.stopped.is_set():
        st.info(say("taught_partly", step=lesson.num_done, num=lesson.num_steps), icon=":material/stop_circle:")
    say_what_was_learnt(lesson, say)
    draw_curve(st, lesson.curve, say)
    for (picture, wanted), before, after in zip(lesson.rows, lesson.before, lesson.after, strict=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            pictures.shown(picture, 64, say)
            lines = {"answer_before": before, "answer_after": after}
            if after.strip() != wanted:
                lines["answer_wanted"] = wanted
            rows = "".join(
                f"<dt>{html.escape(say(key))}</dt><dd>{html.escape(line)}</dd>" for key, line in lines.items()
            )
            st.html(f'<dl class="learnt">{rows}</dl>', width="stretch")
            st.html("✓" if after.strip() == wanted else "✗", width="content")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            say("adapter"), lambda: zipped(lesson.adapter), "visglm-adapter.zip", "application/zip",
            icon=":material/download:", on_click="ignore", type="primary",
        )  # fmt: skip
        st.caption(say("adapter_help"))


def say_what_was_learnt(lesson: Lesson, say: Callable[..., str]) -> None:
    """By asking again, not by the loss."""
    num, right, changed = len(lesson.rows), lesson.num_right, lesson.num_changed
    if lesson.before == lesson.after and right < num:
        st.error(say("taught_nothing"), icon=":material/error:")
    elif right == num:
        st.success(say("taught_all", num=num), icon=":material/check_circle:")
    else:
        st.warning(say("taught_some", num=num, right=right, changed=changed), icon=":material/rule:")


def zipped(folder: Path) -> bytes:
    """What `VisGLM.from_pretrained` needs of a run: its files, without the checkpoints."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            archive.write(path, f"visglm-adapter/{path.name}")
    return buffer.getvalue()
