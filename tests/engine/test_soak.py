"""Eight threads that ask one model for everything at once, some of it wrong: every answer is checked."""

from __future__ import annotations

import io
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from visglm import Reply, VisGLM
from visglm.errors import ConfigError, ContextLengthError, ImageError, PromptError, VisGLMError

NUM_THREADS = 8
QUESTIONS = ("What is this?", "这是什么？", "Describe it.", "How many are there?")
COLOURS = ("red", "blue", "green")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["猫", "dog"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "count"],
    "additionalProperties": False,
}
EXPRESSION = r"(red|blue), [0-9]{1,2} of them"
NOISE = 2e-4  # of logits: what is closer may change places with the number of rows


def disc(colour: str) -> Image.Image:
    picture = Image.new("RGB", (80, 60), "white")
    ImageDraw.Draw(picture).ellipse((15, 10, 65, 50), colour)
    return picture


class Soak:
    """What there is to ask, with the answers each gets alone."""

    def __init__(self, vlm: VisGLM):
        self.vlm = vlm
        self.pictures = [disc(colour) for colour in COLOURS]
        buffer = io.BytesIO()
        self.pictures[0].save(buffer, "PNG")
        self.broken = buffer.getvalue()
        self.counts: Counter[str] = Counter()
        self.problems: list[BaseException] = []
        self.wanted: dict[tuple, Reply] = {}
        for index, picture in enumerate([*self.pictures, None]):
            for question in QUESTIONS:
                for seed in (None, 1, 2):
                    self.wanted[index, question, seed] = vlm.chat(picture, question, **self.settings(seed))
        self.history = self.wanted[0, QUESTIONS[0], None].history
        self.wanted_next = vlm.chat(None, "And now?", self.history, max_new_tokens=6)
        self.embeds = [vlm.encode(picture) for picture in self.pictures]
        self.choices = ["A cat.", "A red disc."]
        self.scores = vlm.chat(self.pictures[0], QUESTIONS[0], choices=self.choices).scores

    @staticmethod
    def settings(seed: int | None) -> dict[str, Any]:
        return {"max_new_tokens": 10} | ({} if seed is None else {"seed": seed, "temperature": 1.5, "top_k": 50})

    def pick(self, dice: random.Random) -> tuple[Any, str, dict[str, Any], Reply]:
        index, question, seed = dice.randrange(len(COLOURS) + 1), dice.choice(QUESTIONS), dice.choice((None, 1, 2))
        picture = None if index == len(COLOURS) else self.pictures[index].copy()
        return picture, question, self.settings(seed), self.wanted[index, question, seed]

    def same(self, reply: Reply, wanted: Reply) -> None:
        """The same tokens; where one differs, the two were as likely as each other but for noise."""
        assert reply.usage.prompt_tokens == wanted.usage.prompt_tokens
        for place, (one, other) in enumerate(zip(reply.ids, wanted.ids, strict=False)):
            if one != other:
                gap = abs(reply.logprobs[place] - wanted.logprobs[place])
                assert gap < NOISE, f"token {place}: {one} for {other}, {gap:.1e} apart"
                self.counts["close calls"] += 1
                return
        assert (reply.text, reply.usage, reply.finish_reason) == (wanted.text, wanted.usage, wanted.finish_reason)
        assert (reply.history.turns, reply.history.source) == (wanted.history.turns, wanted.history.source)
        torch.testing.assert_close(reply.history.image_embeds, wanted.history.image_embeds, atol=1e-4, rtol=1e-4)

    # --- what a thread may do ---

    def chat(self, dice: random.Random) -> None:
        picture, question, settings, wanted = self.pick(dice)
        self.same(self.vlm.chat(picture, question, **settings), wanted)

    def stream(self, dice: random.Random) -> None:
        picture, question, settings, wanted = self.pick(dice)
        stream = self.vlm.stream_chat(picture, question, **settings)
        assert "".join(stream) == stream.reply.text
        self.same(stream.reply, wanted)

    def leave(self, dice: random.Random) -> None:
        picture, question, settings, wanted = self.pick(dice)
        stream = self.vlm.stream_chat(picture, question, **settings)
        begun = [piece for piece, _ in zip(stream, range(dice.randrange(3)), strict=False)]
        if dice.random() < 0.5:
            stream.close()
            assert "".join(begun) == wanted.text[: len("".join(begun))]

    def batch(self, dice: random.Random) -> None:
        picks = [self.pick(dice) for _ in range(dice.randrange(1, 6))]
        requests: list[Any] = [(picture, question) for picture, question, _, _ in picks]
        requests.insert(1, (b"no picture", "What?"))
        found = self.vlm.batch(requests, on_error="return", progress=False, batch_size=4, max_new_tokens=10)
        assert isinstance(found.pop(1), ImageError)
        for (picture, question, _, _), reply in zip(picks, found, strict=True):
            index = len(COLOURS) if picture is None else COLOURS.index(self.colour(picture))
            self.same(reply, self.wanted[index, question, None])

    @staticmethod
    def colour(picture: Image.Image) -> str:
        red, green, blue = picture.getpixel((40, 30))
        return "red" if red > 100 else "blue" if blue > 100 else "green"

    def several(self, dice: random.Random) -> None:
        picture, question, _, _ = self.pick(dice)
        reply = self.vlm.chat(picture, question, n=2, **self.settings(1))
        index = len(COLOURS) if picture is None else COLOURS.index(self.colour(picture))
        self.same(reply.others[0], self.wanted[index, question, 2])

    def go_on(self, dice: random.Random) -> None:
        self.same(self.vlm.chat(None, "And now?", self.history, max_new_tokens=6), self.wanted_next)

    def look(self, dice: random.Random) -> None:
        index = dice.randrange(len(COLOURS))
        torch.testing.assert_close(self.vlm.encode(self.pictures[index]), self.embeds[index], atol=1e-4, rtol=1e-4)

    def score(self, dice: random.Random) -> None:
        found = self.vlm.chat(self.pictures[0], QUESTIONS[0], choices=self.choices).scores
        assert list(found.values()) == pytest.approx(list(self.scores.values()), abs=1e-4)

    def shape(self, dice: random.Random) -> None:
        """JSON and expressions, of any chance, valid or cut short."""
        settings = dice.choice(({}, {"temperature": 3.0, "seed": dice.randrange(99)}))
        room = dice.choice((4, 60))
        if dice.random() < 0.5:
            found = self.vlm.chat(None, QUESTIONS[0], json_schema=SCHEMA, max_new_tokens=room, **settings)
            if found.finish_reason == "stop":
                assert found.parsed["name"] in ("猫", "dog") and found.parsed["count"] in range(10)
            else:
                assert found.parsed is None
        else:
            found = self.vlm.chat(None, QUESTIONS[0], regex=EXPRESSION, max_new_tokens=room, **settings)
            assert re.fullmatch(EXPRESSION, found.text) or found.finish_reason == "length"

    def tell(self, dice: random.Random) -> None:
        """Log-probabilities and alternatives, a stop and a bias, which change no other's."""
        picture, question, _, wanted = self.pick(dice)
        index = len(COLOURS) if picture is None else COLOURS.index(self.colour(picture))
        wanted = self.wanted[index, question, None]
        found = self.vlm.chat(picture, question, logprobs=3, max_new_tokens=10)
        self.same(found, wanted)
        assert all(len(three) == 3 and three[0][1] >= three[2][1] for three in found.alternatives)
        assert list(found.logprobs) == pytest.approx(list(wanted.logprobs), abs=1e-3) or found.ids != wanted.ids
        without = self.vlm.chat(picture, question, logit_bias={wanted.ids[0]: -100}, max_new_tokens=3)
        assert wanted.ids[0] not in without.ids
        if wanted.text:
            stopped = self.vlm.chat(picture, question, stop=wanted.text[-1], max_new_tokens=10)
            assert wanted.text[-1] not in stopped.text and wanted.text.startswith(stopped.text)

    def be_wrong(self, dice: random.Random) -> None:
        error, arguments, settings = dice.choice(
            [
                (ImageError, (b"\x89PNG broken", "What?"), {}),
                (ImageError, ("no/such/file.png", "What?"), {}),
                (PromptError, (None, ""), {}),
                (ConfigError, (None, "What?"), {"temperature": -1.0}),
                (ConfigError, (None, "What?"), {"logit_bias": {10**6: 1.0}}),
                (ConfigError, (None, "What?"), {"n": 0}),
                (ConfigError, (None, "What?"), {"logprobs": 65}),
                (ConfigError, (None, "What?"), {"choices": ["one"]}),
                (ConfigError, (None, "What?"), {"regex": "(", "max_new_tokens": 3}),
                (ConfigError, (None, "What?"), {"json_schema": "[]"}),
                (ConfigError, (None, "What?"), {"adapter": "nobody"}),
                (ImageError, (b"GIF89a", "What?"), {}),
                (ImageError, (self.broken[: dice.randrange(40, len(self.broken) - 40)], "What?"), {}),
                (ContextLengthError, (None, "long " * 600), {}),
                (ContextLengthError, (None, "What?"), {"max_new_tokens": 10**5}),
            ]
        )
        with pytest.raises(error):
            self.vlm.chat(*arguments, **settings)

    def forget(self, dice: random.Random) -> None:
        looker = self.vlm.engine.looker
        looker.num_bytes = 0
        looker.num_bytes = dice.choice((2**12, 2**20))

    KINDS = (
        "chat", "stream", "leave", "batch", "several", "go_on", "look", "score", "shape", "tell", "be_wrong", "forget",
    )  # fmt: skip

    def run(self, seed: int, go_on: Callable[[int], bool]) -> None:
        dice = random.Random(seed)
        try:
            for number in range(10**9):
                if self.problems or not go_on(number):
                    return
                kind = dice.choice(self.KINDS)
                getattr(self, kind)(dice)
                self.counts[kind] += 1
        except BaseException as error:
            self.problems.append(error)


def soak(go_on: Callable[[int], bool], slots: int) -> Soak:
    vlm = VisGLM.from_pretrained(device="cpu")
    soaked = Soak(vlm)
    vlm.engine.slots = slots
    threads = [threading.Thread(target=soaked.run, args=(seed, go_on)) for seed in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(dict(soaked.counts))
    for problem in soaked.problems:
        raise problem
    assert vlm._turns.is_free and not vlm._turns.num_waiting
    assert not issubclass(type(vlm.chat(None, "Hello", max_new_tokens=1)), VisGLMError)
    return soaked


def test_a_short_soak():
    soaked = soak(lambda number: number < 12, slots=6)
    assert sum(soaked.counts[kind] for kind in Soak.KINDS) == 12 * NUM_THREADS


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("slots", [16])
def test_five_minutes(slots):
    end = time.monotonic() + 300
    soaked = soak(lambda number: time.monotonic() < end, slots)
    assert min(soaked.counts[kind] for kind in Soak.KINDS) > 0
