"""Show it a handful of pictures with their names, let it learn, and see what it answers before and after."""

from __future__ import annotations

import html
import io
import json
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pictures
import streamlit as st
from models import Choice, load_fresh
from PIL import Image
from settings import Page

from visglm import VisGLM

FEWEST = 2  # pictures
STEPS = (20, 60, 150)  # choices of the slider between them
# Method → settings under which a handful of pictures sticks within a minute; the defaults are for thousands.
METHODS: dict[str, dict[str, float]] = {"lora": {"learning_rate": 3e-3, "dropout": 0.0}, "ptuning": {}, "qformer": {}}
POLL_SECONDS = 0.5


class Lesson(threading.Thread):
    """A fine-tuning run beside the page: `curve` grows while it runs, `error` says why it failed."""

    def __init__(self, vlm: VisGLM, data: Path, folder: Path, method: str, num_steps: int):
        super().__init__(name="visglm-lesson", daemon=True)
        self.vlm, self.data, self.folder, self.method, self.num_steps = vlm, data, folder, method, num_steps
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.vlm.finetune(
                self.data, method=self.method, output_dir=self.folder, max_steps=self.num_steps, batch_size=4,
                every=max(1, self.num_steps // 10), held_out=0.0, max_bad_rows=0.0, num_workers=0, report_to="none",
                **METHODS[self.method],
            )  # fmt: skip
        except Exception as error:  # shown by the page, which is another thread
            self.error = error

    @property
    def curve(self) -> dict[int, float]:
        """Step → training loss, as the newest checkpoint has it."""
        states = sorted(self.folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
        if not states:
            return {}
        rows = json.loads(states[-1].read_text("utf-8"))["log_history"]
        return {row["step"]: row["loss"] for row in rows if "loss" in row}


def view(page: Page) -> None:
    state, say = st.session_state, page.say
    st.html(f'<p class="lead">{html.escape(say("teach_lead"))}</p>')
    pictures.show_notices()
    pictures.gallery("teach", state.lessons, say)
    pictures.adder("teach", state.lessons, say, page.asked.allow_urls)
    names = name_pictures(state.lessons, say)
    with st.container(border=True):
        question = st.text_input(say("question"), say("suggest_1"), key="taught_question")
        method = st.segmented_control(
            say("method"), list(METHODS), default="lora", required=True, key="method", help=say("method_help")
        )
        num_steps = st.slider(say("steps"), STEPS[0], STEPS[-1], STEPS[1], key="num_steps", help=say("steps_help"))
        asked = st.button(say("teach_run"), type="primary", icon=":material/school:", key="teach")
    if asked and (len(names) < FEWEST or not all(names) or not question.strip()):
        st.info(say("teach_need", num=FEWEST), icon=":material/label:")
    elif asked:
        teach(page, list(zip(state.lessons, names, strict=True)), question.strip(), method, num_steps)
    if state.taught_last is not None:
        show_result(say)


def name_pictures(shown: list[Image.Image], say: Callable[..., str]) -> list[str]:
    """A row per picture: what it is to be called. Gives the names, "" where there is none yet."""
    names = []
    for index, picture in enumerate(shown):
        with st.container(horizontal=True, vertical_alignment="center", key=f"lesson_{index}"):
            st.image(picture, width=64)
            names.append(
                st.text_input(
                    say("answer_for", number=index + 1), placeholder=say("answer_hint"), key=f"name_{id(picture)}",
                    label_visibility="collapsed",
                ).strip()
            )  # fmt: skip
            if st.button("", icon=":material/close:", key=f"unteach_{index}", type="tertiary", help=say("remove")):
                del shown[index]
                st.rerun()
    return names


def teach(page: Page, rows: list[tuple[Image.Image, str]], question: str, method: str, num_steps: int) -> None:
    """Train a model of its own, the shared one stays as it is; then ask both about every picture."""
    state, say = st.session_state, page.say
    state.school = state.school or tempfile.TemporaryDirectory(prefix="visglm-school-")  # gone with the visitor
    number = len(state.taught) + 1
    folder = Path(state.school.name) / f"lesson-{number}"
    data = write_rows(rows, question, Path(state.school.name) / f"pictures-{number}")
    requests = [(picture, question) for picture, _ in rows]
    settings: dict[str, Any] = {"progress": False, "max_new_tokens": 48}
    before = [reply.text for reply in page.vlm.batch(requests, **settings)]
    with st.status(say("teach_loading"), expanded=True) as status:
        lesson = Lesson(load_fresh(Choice(page.choice.model)), data, folder, method, num_steps)
        status.update(label=say("teaching", num=num_steps))
        lesson.start()
        place = st.empty()
        while lesson.is_alive():
            lesson.join(POLL_SECONDS)
            draw_curve(place, lesson.curve, say)
        draw_curve(place, lesson.curve, say)
        if lesson.error is not None:
            status.update(label=say("teach_failed"), state="error")
            st.code(str(lesson.error), language=None, wrap_lines=True)
            return
        status.update(label=say("taught"), state="complete")
    after = [reply.text for reply in lesson.vlm.batch(requests, **settings)]
    state.taught_last = {"rows": rows, "before": before, "after": after, "folder": folder, "curve": lesson.curve}
    state.taught.append(str(folder))
    st.rerun()


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


def show_result(say: Callable[..., str]) -> None:
    """The curve, the answers before and after, and the adapter to take home."""
    last = st.session_state.taught_last
    draw_curve(st, last["curve"], say)
    for (picture, wanted), before, after in zip(last["rows"], last["before"], last["after"], strict=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.image(picture, width=64)
            st.html(
                f'<div class="said"><s>{html.escape(before)}</s><br><b>{html.escape(after)}</b></div>', width="stretch"
            )
            st.html("✓" if after.strip() == wanted else "…", width="content")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            say("adapter"), lambda: zipped(last["folder"]), "visglm-adapter.zip", "application/zip",
            icon=":material/download:", on_click="ignore", type="primary",
        )  # fmt: skip
        st.caption(say("adapter_help"))


def zipped(folder: Path) -> bytes:
    """What `VisGLM.from_pretrained` needs of a run: its files, without the checkpoints."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            archive.write(path, f"visglm-adapter/{path.name}")
    return buffer.getvalue()
