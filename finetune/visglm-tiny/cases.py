"""The questions of the second evaluation: about plain scenes, photographs, and in conversations."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from asked import (
    CANNOT_TELL,
    LANGUAGES,
    ORDINALS,
    PLACES,
    Case,
    Judge,
    Vocabulary,
    Wording,
    a,
    names_first,
    place_in,
    says,
    says_all,
    says_colour,
    says_group,
    says_number,
    says_place,
    says_yes,
)
from concepts import Concept
from photographs import Photograph, collage
from PIL import Image
from plain_scenes import Drawings, Placed, PlainScene, compose, plain_scenes

SEED = 811
NUM_NAMES, NUM_COUNTED, NUM_SEVERAL, NUM_PRESENCE, NUM_TURNS = 400, 60, 240, 300, 120
COPIES = 0.35  # of the scenes with several things that are counted


@dataclass(frozen=True)
class Thing:
    """What is asked about: names that are asked with and that are right, its group and its colour, by language."""

    name: dict[str, str]
    accepted: dict[str, tuple[str, ...]]
    group: str
    colour: str
    place: str = ""


class Asking:
    """Makes cases of pictures and the things in them.

    Args:
        vocabulary: names that may be said. figure: what its figures are called, before a colon.
        strangers: things that may be asked for and are in no picture unless it says so.
    """

    def __init__(self, vocabulary: Vocabulary, figure: str, strangers: Sequence[Thing], seed: int = SEED):
        self.vocabulary, self.figure, self.strangers = vocabulary, figure, strangers
        self.wording, self.random = Wording(seed), random.Random(seed)

    def case(
        self,
        kind: str,
        language: str,
        picture: Image.Image | tuple[Image.Image, ...],
        judge: Judge,
        accepted: tuple[str, ...] = (),
        **values: str,
    ) -> Case:
        pictures = picture if isinstance(picture, tuple) else (picture,)
        turns = ((pictures, self.wording.ask(kind, language, **values)),)
        return Case(f"{self.figure}: {kind}", language, kind, turns, judge, accepted)

    def name(self, picture: Image.Image, thing: Thing) -> Iterator[Case]:
        for language in LANGUAGES:
            judge = names_first(self.vocabulary, thing.accepted[language], language)
            yield self.case("name", language, picture, judge, thing.accepted[language])

    def group(self, picture: Image.Image, thing: Thing) -> Iterator[Case]:
        for language in LANGUAGES:
            yield self.case("group", language, picture, says_group(thing.group, language))

    def colour(self, picture: Image.Image, thing: Thing) -> Iterator[Case]:
        for language in LANGUAGES if thing.colour else ():
            yield self.case("colour", language, picture, says_colour(thing.colour, language))

    def count(self, picture: Image.Image, number: int) -> Iterator[Case]:
        for language in LANGUAGES:
            case = self.case("count", language, picture, says_number(number, language))
            yield case if number <= 4 else renamed(case, f"{self.figure}: more than four")

    def presence(self, picture: Image.Image, things: Sequence[Thing], present: bool) -> Iterator[Case]:
        asked = self.random.choice(things) if present else self.absent(things)
        for language in LANGUAGES:
            name = asked.name[language]
            judge = says_yes(present, language)
            yield self.case("presence", language, picture, judge, a=a(name) if language == "en" else "", name=name)

    def absent(self, things: Sequence[Thing]) -> Thing:
        """A thing that none of these could be called; half the time of the group of one of them."""
        groups = {thing.group for thing in things}
        alike = [stranger for stranger in self.strangers if stranger.group in groups]
        shown = {name for thing in things for language in LANGUAGES for name in thing.accepted[language]}
        while True:
            stranger = self.random.choice(alike if alike and self.random.random() < 0.5 else self.strangers)
            own = {name for language in LANGUAGES for name in stranger.accepted[language]}
            if not own & shown:
                return stranger

    def position(self, picture: Image.Image, things: Sequence[Thing]) -> Iterator[Case]:
        thing = self.random.choice(things)
        for number, language in enumerate(LANGUAGES):
            judge = names_first(self.vocabulary, thing.accepted[language], language)
            yield self.case("position", language, picture, judge, place=PLACES[thing.place][number])

    def where(self, picture: Image.Image, things: Sequence[Thing]) -> Iterator[Case]:
        thing = self.random.choice(things)
        for language in LANGUAGES:
            yield self.case("where", language, picture, says_place(thing.place, language), name=thing.name[language])

    def describe(self, picture: Image.Image, things: Sequence[Thing]) -> Iterator[Case]:
        for language in LANGUAGES:
            told = [(thing.accepted[language], thing.place) for thing in things]
            yield self.case("describe", language, picture, says_all(self.vocabulary, told, language))

    def outside(self, picture: Image.Image) -> Iterator[Case]:
        for language in LANGUAGES:
            yield self.case("outside", language, picture, says(CANNOT_TELL[language]))


def renamed(case: Case, figure: str) -> Case:
    return Case(figure, case.language, case.kind, case.turns, case.judge, case.accepted)


def after(first: Case, then: Case, figure: str, keep_pictures: bool = False) -> Case:
    """`then` asked behind `first`, of the same picture unless it comes with another."""
    pictures, text = then.turns[-1]
    turns = (*first.turns, (pictures if keep_pictures else (), text))
    return Case(figure, then.language, then.kind, turns, then.judge, then.accepted)


def drawn_things(
    concepts: Sequence[Concept], vocabulary: Vocabulary, drawings: Drawings, known: dict[int, str]
) -> dict[int, Thing]:
    return {
        index: Thing(
            {language: concepts[index].names(language)[0] for language in LANGUAGES},
            {language: vocabulary.accepted(concepts[index], language) for language in LANGUAGES},
            concepts[index].group,
            drawings.colour(name),
        )
        for index, name in known.items()
    }


def scene_cases(
    concepts: Sequence[Concept], unseen: Sequence[Concept], vocabulary: Vocabulary, drawings: Drawings
) -> list[Case]:
    """All that is asked about drawings; each question in both languages about the same picture."""
    known = drawings.of(concepts)
    of_concept = drawn_things(concepts, vocabulary, drawings, known)
    asking = Asking(vocabulary, "plain", list(of_concept.values()))

    def things_of(scene: PlainScene) -> list[Thing]:
        return [at(of_concept[placed.concept], placed) for placed in scene.things]

    cases: list[Case] = []
    alone = plain_scenes(drawings, known, [1] * NUM_NAMES, SEED)
    for number, scene in enumerate(alone):
        (thing,) = things_of(scene)
        cases += asking.name(scene.picture, thing)
        cases += asking.colour(scene.picture, thing)
        if number % 2:
            cases += asking.group(scene.picture, thing)
        if number % 4 == 0:
            cases += asking.outside(scene.picture)
    counts = [number for number in range(1, 7) for _ in range(NUM_COUNTED)]
    for number, scene in zip(counts, plain_scenes(drawings, known, counts, SEED + 1, COPIES), strict=True):
        cases += asking.count(scene.picture, number)
    for number, scene in enumerate(plain_scenes(drawings, known, cycle((1, 2, 3, 4), NUM_PRESENCE), SEED + 2)):
        cases += asking.presence(scene.picture, things_of(scene), present=number % 2 == 0)
    several = plain_scenes(drawings, known, cycle((2, 2, 3, 4), NUM_SEVERAL), SEED + 3)
    for scene in several:
        things = things_of(scene)
        for kind in (asking.position, asking.where, asking.describe):
            cases += kind(scene.picture, things)
    draw = random.Random(SEED + 4)
    for concept in unseen:
        if concept.english[0] in drawings.set["icons"]:
            scene = compose(drawings, [(0, concept.english[0])], draw)
            thing = Thing({}, {}, concept.group, "")
            cases += [renamed(case, "plain: group, unseen") for case in asking.group(scene.picture, thing)]
    return cases + follow_ups(asking, alone, several, things_of)


def at(thing: Thing, placed: Placed) -> Thing:
    return Thing(thing.name, thing.accepted, thing.group, thing.colour, placed.place)


def cycle(numbers: Sequence[int], length: int) -> list[int]:
    return [numbers[index % len(numbers)] for index in range(length)]


def follow_ups(asking: Asking, alone: Sequence[PlainScene], several: Sequence[PlainScene], things_of) -> list[Case]:
    """Second questions, a question in the other language, and questions about two pictures."""
    cases: list[Case] = []
    clear = [scene for scene in alone if scene.things[0].colour][:NUM_TURNS]
    for scene in clear:
        (thing,) = things_of(scene)
        for first, then in zip(asking.name(scene.picture, thing), asking.colour(scene.picture, thing), strict=True):
            cases.append(after(first, then, "plain: name, then colour"))
        english, chinese = asking.name(scene.picture, thing)
        in_english, in_chinese = asking.colour(scene.picture, thing)
        cases.append(after(english, in_chinese, "turns: in the other language"))
        cases.append(after(chinese, in_english, "turns: in the other language"))
    for scene in several[:NUM_TURNS]:
        things = things_of(scene)
        counts, places = asking.count(scene.picture, len(things)), asking.where(scene.picture, things)
        cases += [after(*pair, "plain: count, then where") for pair in zip(counts, places, strict=True)]
        sided = [thing for thing in things if {"left", "right"} & set(thing.place.split())]
        if sided:
            firsts = asking.presence(scene.picture, sided[:1], present=True)
            for first in firsts:
                side = ({"left", "right"} & set(sided[0].place.split())).pop()
                then = asking.case("side", first.language, scene.picture, on_side(side, first.language))
                cases.append(after(first, then, "plain: presence, then side"))
    for first, second in zip(alone[:NUM_TURNS], alone[NUM_TURNS : 2 * NUM_TURNS], strict=True):
        cases += two_pictures(asking, (first.picture, second.picture), (*things_of(first), *things_of(second)))
    return cases


def on_side(side: str, language: str) -> Judge:
    return lambda answer: place_in(answer, language) & {"left", "right"} == {side}


def two_pictures(asking: Asking, pictures: tuple[Image.Image, Image.Image], things: Sequence[Thing]) -> Iterator[Case]:
    first, second = things
    for language in LANGUAGES:
        judge = names_first(asking.vocabulary, second.accepted[language], language)
        yield renamed(asking.case("second", language, pictures, judge), "turns: the second of two")
    opening = list(asking.name(pictures[0], first))
    for language, before in zip(LANGUAGES, opening, strict=True):
        judge = names_first(asking.vocabulary, second.accepted[language], language)
        then = asking.case("this one", language, pictures[1], judge)
        yield after(before, then, "turns: and this one?", keep_pictures=True)
    if set(first.accepted["en"]) & set(second.accepted["en"]):
        return
    chosen = asking.random.randrange(2)
    for language in LANGUAGES:
        name = things[chosen].name[language]
        right, wrong = ORDINALS[language][chosen], ORDINALS[language][1 - chosen]
        judge = only(right, wrong)
        case = asking.case("which", language, pictures, judge, a=a(name) if language == "en" else "", name=name)
        yield renamed(case, "turns: which of two")


def only(right: str, wrong: str) -> Judge:
    return lambda answer: right in answer.lower() and wrong not in answer.lower()


def photograph_cases(photographs: Sequence[Photograph], vocabulary: Vocabulary) -> list[Case]:
    """All that is asked about photographs: alone, and in collages of two to four."""
    things = [
        Thing(
            {"en": photograph.english[0], "zh": photograph.chinese[0]},
            {"en": photograph.english, "zh": photograph.chinese},
            photograph.group,
            photograph.colour,
        )
        for photograph in photographs
    ]
    cases: list[Case] = []
    by_set: dict[str, list[int]] = {}
    for index, photograph in enumerate(photographs):
        by_set.setdefault(photograph.set, []).append(index)
    for name, indices in by_set.items():
        asking = Asking(vocabulary, name, things)
        for number, index in enumerate(indices):
            picture, thing = photographs[index].open(), things[index]
            cases += asking.name(picture, thing)
            cases += asking.group(picture, thing)
            cases += asking.colour(picture, thing)
            cases += asking.presence(picture, [thing], present=number % 2 == 0)
    # Collages of all sets together: side, number and presence.
    asking, draw = Asking(vocabulary, "collages", things), random.Random(SEED + 5)
    for number in range(NUM_SEVERAL):
        chosen = draw.sample(range(len(photographs)), 1 + number % 4)
        picture, places = collage([photographs[index].open() for index in chosen], draw)
        shown = [
            Thing(t.name, t.accepted, t.group, t.colour, place)
            for t, place in zip((things[index] for index in chosen), places, strict=True)
        ]
        cases += asking.count(picture, len(shown))
        cases += asking.presence(picture, shown, present=number % 8 < 4)
        if len(shown) > 1 and len({thing.name["en"] for thing in shown}) == len(shown):
            cases += asking.where(picture, shown)
            cases += asking.position(picture, shown)
    return cases
