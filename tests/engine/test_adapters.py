"""Answers of different adapters at a time: each is what its adapter alone gives, and none stays in use."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.adapters.taught import golden, teach
from visglm import VisGLM
from visglm.errors import ConfigError, PromptError
from visglm.sampling import Sampling

METHODS = ("lora", "ptuning", "qformer")
NAMES = ("", *METHODS)
QUESTION = "What is this?"
SAMPLING = Sampling(max_new_tokens=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {method: tmp_path_factory.mktemp(method) / "run" for method in METHODS}
    for method, folder in found.items():
        teach(golden(), folder, method, learning_rate=1e-1, max_steps=3)
    return found


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.new("RGB", (40, 30), "red")


@pytest.fixture
def vlm(folders) -> VisGLM:
    vlm = golden()
    for method, folder in folders.items():
        vlm.load_adapter(folder, method)
    vlm.use_adapter(None)
    return vlm


def ask(vlm: VisGLM, picture: Image.Image, **settings):
    return vlm.chat(picture, QUESTION, max_new_tokens=12, min_new_tokens=12, **settings)


@pytest.fixture
def wanted(vlm, picture) -> dict[str, tuple[int, ...]]:
    """What each answers while it is in use."""
    found = {}
    for name in NAMES:
        vlm.use_adapter(name or None)
        found[name] = ask(vlm, picture).ids
    vlm.use_adapter(None)
    assert len(set(found.values())) == len(NAMES)
    return found


@pytest.mark.parametrize("in_use", [None, "lora", "qformer"])
def test_all_at_once_each_by_its_own(vlm, wanted, picture, in_use):
    vlm.use_adapter(in_use)
    found: dict[int, tuple[str | None, tuple[int, ...]]] = {}

    def run(number: int, name: str | None) -> None:
        found[number] = name, ask(vlm, picture, adapter=name).ids

    everybody = [*NAMES, None] * 3
    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(everybody)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(everybody)
    for name, ids in found.values():
        assert ids == wanted[(in_use or "") if name is None else name], name
    assert vlm.adapters.active == in_use
    assert ask(vlm, picture).ids == wanted[in_use or ""]


def test_they_take_steps_in_turns(vlm, picture):
    """Neither waits for the other's end."""
    order = []
    vlm.model.lm_head.register_forward_pre_hook(lambda module, arguments: order.append(vlm.adapters.active))
    streams = [
        vlm.stream_chat(picture, QUESTION, adapter=name, max_new_tokens=40, min_new_tokens=40)
        for name in ("lora", "ptuning")
    ]
    threads = [threading.Thread(target=lambda stream=stream: list(stream)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(order) == {"lora", "ptuning"}
    assert sum(one != other for one, other in zip(order, order[1:], strict=False)) > 20


def test_a_stream_and_a_batch_by_name(vlm, wanted, picture):
    stream = vlm.stream_chat(picture, QUESTION, adapter="lora", max_new_tokens=12, min_new_tokens=12)
    assert "".join(stream) == stream.reply.text and stream.reply.ids == wanted["lora"]
    replies = vlm.batch(
        [(picture, QUESTION)] * 3, adapter="ptuning", progress=False, max_new_tokens=12, min_new_tokens=12
    )
    assert {reply.ids for reply in replies} == {wanted["ptuning"]}


def test_a_conversation_goes_on_with_whoever_looked(vlm, picture):
    seen = ask(vlm, picture, adapter="qformer")
    vlm.chat(None, "And now?", seen.history, adapter="qformer", max_new_tokens=2)
    for other in ("", "lora", None):
        with pytest.raises(PromptError, match="another network's"):
            vlm.chat(None, "And now?", seen.history, adapter=other, max_new_tokens=2)
    vlm.use_adapter("qformer")
    vlm.chat(None, "And now?", seen.history, max_new_tokens=2)


@pytest.mark.parametrize(("name", "said"), [("nobody", "lora, ptuning, qformer"), (3, "adapter")])
def test_an_adapter_that_is_not_there(vlm, picture, name, said):
    with pytest.raises(ConfigError, match=said):
        ask(vlm, picture, adapter=name)


def test_an_adapter_that_goes_before_its_turn(vlm, wanted, picture):
    """Asked for while there was one, and taken out before the engine came to it: that answer alone fails."""
    asker, ended = vlm._asker, []
    prompt = vlm._compose(picture, QUESTION, None, "auto", SAMPLING, None)
    with vlm._turns.take(changes=True):

        def wait() -> None:
            [answer] = asker.submit([prompt], SAMPLING, adapter="ptuning")
            try:
                answer.reply()
            except ConfigError as error:
                ended.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        while not vlm._turns.num_waiting:
            pass
        vlm.adapters.remove("ptuning")
    thread.join()
    assert len(ended) == 1 and vlm._turns.is_free
    assert ask(vlm, picture, adapter="lora").ids == wanted["lora"]


def test_changes_wait_until_the_network_is_as_it_was(vlm, picture):
    """Whoever is told that an answer by name has ended finds the network without that adapter, and may change it."""
    for _ in range(10):
        ask(vlm, picture, adapter="qformer")
        assert vlm._turns.is_free and vlm.adapters.active is None
        vlm.use_adapter("lora")
        vlm.use_adapter(None)


def test_training_is_possible_afterwards(folders, picture, tmp_path):
    """What the engine switches leaves no tensor of inference mode behind."""
    vlm = golden()
    vlm.load_adapter(folders["qformer"], "eyes")
    vlm.use_adapter(None)
    ask(vlm, picture, adapter="eyes")
    vlm.adapters.remove("eyes")
    teach(vlm, tmp_path / "run", "full")
    assert all(not parameter.is_inference() for parameter in vlm.model.parameters())
    assert torch.isfinite(torch.tensor(ask(vlm, picture).logprobs)).all()
