"""What the second evaluation asks, and when an answer is right.

The wording is that of people, not of `questions.py`, and so are the rules of what counts: another word for the same
thing is right, and so is the common name of what the picture shows a kind of ("apple" for a red apple); a longer name
that merely contains the right one is not ("河马" is no 马).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from concepts import GROUPS, Concept
from PIL import Image

LANGUAGES = ("en", "zh")
# Kind → language → wordings, taken in turn.
ASKED: dict[str, dict[str, tuple[str, ...]]] = {
    "name": {
        "en": ("What is this?", "What do you see?", "What's in the picture?", "what is it"),
        "zh": ("这是什么？", "图里是什么？", "你看到了什么？", "这个是什么"),
    },
    "group": {
        "en": ("What kind of thing is it?", "What sort of thing is this?", "Which category does it belong to?"),
        "zh": ("这是哪一类东西？", "它属于什么类别？", "这属于哪一类？"),
    },
    "colour": {
        "en": ("What colour is it?", "What color is this?", "Which colour does it have?"),
        "zh": ("它是什么颜色？", "这是什么颜色的？", "什么颜色？"),
    },
    "count": {
        "en": ("How many things are there?", "How many objects do you see?", "Count the objects."),
        "zh": ("图里有几个东西？", "一共有几个物体？", "有多少个？"),
    },
    "presence": {
        "en": ("Is there {a} here?", "Is there {a} in the picture?", "Can you see {a}?"),
        "zh": ("图里有{name}吗？", "有没有{name}？", "能看到{name}吗？"),
    },
    "position": {
        "en": ("What is {place}?", "What do you see {place}?"),
        "zh": ("{place}是什么？", "{place}有什么？"),
    },
    "where": {
        "en": ("Where is the {name}?", "Where can I find the {name}?"),
        "zh": ("{name}在哪里？", "{name}在什么位置？"),
    },
    "describe": {
        "en": ("Describe the picture.", "What can be seen in this picture?"),
        "zh": ("描述一下这张图片。", "请描述这张图。"),
    },
    "outside": {
        "en": (
            "Who painted this?",
            "How much does it cost?",
            "What year is it from?",
            "Is it heavy?",
            "What is its name?",
            "What happens next?",
            "Where was this taken?",
            "Is it tasty?",
        ),
        "zh": (
            "这是谁画的？",
            "它要多少钱？",
            "这是哪一年的？",
            "它重吗？",
            "它叫什么名字？",
            "接下来会发生什么？",
            "这是在哪里拍的？",
            "好吃吗？",
        ),
    },
    "side": {"en": ("On which side is it?", "Which side is it on?"), "zh": ("它在哪一边？", "在哪边？")},
    "second": {
        "en": ("What is in the second picture?", "And what does the second picture show?"),
        "zh": ("第二张图里是什么？", "第二张图片是什么？"),
    },
    "which": {
        "en": ("Which one has {a}?", "Which picture shows {a}?"),
        "zh": ("哪一张图里有{name}？", "哪张有{name}？"),
    },
    "this one": {"en": ("And this one?", "What about this one?"), "zh": ("这个呢？", "那这张呢？")},
}
PLACES = {
    "left": ("on the left", "左边"), "right": ("on the right", "右边"), "top": ("at the top", "上面"),
    "bottom": ("at the bottom", "下面"), "top left": ("in the top left", "左上角"),
    "top right": ("in the top right", "右上角"), "bottom left": ("in the bottom left", "左下角"),
    "bottom right": ("in the bottom right", "右下角"),
}  # fmt: skip
COLOURS = {
    "black": "黑", "white": "白", "grey": "灰", "red": "红", "orange": "橙", "yellow": "黄", "green": "绿",
    "blue": "蓝", "purple": "紫", "pink": "粉", "brown": "棕",
}  # fmt: skip
SAME_COLOUR = {"gray": "grey", "violet": "purple", "褐": "棕", "橘": "橙"}
NUMBERS = {"en": ("one", "two", "three", "four", "five", "six"), "zh": ("一", "两|二", "三", "四", "五", "六")}
MANY = {
    "en": r"more than (four|4)|many|several|five|six|\b[56]\b",
    "zh": r"(四|4)个?以上|超过(四|4)|很多|许多|[五六56]个",
}
ORDINALS = {"en": ("first", "second"), "zh": ("第一", "第二")}
CANNOT_TELL = {"en": r"can(no|')t tell|do not know|don't know|not sure", "zh": r"看不出|不知道|不确定|无法"}
UNSURE = {"en": r"^\W*(perhaps|maybe|possibly|it (may|might|could) be)", "zh": r"^\W*(可能|也许|或许|大概)"}
# Last words that are things of their own: neither is a kind of the other.
NO_KIND_OF = {"sea lion", "guinea pig", "prairie dog", "sea horse", "bald eagle head", "koala bear"}

Judge = Callable[[str], bool]


@dataclass(frozen=True)
class Case:
    """One question that is scored, and the conversation before it.

    Args:
        figure: what it counts under. language: of the question. kind: key of `ASKED`.
        turns: pictures and text of every question, the last of which is scored; earlier ones are answered by the model.
        judge: whether an answer is right. accepted: the words for it, where it is a word that is asked for.
    """

    figure: str
    language: str
    kind: str
    turns: tuple[tuple[tuple[Image.Image, ...], str], ...]
    judge: Judge = field(compare=False)
    accepted: tuple[str, ...] = ()

    def is_right(self, answer: str) -> bool:
        return self.judge(answer)


def is_unsure(answer: str, language: str) -> bool:
    """Whether an answer says that it may be wrong, or that it cannot tell."""
    return bool(re.search(f"{UNSURE[language]}|{CANNOT_TELL[language]}", answer.strip().lower()))


class Vocabulary:
    """All names that may be said, to find those that an answer says."""

    def __init__(self, concepts: Iterable[Concept], further: dict[str, Iterable[str]] | None = None):
        self.concepts = list(concepts)
        self.names: dict[str, set[str]] = {language: set() for language in LANGUAGES}
        for concept in self.concepts:
            for language in LANGUAGES:
                self.names[language].update(name.lower() for name in concept.names(language))
        for language, names in (further or {}).items():
            self.names[language].update(name.lower() for name in names)
        self.patterns = {
            language: re.compile("|".join(self.pattern(name, language) for name in sorted(names, key=len)[::-1]))
            for language, names in self.names.items()
        }

    @staticmethod
    def pattern(name: str, language: str) -> str:
        return re.escape(name) if language == "zh" else rf"(?<![a-z0-9]){re.escape(name)}(?:e?s)?(?![a-z0-9])"

    def said(self, answer: str, language: str) -> list[str]:
        """The names in an answer, the longest at each place."""
        found = (match.group() for match in self.patterns[language].finditer(answer.lower()))
        return [name if name in self.names[language] else re.sub("e?s$", "", name) for name in found]

    def accepted(self, concept: Concept, language: str) -> tuple[str, ...]:
        """Names that are right for a thing: its own, those of its twins, and the common one of its kind."""
        own = {name.lower() for name in concept.names(language)}
        for other in self.concepts:
            # Of the same name in either language, and of the same group: the same thing twice.
            if other.group != concept.group:
                continue
            names = [name.lower() for name in other.names(language)]
            if own & {names[0]}:
                own.update(names)
            is_kind = any(ends_with(name, names[0], language) and name not in NO_KIND_OF for name in tuple(own))
            if is_kind:
                own.add(names[0])
        return tuple(sorted(own))


def ends_with(name: str, kind: str, language: str) -> bool:
    return name != kind and name.endswith(kind if language == "zh" else " " + kind)


def names_first(vocabulary: Vocabulary, accepted: Sequence[str], language: str) -> Judge:
    """The first name that an answer says is one of these."""
    right = {name.lower() for name in accepted}

    def judge(answer: str) -> bool:
        said = vocabulary.said(answer, language)
        return bool(said) and said[0] in right

    return judge


def says(pattern: str) -> Judge:
    return lambda answer: re.search(pattern, answer.lower()) is not None


def says_colour(colour: str, language: str) -> Judge:
    words = {"en": dict(zip(COLOURS, COLOURS, strict=True)), "zh": {zh: en for en, zh in COLOURS.items()}}[language]
    aliases = {alias: words[name] for alias, name in SAME_COLOUR.items() if name in words}
    known = words | aliases
    find = re.compile("|".join(rf"\b{word}\b" if language == "en" else word for word in known))

    def judge(answer: str) -> bool:
        found = find.search(answer.lower())
        return found is not None and known[found.group()] == colour

    return judge


def says_number(number: int, language: str) -> Judge:
    """The number, in words or digits; of more than four, that it is more than four."""
    if number > 4:
        return says(MANY[language])
    word = NUMBERS[language][number - 1]
    pattern = rf"\b({word}|{number})\b" if language == "en" else rf"({word}|{number})(个|件|样|只)?"
    return lambda answer: (
        re.search(MANY[language], answer.lower()) is None and re.search(pattern, answer.lower()) is not None
    )


def says_yes(present: bool, language: str) -> Judge:
    """Yes or no, which must open the answer."""
    yes, no = {"en": ("yes", "no"), "zh": ("有|是|能", "没|不|否")}[language]
    return lambda answer: re.match(rf"\W*({yes if present else no})", answer.strip().lower()) is not None


def place_in(text: str, language: str) -> set[str]:
    """The sides that a text speaks of."""
    words = {"en": ("left", "right", "top", "bottom"), "zh": ("左", "右", "上", "下")}[language]
    spoken = text.lower()
    if language == "en":
        spoken = re.sub(r"\b(upper|above)\b", "top", re.sub(r"\b(lower|below)\b", "bottom", spoken))
    return {side for side, word in zip(("left", "right", "top", "bottom"), words, strict=True) if word in spoken}


def says_place(place: str, language: str) -> Judge:
    return lambda answer: place_in(answer, language) == set(place.split())


def says_all(vocabulary: Vocabulary, things: Sequence[tuple[Sequence[str], str]], language: str) -> Judge:
    """Every thing with its place in a clause of its own, and nothing else."""

    def judge(answer: str) -> bool:
        clauses = [part for part in re.split(r"[,，;；:：。.]| and ", answer) if vocabulary.said(part, language)]
        if len(clauses) != len(things):
            return False
        left = list(things)
        for clause in clauses:
            said = vocabulary.said(clause, language)[0]
            fits = [
                thing
                for thing in left
                if said in {name.lower() for name in thing[0]} and place_in(clause, language) == set(thing[1].split())
            ]
            if not fits:
                return False
            left.remove(fits[0])
        return True

    return judge


def a(name: str) -> str:
    """A name with its article, by a rule of its own: what is plural or cannot be counted takes none."""
    if name in MASSES or re.search(r"(?<!s)(?<!u)(?<!i)s$", name):
        return name
    opens = re.match(r"(?!one|uni|use|eu|ukulele)[aeiou]|hour|x-ray|SUV|honest", name, re.IGNORECASE) is not None
    return f"{'an' if opens else 'a'} {name}"


# Words without an article, for the questions here only.
MASSES = {
    "milk", "water", "bread", "rice", "cheese", "butter", "honey", "salt", "ice", "snow", "fire", "wood", "fog",
    "wind", "rain", "corn", "garlic", "ginger", "broccoli", "bacon", "popcorn", "soap", "sushi", "tea", "coffee",
    "wine", "beer", "juice", "yoghurt", "cream", "meat", "thread", "yarn", "lightning", "luggage",
}  # fmt: skip


class Wording:
    """Questions in the wordings above, each as often as the others."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.number = 0

    def ask(self, kind: str, language: str, **values: str) -> str:
        wordings = ASKED[kind][language]
        self.number += 1
        return wordings[self.number % len(wordings)].format(**values)


def group_words(group: str, language: str) -> tuple[str, ...]:
    """How a group may be called: its name, or one of its parts."""
    word = group if language == "en" else GROUPS[group][0]
    return (word, *re.split(r" or |或", word))


def says_group(group: str, language: str) -> Judge:
    """The group by name, and no other group."""
    others = [word for other in GROUPS if other != group for word in group_words(other, language)[:1]]
    own = group_words(group, language)

    def judge(answer: str) -> bool:
        spoken = answer.lower()
        return any(word in spoken for word in own) and not any(
            other in spoken and not any(other in word for word in own) for other in others
        )

    return judge
