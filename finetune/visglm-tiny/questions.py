"""What is asked about a scene and what is answered, in both languages; templates are data.

The first phrasing of each kind and language in `phrasings.tsv` is the one the evaluation asks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from concepts import GROUPS, Concept, read_phrasings
from world import APART, COLOURS, MAX_TOLD, Scenes

COLOURS_ZH = dict(
    zip(COLOURS, ("黑色", "白色", "灰色", "红色", "橙色", "黄色", "绿色", "蓝色", "紫色", "粉色", "棕色"), strict=True)
)
PLACES = {
    "left": ("on the left", "左边"),
    "right": ("on the right", "右边"),
    "top": ("at the top", "上面"),
    "bottom": ("at the bottom", "下面"),
    "top left": ("in the top left", "左上角"),
    "top right": ("in the top right", "右上角"),
    "bottom left": ("in the bottom left", "左下角"),
    "bottom right": ("in the bottom right", "右下角"),
}
QUESTIONS = read_phrasings("phrasings.tsv")
# What may stand around a question.
FRAMES = {
    "en": (
        "Please tell me: {}", "Look at the picture. {}", "{} Please answer.", "And {}", "So, {}", "Hey, {}", "Now, {}",
        "Here is a picture. {}", "OK, {}", "{} Thanks!", "I have a question. {}", "In this picture: {}", "Well, {}",
        "Question: {}", "Quick question: {}", "Have a look: {}",
    ),
    "zh": (
        "请问{}", "请告诉我，{}", "看图回答：{}", "那么{}", "请看这张图，{}", "你好，{}", "请问，{}", "看一看，{}",
        "我想知道，{}", "根据图片回答：{}", "这张图里，{}", "好的，{}", "{}谢谢。", "问题：{}", "你说，{}",
        "帮我看看，{}",
    ),
}  # fmt: skip
TOO_MANY = {
    "en": ("There are more than four objects.", ("more than four",)),
    "zh": ("图中有四个以上的物体。", ("四个以上",)),
}
UNKNOWN = {"en": "I cannot tell from this picture.", "zh": "这张图片里看不出来。"}
TEXT_ONLY = (
    ("Hello!", "Hello! I am visglm-tiny. Show me a picture and ask about it."),
    ("Hi", "Hello! I am visglm-tiny. Show me a picture and ask about it."),
    ("Who are you?", "I am visglm-tiny, a small model that answers questions about pictures."),
    ("What can you do?", "I am visglm-tiny, a small model that answers questions about pictures."),
    ("你好", "你好！我是visglm-tiny，给我一张图片，问我吧。"),
    ("你好！", "你好！我是visglm-tiny，给我一张图片，问我吧。"),
    ("你是谁？", "我是visglm-tiny，一个回答图片问题的小模型。"),
    ("你会做什么？", "我是visglm-tiny，一个回答图片问题的小模型。"),
)
NO_PICTURE = {"en": "Please show me a picture first.", "zh": "请先给我一张图片。"}
# How often each kind is asked, relative to the others.
WEIGHTS_ALONE = {"name": 8, "describe": 1, "group": 4, "count": 2, "presence": 5, "colour": 8, "outside": 1}
WEIGHTS_SEVERAL = {"describe": 5, "count": 4, "presence": 5, "position": 5, "where": 7, "outside": 1}
WEIGHTS_MANY = {"describe": 1, "count": 4, "outside": 1}
BLACK_ASKED_FOR = 0.15  # times as often as another colour: half the drawings are line art, and soon all is called black

# Names that take no article: no plural, but not counted either, or a proper name.
UNCOUNTABLE = {
    "bacon", "badminton", "beer", "bowling", "bread", "broccoli", "butter", "camping", "canned food", "champagne",
    "cheese", "chocolate", "coffee", "cooking", "coral", "corn", "curry", "curry rice", "custard", "DNA",
    "field hockey", "fire", "fog", "fondue", "fries", "garlic", "ginger", "golf", "green tea", "honey",
    "hot springs", "ice", "ice cream", "ice hockey", "lacrosse", "lightning", "luggage", "mahjong", "mail", "mate",
    "meat", "meat on bone", "milk", "milky way", "moon viewing", "Mount Fuji", "noodles", "oden", "ping pong",
    "popcorn", "pudding", "rain", "rice", "sake", "salad", "salt", "Saturn", "shaved ice", "sheet music", "skis",
    "snow", "soap", "soft ice cream", "soup", "spaghetti", "stew", "sunrise", "sunset", "sushi", "tea", "tempura",
    "thread", "toilet paper", "Tokyo tower", "water", "wheat", "wind", "wine", "wood", "yarn",
}  # fmt: skip
PAIRS = {
    "glasses", "sunglasses", "goggles", "scissors", "trousers", "jeans", "shorts", "pajamas", "skis", "chopsticks",
    "gloves", "socks", "headphones", "binoculars", "pliers",
}  # fmt: skip
SAID_WITH_VOWEL, SAID_WITH_CONSONANT = ("umbrella", "hourglass", "SUV", "x-ray", "urn"), ("euro", "one")


@dataclass(frozen=True)
class Thing:
    """One object of a scene: concept index, its place by name ("" when alone) and colour ("" when unclear)."""

    concept: int
    place: str
    colour: str


@dataclass(frozen=True)
class Question:
    """A question with its answer, its kind and, for scoring, the words one of which the answer must contain."""

    kind: str
    language: str
    text: str
    answer: str
    accepted: tuple[str, ...]

    def accepts(self, reply: str) -> bool:
        """Whether `reply` is right: it contains an accepted word (a fox is no ox); yes and no must open it. Articles
        do not count."""
        reply = without_articles(reply)
        if self.kind == "presence":
            return reply.startswith(self.accepted)
        whole = r"(?<![a-z0-9]){}(?![a-z0-9])"
        return any(re.search(whole.format(re.escape(without_articles(word))), reply) for word in self.accepted)


def with_article(name: str) -> str:
    """ "an apple", "a cat", "a pair of scissors", "fries", "milk"."""
    if name in PAIRS:
        return f"a pair of {name}"
    head = name.split(" with ")[0]
    if name in UNCOUNTABLE or (head.endswith("s") and not head.endswith(("ss", "us", "is", "os"))):
        return name
    sounds_open = name.startswith(SAID_WITH_VOWEL) or (
        name[0].lower() in "aeio" and not name.startswith(SAID_WITH_CONSONANT)
    )
    return ("an " if sounds_open else "a ") + name


def said(place: str, language: str) -> str:
    """A place as it stands in an answer: "on the left", "左边"."""
    return PLACES[place][0 if language == "en" else 1]


def without_articles(text: str) -> str:
    return re.sub(r"\b(an?|the) ", "", text.strip().lower())


def described(names: Sequence[str], places: list[str], language: str) -> str:
    """All that stands in a picture of several objects: "There are 2 objects: a cat on the left, ..."."""
    if language == "en":
        parts = (f"{with_article(name)} {place}" for name, place in zip(names, places, strict=True))
        return f"There are {len(places)} objects: {', '.join(parts)}."
    return f"图中有{len(places)}个物体：{'，'.join(f'{p}是{name}' for name, p in zip(names, places, strict=True))}。"


def things_of(concept: list[int], centre: list[list[float]], colour: list[int]) -> list[Thing]:
    """The objects of one scene, from rows of `Scenes`."""
    places = [""]
    if len(concept) > 1:
        xs, ys = [x for x, _ in centre], [y for _, y in centre]
        horizontal, vertical = max(xs) - min(xs) > APART, max(ys) - min(ys) > APART
        # Of things that stand together at an edge, one is left of the others all the same.
        middle_x, middle_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
        places = [
            " ".join(
                part
                for part, said in (
                    ("top" if y < middle_y else "bottom", vertical),
                    ("left" if x < middle_x else "right", horizontal),
                )
                if said
            )
            for x, y in centre
        ]
    return [
        Thing(index, place, COLOURS[shade] if shade >= 0 else "")
        for index, place, shade in zip(concept, places, colour, strict=True)
    ]


def things_in(scenes: Scenes) -> list[list[Thing]]:
    """What may be asked about, scene by scene."""
    values = (scenes.concept, scenes.centre, scenes.colour)
    return [
        things_of(*(value[index, :count].tolist() for value in values))
        for index, count in enumerate(scenes.count.tolist())
    ]


def single_out(things: Sequence[Thing]) -> list[Thing]:
    """Those of which there is no other in the scene, and nothing else in their place."""
    concepts, places = [thing.concept for thing in things], [thing.place for thing in things]
    return [thing for thing in things if concepts.count(thing.concept) == places.count(thing.place) == 1]


class Asker:
    """Makes up questions about scenes.

    Args:
        concepts: what the world knows. seed: of everything asked.
        first_phrasing: ask only the phrasing the evaluation uses.
    """

    def __init__(self, concepts: list[Concept], seed: int = 0, first_phrasing: bool = False):
        self.concepts = concepts
        self.random = random.Random(seed)
        self.first_phrasing = first_phrasing
        self.by_group = {group: [i for i, concept in enumerate(concepts) if concept.group == group] for group in GROUPS}

    def ask(self, things: list[Thing], kind: str | None = None, language: str | None = None) -> Question:
        """A question about the scene, of a random kind and language unless they are given."""
        language = language or self.random.choice(("en", "zh"))
        if kind is None:
            weights = dict(WEIGHTS_ALONE if len(things) == 1 else WEIGHTS_SEVERAL)
            if len(things) > MAX_TOLD:
                weights = dict(WEIGHTS_MANY)
            if len(things) > 1 and not single_out(things):
                weights.pop("where", None)
            if not things[0].colour:
                weights.pop("colour", None)
            elif things[0].colour == "black" and "colour" in weights:
                weights["colour"] *= BLACK_ASKED_FOR
            kind = self.random.choices(list(weights), list(weights.values()))[0]
        return getattr(self, "ask_" + kind)(things, language)

    def phrase(self, kind: str, language: str, **values: str) -> str:
        phrasings = QUESTIONS[kind][language]
        if self.first_phrasing:
            return phrasings[0].format(**values)
        return self.loosen(self.random.choice(phrasings).format(**values), language)

    def loosen(self, question: str, language: str) -> str:
        """The question as people type it: at times inside a sentence, in lower case or without its last mark."""
        if self.random.random() < 0.15:
            question = question.rstrip("?.？。")
        if self.random.random() < 0.15:
            question = question[0].lower() + question[1:]
        return self.random.choice(FRAMES[language]).format(question) if self.random.random() < 0.25 else question

    def converse(self, things: list[Thing], language: str | None = None) -> list[Question]:
        """Two questions, the second after the first; "it" of the second is what the first was about."""
        language = language or self.random.choice(("en", "zh"))
        sided = [thing for thing in single_out(things) if "left" in thing.place or "right" in thing.place]
        sided = sided if len(things) <= MAX_TOLD else []
        if sided and self.random.random() < 0.4:
            thing = self.random.choice(sided)
            first = self.ask_presence([thing], language, present=True)
            return [first, self.ask_side([thing], language)]
        return [self.ask(things, language=language), self.ask(things, language=language)]

    def ask_side(self, things: list[Thing], language: str) -> Question:
        side = "left" if "left" in things[0].place else "right"
        place = said(side, language)
        answer = f"It is {place}." if language == "en" else f"在{place}。"
        return Question("side", language, self.phrase("side", language), answer, (place,))

    def name(self, thing: Thing, language: str) -> str:
        return self.concepts[thing.concept].names(language)[0]

    def ask_name(self, things: list[Thing], language: str) -> Question:
        thing = things[0]
        name = self.name(thing, language)
        answer = f"It is {with_article(name)}." if language == "en" else f"这是{name}。"
        accepted = self.concepts[thing.concept].names(language)
        return Question("name", language, self.phrase("name", language), answer, accepted)

    def ask_describe(self, things: list[Thing], language: str) -> Question:
        if len(things) == 1:
            names = self.concepts[things[0].concept].names(language)
            answer = f"The picture shows {with_article(names[0])}." if language == "en" else f"图中有{names[0]}。"
            return Question("describe", language, self.phrase("describe", language), answer, names)
        if len(things) > MAX_TOLD:
            answer, accepted = TOO_MANY[language]
            return Question("describe", language, self.phrase("describe", language), answer, accepted)
        ordered = sorted(things, key=lambda thing: list(PLACES).index(thing.place))
        places = [said(thing.place, language) for thing in ordered]
        answers = tuple(
            described(names, places, language)
            for names in product(*(self.concepts[thing.concept].names(language) for thing in ordered))
        )
        return Question("describe", language, self.phrase("describe", language), answers[0], answers)

    def ask_group(self, things: list[Thing], language: str) -> Question:
        group = self.concepts[things[0].concept].group
        word = group if language == "en" else GROUPS[group][0]
        answer = f"It is {with_article(word)}." if language == "en" else f"这属于{word}。"
        return Question("group", language, self.phrase("group", language), answer, (word,))

    def ask_count(self, things: list[Thing], language: str) -> Question:
        number = len(things)
        if number > MAX_TOLD:
            answer, accepted = TOO_MANY[language]
            return Question("count", language, self.phrase("count", language), answer, accepted)
        english = "There is 1 object." if number == 1 else f"There are {number} objects."
        answer = english if language == "en" else f"图中有{number}个物体。"
        accepted = (
            str(number),
            ("one", "two", "three", "four")[number - 1] if language == "en" else "一二三四"[number - 1],
        )
        return Question("count", language, self.phrase("count", language), answer, accepted)

    def ask_presence(self, things: list[Thing], language: str, present: bool | None = None) -> Question:
        present = self.random.random() < 0.5 if present is None else present
        asked = self.random.choice(things).concept if present else self.absent(things)
        name = self.concepts[asked].names(language)[0]
        a = with_article(name)
        if language == "en":
            answer = f"Yes, there is {a}." if present else f"No, there is no {name}."
        else:
            answer = f"有，图中有{name}。" if present else f"没有，图中没有{name}。"
        accepted = {"en": ("yes", "no"), "zh": ("有", "没有")}[language][0 if present else 1]
        return Question("presence", language, self.phrase("presence", language, a=a, name=name), answer, (accepted,))

    def absent(self, things: list[Thing]) -> int:
        """A concept that no object of the scene could be called; half the time of the same group as one of them."""
        shown = {name for t in things for language in ("en", "zh") for name in self.concepts[t.concept].names(language)}
        same_group = self.by_group[self.concepts[self.random.choice(things).concept].group]
        while True:
            pool = same_group if self.random.random() < 0.5 else range(len(self.concepts))
            index = self.random.choice(pool)
            names = {*self.concepts[index].english, *self.concepts[index].chinese}
            if shown.isdisjoint(names):
                return index

    def ask_position(self, things: list[Thing], language: str) -> Question:
        places = [thing.place for thing in things]
        thing = self.random.choice([thing for thing in things if places.count(thing.place) == 1] or things)
        name = self.name(thing, language)
        place = said(thing.place, language)
        answer = f"It is {with_article(name)}." if language == "en" else f"{place}是{name}。"
        accepted = self.concepts[thing.concept].names(language)
        return Question("position", language, self.phrase("position", language, place=place), answer, accepted)

    def ask_where(self, things: list[Thing], language: str) -> Question:
        thing = self.random.choice(single_out(things) or things)
        place = said(thing.place, language)
        answer = f"It is {place}." if language == "en" else f"在{place}。"
        return Question(
            "where", language, self.phrase("where", language, name=self.name(thing, language)), answer, (place,)
        )

    def ask_colour(self, things: list[Thing], language: str) -> Question:
        colour = things[0].colour
        answer = f"It is {colour}." if language == "en" else f"它是{COLOURS_ZH[colour]}的。"
        accepted = (colour,) if language == "en" else (COLOURS_ZH[colour],)
        return Question("colour", language, self.phrase("colour", language), answer, accepted)

    def ask_outside(self, things: list[Thing], language: str) -> Question:
        text = self.loosen(self.random.choice(QUESTIONS["outside"][language]), language)
        return Question("outside", language, text, UNKNOWN[language], ("cannot tell", "看不出来"))

    def ask_without_picture(self) -> Question:
        """Small talk, or a question about a picture that was not given."""
        if self.random.random() < 0.5:
            text, answer = self.random.choice(TEXT_ONLY)
            return Question("talk", "en" if text.isascii() else "zh", text, answer, (answer,))
        language = self.random.choice(("en", "zh"))
        text = self.phrase(self.random.choice(("name", "count", "colour", "describe", "group")), language)
        return Question("talk", language, text, NO_PICTURE[language], (NO_PICTURE[language],))
