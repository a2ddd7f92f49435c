"""Threads and processes that share a model: who waits, who is told, and what a copy or a fork is good for."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from visglm import VisGLM
from visglm.engine import Turns
from visglm.errors import BusyError

QUESTION = "What is this?"
FAST = {"max_steps": 2, "batch_size": 2, "num_workers": 0, "held_out": 0.0, "num_samples": 0, "report_to": "none"}


@pytest.fixture
def vlm() -> VisGLM:
    return VisGLM.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.new("RGB", (60, 40), "red")


@pytest.fixture(scope="module")
def rows(picture) -> list[dict]:
    turns = [{"role": "user", "content": "<image>Was ist das?"}, {"role": "assistant", "content": "Ein Viereck."}]
    return [{"images": [picture], "messages": turns}] * 4


class Halted:
    """Lets one pass of a model's head begin, says so, and holds it until it is told to go on."""

    def __init__(self, vlm: VisGLM):
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()
        self.hook = vlm.model.lm_head.register_forward_pre_hook(self.halt)

    def halt(self, module, arguments) -> None:
        self.has_begun.set()
        assert self.may_go_on.wait(60)

    def go_on(self) -> None:
        self.hook.remove()
        self.may_go_on.set()


class Thread(threading.Thread):
    """Runs something and keeps what came of it."""

    def __init__(self, act):
        super().__init__(daemon=True)
        self.act, self.result = act, None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.act()
        except Exception as error:
            self.result = error

    def end(self):
        self.join(60)
        assert not self.is_alive()
        return self.result


def num_waiting(vlm: VisGLM) -> int:
    return len(vlm._turns._waiting)


def wait_for_waiting(vlm: VisGLM, count: int) -> None:
    waiter = threading.Event()
    for _ in range(1000):
        if num_waiting(vlm) >= count:
            return
        waiter.wait(0.01)
    pytest.fail(f"{num_waiting(vlm)} wait, {count} should")


def make_adapter(rows, folder: Path) -> Path:
    VisGLM.from_pretrained(device="cpu").finetune(rows, output_dir=folder, learning_rate=0.05, **FAST)
    return folder


@pytest.fixture(scope="module")
def adapter(rows, tmp_path_factory) -> Path:
    return make_adapter(rows, tmp_path_factory.mktemp("adapter") / "out")


CHANGES = {
    "load_adapter": lambda vlm, adapter, folder: vlm.load_adapter(adapter, "other"),
    "use_adapter": lambda vlm, adapter, folder: vlm.use_adapter(None),
    "merge": lambda vlm, adapter, folder: vlm.merge(),
    "save_pretrained": lambda vlm, adapter, folder: vlm.save_pretrained(folder),
    "deepcopy": lambda vlm, adapter, folder: copy.deepcopy(vlm),
    "encode": lambda vlm, adapter, folder: vlm.encode(Image.new("RGB", (9, 9))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_waits_for_the_answer_in_flight(picture, adapter, change, tmp_path):
    vlm = VisGLM.from_pretrained(adapter, device="cpu")
    wanted = vlm.chat(picture, QUESTION, max_new_tokens=8).text
    halted = Halted(vlm)
    answer = Thread(lambda: vlm.chat(picture, QUESTION, max_new_tokens=8).text)
    assert halted.has_begun.wait(60)
    changing = Thread(lambda: CHANGES[change](vlm, adapter, tmp_path))
    wait_for_waiting(vlm, 1)
    assert changing.is_alive()
    halted.go_on()
    assert answer.end() == wanted
    assert not isinstance(changing.end(), Exception)
    assert vlm._turns.is_free


def test_an_answer_waits_until_the_adapter_is_back(picture, adapter):
    vlm = VisGLM.from_pretrained(adapter, device="cpu")
    learnt = vlm.chat(picture, QUESTION, max_new_tokens=8).text
    with vlm.adapter_disabled():
        base = vlm.chat(picture, QUESTION, max_new_tokens=8).text
        stream = vlm.stream_chat(picture, QUESTION, max_new_tokens=8)
        assert "".join(stream) == base != learnt
        other = Thread(lambda: vlm.chat(picture, QUESTION, max_new_tokens=8).text)
        wait_for_waiting(vlm, 1)
    assert other.end() == learnt


def test_a_picture_and_its_answer_are_by_one_state_of_the_model(picture, adapter, monkeypatch):
    """A switch that comes while a picture is looked at waits for the answer about it."""
    vlm = VisGLM.from_pretrained(adapter, device="cpu")
    vlm.engine.looker.num_bytes = 0
    wanted = vlm.chat(picture, QUESTION, max_new_tokens=8).text
    look, threads = vlm.model.get_image_features, []

    def look_and_be_interrupted(pixels):
        threads.append(Thread(lambda: vlm.use_adapter(None)))
        wait_for_waiting(vlm, 1)
        return look(pixels)

    monkeypatch.setattr(vlm.model, "get_image_features", look_and_be_interrupted)
    assert vlm.chat(picture, QUESTION, max_new_tokens=8).text == wanted
    assert threads[0].end() is None


def test_who_asks_while_it_learns_is_told_at_once(vlm, rows, picture, tmp_path):
    told, answered = {}, []
    history = vlm.chat(picture, QUESTION, max_new_tokens=1).history
    asks = {
        "chat": lambda: vlm.chat(picture, QUESTION),
        "history": lambda: vlm.chat(None, QUESTION, history),
        "stream_chat": lambda: vlm.stream_chat(picture, QUESTION),
        "batch": lambda: vlm.batch([(picture, QUESTION)], progress=False),
        "encode": lambda: vlm.encode(picture),
        "explain": lambda: vlm.explain(picture, QUESTION, "A square."),
        "save_pretrained": lambda: vlm.save_pretrained(tmp_path / "half"),
        "use_adapter": lambda: vlm.use_adapter(None),
        "merge": vlm.merge,
        "finetune": lambda: vlm.finetune(rows, output_dir=tmp_path / "second", **FAST),
    }

    def stop() -> bool:
        if not told:
            told.update({name: Thread(ask).end() for name, ask in asks.items()})
            answered.append(vlm.chat(picture, QUESTION, max_new_tokens=2).usage.completion_tokens)
            answered.append(len("".join(vlm.stream_chat(picture, QUESTION, max_new_tokens=2))) > 0)
        return False

    vlm.finetune(rows, output_dir=tmp_path / "out", stop=stop, **FAST)
    assert {name: type(error) for name, error in told.items()} == dict.fromkeys(asks, BusyError)
    assert "being fine-tuned in another thread" in str(told["chat"])
    assert not (tmp_path / "half").exists()
    assert answered == [2, True]  # what it asks itself is answered
    assert vlm._turns.is_free and vlm.chat(picture, QUESTION, max_new_tokens=1).text


def test_fine_tuning_waits_for_the_answer_in_flight_and_tells_those_behind_it(vlm, rows, picture, tmp_path):
    wanted = vlm.chat(picture, QUESTION, max_new_tokens=4).text
    halted = Halted(vlm)
    answer = Thread(lambda: vlm.chat(picture, QUESTION, max_new_tokens=4).text)
    assert halted.has_begun.wait(60)
    learning, release = threading.Event(), threading.Event()

    def stop() -> bool:
        learning.set()
        return release.wait(60)

    training = Thread(lambda: vlm.finetune(rows, output_dir=tmp_path / "out", stop=stop, **FAST))
    wait_for_waiting(vlm, 1)
    behind = Thread(lambda: vlm.chat(picture, QUESTION, max_new_tokens=4))
    wait_for_waiting(vlm, 2)
    halted.go_on()
    assert answer.end() == wanted
    assert isinstance(behind.end(), BusyError)
    assert learning.wait(60)
    release.set()
    assert not isinstance(training.end(), Exception)


def test_turns_are_free_after_an_error(vlm, tmp_path):
    with pytest.raises(Exception, match="no adapter"):
        vlm.merge()
    with pytest.raises(Exception, match="output_dir|rows|usable|used"):
        vlm.finetune([{"messages": []}], output_dir=tmp_path / "out", **FAST)
    assert vlm._turns.is_free and vlm.chat(None, "Hello", max_new_tokens=1)


def test_turns_are_taken_in_order():
    turns, order = Turns(), []

    def act(number: int) -> None:
        with turns.take():
            order.append(number)

    with turns.take():
        threads = []
        for number in range(5):
            threads.append(Thread(lambda number=number: act(number)))
            while len(turns._waiting) <= number:
                pass
    for thread in threads:
        thread.end()
    assert order == list(range(5))


def test_two_faces_of_one_network_share_its_turns(vlm, rows, tmp_path):
    other, told = VisGLM(vlm.model, vlm.processor, allow_urls=True), []

    def stop() -> bool:
        told.append(Thread(lambda: other.chat(None, "Hello")).end())
        return True

    vlm.finetune(rows, output_dir=tmp_path / "out", stop=stop, **FAST)
    assert isinstance(told[0], BusyError)


def test_many_threads_get_their_own_answers(vlm):
    questions = ["What is this?", "你好", "Describe it.", "它是什么？"]
    wanted = [vlm.chat(None, question, max_new_tokens=6).text for question in questions]
    threads = [
        Thread(lambda question=question: vlm.chat(None, question, max_new_tokens=6).text) for question in questions
    ]
    assert [thread.end() for thread in threads] == wanted


# ---- copies and processes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda vlm: pickle.loads(pickle.dumps(vlm))])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_copy_answers_the_same_and_is_its_own(picture, twin_of, quantize):
    vlm = VisGLM.from_pretrained(device="cpu", quantize=quantize)
    reply = vlm.chat(picture, QUESTION, max_new_tokens=6)
    twin = twin_of(vlm)
    assert twin.chat(picture, QUESTION, max_new_tokens=6) == reply
    with vlm._turns.take():
        assert Thread(lambda: twin.chat(picture, QUESTION, max_new_tokens=6)).end() == reply
    assert twin.allow_urls is vlm.allow_urls and twin.model is not vlm.model


def test_replies_are_compared_by_what_they_say(vlm, picture):
    reply = vlm.chat(picture, QUESTION, max_new_tokens=6)
    again = vlm.chat(picture, QUESTION, max_new_tokens=6)
    other = vlm.chat(Image.new("RGB", (60, 40), "blue"), QUESTION, max_new_tokens=6)
    sent = pickle.loads(pickle.dumps(reply))
    assert reply == reply == again == sent == copy.deepcopy(reply)
    assert reply != other and reply.history != other.history and reply != "text"
    assert again in [other, reply] and len({reply, again, sent, other}) == 2
    assert len({reply.history, again.history}) == 1
    assert vlm.chat(None, "And?", sent.history, max_new_tokens=2) == vlm.chat(
        None, "And?", reply.history, max_new_tokens=2
    )


def test_things_show_what_they_are(vlm, picture, adapter):
    assert repr(vlm) == f"VisGLM(visglm-tiny: {vlm.model.num_parameters() / 1e6:.1f} M parameters, float32 on cpu)"
    assert repr(VisGLM.from_pretrained(adapter, device="cpu")).endswith("float32 on cpu, adapter 'default')")
    assert "int8 and float32 on cpu" in repr(VisGLM.from_pretrained(device="cpu", quantize="int8"))
    stream = vlm.stream_chat(picture, QUESTION, max_new_tokens=3)
    assert repr(stream) == "<ReplyStream: open, 0 characters read>"
    text = "".join(stream)
    assert repr(stream) == f"<ReplyStream: ended, {len(text)} characters read>"
    assert repr(stream.reply.history).startswith("History(1 turn, 1 picture, language='auto', last: ")
    assert len(repr(stream.reply)) < 400


SCRIPT = """
import json, multiprocessing, sys, threading
from PIL import Image
import visglm.chat.composer
from visglm import VisGLM


def ask(vlm, pipe):
    try:
        pipe.send(str(vlm.chat(Image.new("RGB", (60, 40), "red"), "What is this?", max_new_tokens=4)))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def answer_of_a_worker(vlm, method):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=ask, args=(vlm, theirs), daemon=True)
    process.start()
    found = ours.recv() if ours.poll(60) else "nothing came"
    process.kill()
    return found


class Busy:
    def __init__(self, vlm, act):
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=act, args=(vlm, self.halt))

    def halt(self, *arguments):
        self.begun.set()
        self.go_on.wait(100)

    def __enter__(self):
        self.thread.start()
        self.begun.wait(100)

    def __exit__(self, *error):
        self.go_on.set()
        self.thread.join()


def answer(vlm, halt):
    hook = vlm.model.lm_head.register_forward_pre_hook(lambda *arguments: (hook.remove(), halt())[:0] or None)
    vlm.chat(None, "Hello", max_new_tokens=2)


def change(vlm, halt):
    with vlm._turns.take(changes=True):
        halt()


def main(methods):
    vlm = VisGLM.from_pretrained(device="cpu")
    found = {"wanted": str(vlm.chat(Image.new("RGB", (60, 40), "red"), "What is this?", max_new_tokens=4))}
    if "spawn" in methods:
        found["spawned"] = answer_of_a_worker(vlm, "spawn")
    if "fork" in methods:
        found["forked"] = answer_of_a_worker(vlm, "fork")
        with Busy(vlm, answer):
            found["forked while it answers"] = answer_of_a_worker(vlm, "fork")
        with Busy(vlm, change):
            found["forked while it changes"] = answer_of_a_worker(vlm, "fork")
        visglm.chat.composer.uses_onnx = lambda model: True
        found["forked, with ONNX Runtime"] = answer_of_a_worker(vlm, "fork")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
"""


def answers_of_workers(folder: Path, method: str) -> dict[str, str]:
    """What processes answer that were started by `method`, beside `wanted`. torch has threads to lose there."""
    script = folder / "worker.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    result = subprocess.run([sys.executable, script, method], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.timeout(300)
def test_a_forked_process_answers_or_says_what_to_do(tmp_path):
    found = answers_of_workers(tmp_path, "fork")
    assert found["forked"] == found["forked while it answers"] == found["wanted"]
    assert found["forked while it changes"].startswith("BusyError: this process was forked while its parent changed")
    assert "spawn" in found["forked, with ONNX Runtime"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_spawned_process_answers(tmp_path):
    found = answers_of_workers(tmp_path, "spawn")
    assert found["spawned"] == found["wanted"]
