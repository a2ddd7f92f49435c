"""The words of a question that say what it is about, and how much of them a text has."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath

from ..prompt import CHINESE
from .chunks import in_one_line

# Words that any question has.
ASKING = re.compile(
    "图片里|照片里|图里|多[久大重长高远深快宽厚]|什么样|什么|为什么|为何|怎么样|怎么|怎样|如何|时候|哪一|哪些|哪个|哪里|哪儿|哪|是否|多少|几|谁|请问|告诉我|可以|能够|能否|"
    "应该|我们|我|你|您|吗|呢|吧|啊|的|了|着|得|地|是|在|和|与|及|或|并|而|也|都|就|还|被|把|让|使|对于|关于|对|于|"
    "从|到|向|以|为|之|其|这|那|个|有|没有|会|要|想|图片|照片|图中|张|显示"
)
STOP = frozenset(
    re.findall(
        r"\w+",
        """a about all am an and any are as at be been but by can could did do does for from had has have how i if in
        into is it its may me my no not of on one or our shall she should so some such than that the their them there
        these they this those to was we were what when where which who whom whose why will with would you your picture
        many much long old far often pictures photo image show shows shown""",
    )
)
# Of alphabets: Latin with its accents, Greek, Cyrillic.
LETTER = r"[a-z0-9\u00df-\u00f6\u00f8-\u024f\u0370-\u052f\u1e00-\u1fff]"
WORD = re.compile(rf"{LETTER}+(?:[-_.'’]{LETTER}+)*")
RUN = re.compile(rf"{CHINESE}+")
ENDINGS = re.compile(r"(?<=..[a-z])(?:ies|ing|ed|es|s|e|y)$")
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")

# What people write together in the name of a file: snake_case, CamelCase, numbers.
IN_NAMES = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")


def name_in_words(source: str) -> str:
    """A file's name without its ending, as it is and in its words: `red_FireEngine2` has a fire in it."""
    stem = PurePath(source).stem
    return f"{stem} {' '.join(IN_NAMES.findall(stem))}"


# A word that a line of print was too short for. One that has its hyphen anyway loses it here, and only here.
PARTED = re.compile(r"(?<=[a-z])-[ \t]?\n[ \t]?(?=[a-z])")


def running(text: str) -> str:
    """Text as it is searched: in one line, and words that a line break parted are whole."""
    return in_one_line(PARTED.sub("", text))


def words_of(text: str, is_question: bool = False) -> set[str]:
    """Words of alphabets, English ones without their endings, and pairs of neighbouring Chinese characters.

    Args:
        is_question: leave out what any question has.
    """
    lowered = (text if is_question else running(text)).lower()
    found = {ENDINGS.sub("", word) for word in WORD.findall(lowered) if not (is_question and word in STOP)}
    for run in RUN.findall(ASKING.sub(" ", lowered) if is_question else lowered):
        found |= {run[place : place + 2] for place in range(len(run) - 1)} or {run}
    return found


def holds(word: str, words: set[str], text: str) -> bool:
    """Whether a text has a word; a single Chinese character may be a part of another one."""
    return word in words or (len(word) == 1 and word in text)


def rarity(words: Iterable[str], texts: Iterable[str]) -> dict[str, float]:
    """Of each word, how much it tells: less, the more of these texts have it."""
    kept = [(words_of(text), text) for text in texts]
    return {
        word: math.log(1 + (len(kept) + 1) / (0.5 + sum(holds(word, some, text) for some, text in kept)))
        for word in words
    }


def coverage(weights: Mapping[str, float], text: str) -> float:
    """The share, 0 to 1, of the weight of all words that a text has."""
    words = words_of(text)
    total = sum(weights.values())
    return sum(weight for word, weight in weights.items() if holds(word, words, text)) / total if total else 0.0


def supports(reference: str, sentence: str, least: float = 0.6) -> bool:
    """Whether a text says what a sentence does, as far as words can tell: it has most of them, and every number."""
    words, own = words_of(sentence, is_question=True), words_of(reference)
    numbers = set(NUMBER.findall(reference))
    if not set(NUMBER.findall(sentence)) <= numbers:
        return False
    return bool(words) and sum(holds(word, own, reference) for word in words) / len(words) >= least
