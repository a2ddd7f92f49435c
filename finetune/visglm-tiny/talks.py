"""What is taught beside single questions about a scene: photographs, two pictures, two languages, names nobody has.

Every talk is a list of turns, a question with its answer and the number of pictures that come with it, of which the
last answer is learnt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from questions import MAX_TOLD, Asker, Question, Thing, with_article

Turns = list[tuple[str, str, int]]
SURE = 0.5  # probability from which on a name is said as one
ALSO = 0.25  # from which on a second guess counts as there
PERHAPS = {"en": "Perhaps it is {} or {}.", "zh": "可能是{}或{}。"}
SECOND = {
    "en": ("What is in the second picture?", "What does the second picture show?", "And the second picture?"),
    "zh": ("第二张图里是什么？", "第二张图片是什么？", "第二张呢？"),
}
FIRST = {
    "en": ("What is in the first picture?", "What does the first picture show?"),
    "zh": ("第一张图里是什么？", "第一张图片是什么？"),
}
THIS_ONE = {
    "en": ("And this one?", "What about this one?", "And this?", "What is this one?"),
    "zh": ("这个呢？", "那这张呢？", "这张呢？", "这个是什么？"),
}
WHICH = {
    "en": ("Which one has {a}?", "Which picture shows {a}?", "In which picture is there {a}?"),
    "zh": ("哪一张图里有{name}？", "哪张有{name}？", "{name}在哪张图里？"),
}
ORDINAL = {"en": ("The first one.", "The second one."), "zh": ("第一张。", "第二张。")}
CALLED = {
    "en": (("This is called {}.", "I see, this is called {}."), ("What is it called?", "It is called {}.")),
    "zh": (("这个叫{}。", "好的，这个叫{}。"), ("它叫什么？", "它叫{}。")),
}
LETTERS = ("ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "qui", "ro", "su", "ta", "ve", "wi",
           "xo", "yu", "za", "bri", "cla", "dro", "fle", "gran", "max", "nor", "plex", "tron")  # fmt: skip


@dataclass(frozen=True)
class Guess:
    """What a photograph of one thing is taken for.

    Args:
        first, second: indices of concepts. sure, also: their probabilities. colour: by name, "" if unclear.
    """

    first: int
    second: int
    sure: float
    also: float
    colour: str


class Talker:
    """Makes up conversations.

    Args:
        asker: of single questions. pieces: of the vocabulary that may be in a name, so that all of them are used.
    """

    def __init__(self, asker: Asker, pieces: Sequence[str]):
        self.asker, self.pieces = asker, pieces
        self.random: random.Random = asker.random

    def language(self) -> str:
        return self.random.choice(("en", "zh"))

    def made_up(self, language: str) -> str:
        """A name that means nothing: of pieces of the vocabulary, of syllables, or of any Chinese characters."""
        draw = self.random
        how = draw.random()
        if how < 0.5:
            name = "".join(draw.choices(self.pieces, k=draw.randint(1, 3))).replace("▁", " ").strip()
            return name or self.made_up(language)
        if language == "en":
            name = "".join(draw.choices(LETTERS, k=draw.randint(2, 3))).capitalize()
        else:
            name = "".join(common_character(draw) for _ in range(draw.randint(2, 4)))
        return name + (str(draw.randint(2, 99)) if how > 0.85 else "")

    def about_nothing(self, things: Sequence[Thing]) -> tuple[Turns, str]:
        """A question for something that does not exist, or a name that is given and asked for again."""
        language = self.language()
        name = self.made_up(language)
        if self.random.random() < 0.5 and len(things) <= MAX_TOLD:
            question = self.asker.phrase("presence", language, a=f"a {name}", name=name)
            answer = f"No, there is no {name}." if language == "en" else f"没有，图中没有{name}。"
            return [(question, answer, 1)], language
        return self.called(name, language), language

    def called(self, name: str, language: str) -> Turns:
        """A name that is given, and asked for again."""
        (told, taken), (asked, said) = CALLED[language]
        return [(told.format(name), taken.format(name), 1), (asked, said.format(name), 0)]

    def switched(self, things: Sequence[Thing]) -> tuple[Turns, str]:
        """A second question in the other language."""
        language = self.language()
        other = "zh" if language == "en" else "en"
        first, then = self.asker.ask(list(things), language=language), self.asker.ask(list(things), language=other)
        return [(first.text, first.answer, 1), (then.text, then.answer, 0)], language

    def two_pictures(self, first: Sequence[Thing], second: Sequence[Thing]) -> tuple[Turns, str]:
        """Both pictures at once, or the second with a question of its own."""
        language = self.language()
        told = {True: list(first), False: list(second)}
        draw = self.random.random()
        if draw < 0.3:
            kind = "name" if len(first) == len(second) == 1 else "describe"
            opening = self.asker.ask(list(first), kind, language)
            answer = self.asker.ask(list(second), kind, language).answer
            return [(opening.text, opening.answer, 1), (self.pick(THIS_ONE, language), answer, 1)], language
        if draw < 0.6:
            is_first = self.random.random() < 0.35
            things = told[is_first]
            kind = "name" if len(things) == 1 else "describe"
            answer = self.asker.ask(things, kind, language).answer
            return [(self.pick(FIRST if is_first else SECOND, language), answer, 2)], language
        is_first = self.random.random() < 0.5
        only = [
            thing
            for thing in told[is_first][:MAX_TOLD]
            if thing.concept not in {other.concept for other in told[not is_first]}
        ]
        if not only or max(map(len, told.values())) > MAX_TOLD:
            return self.switched(first)[0][:1], language  # of the first alone: the other is left out
        name = self.asker.name(self.random.choice(only), language)
        question = self.pick(WHICH, language).format(name=name, a=with_article(name) if language == "en" else "")
        return [(question, ORDINAL[language][0 if is_first else 1], 2)], language

    def pick(self, phrasings: dict[str, tuple[str, ...]], language: str) -> str:
        return self.asker.loosen(self.random.choice(phrasings[language]), language)

    def guess(self, guess: Guess, language: str | None = None) -> Question:
        """A question about a photograph of one thing, answered as sure as its name is."""
        language = language or self.language()
        thing = Thing(guess.first, "", guess.colour)
        kinds = {"name": 8, "describe": 2, "group": 3, "count": 1, "presence": 5, "outside": 1}
        kinds |= {"colour": 4} if guess.colour else {}
        kind = self.random.choices(list(kinds), list(kinds.values()))[0]
        if kind == "presence":
            return self.asker.ask_presence([thing], language) if guess.also < ALSO else self.either(guess, language)
        question = self.asker.ask([thing], kind, language)
        if kind in ("name", "describe") and guess.sure < SURE:
            names = [self.asker.name(Thing(index, "", ""), language) for index in (guess.first, guess.second)]
            names = [with_article(name) if language == "en" else name for name in names]
            return replace(question, answer=PERHAPS[language].format(*names))
        return question

    def either(self, guess: Guess, language: str) -> Question:
        """Whether one of two likely things is there: yes for both, no for others."""
        likely = [Thing(index, "", "") for index in (guess.first, guess.second)]
        return self.asker.ask_presence(likely, language)


def common_character(draw: random.Random) -> str:
    """One of the 3,755 characters that GB 2312 lists first: those in common use."""
    while True:
        code = bytes([draw.randint(0xB0, 0xD7), draw.randint(0xA1, 0xFE)])
        try:
            return code.decode("gb2312")
        except UnicodeDecodeError:  # the last row is not full
            continue
