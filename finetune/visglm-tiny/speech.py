"""Whether answers are sentences: one language, whole, with the right articles."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from asked import LANGUAGES

# Latin letters that Chinese sentences have, too.
ALLOWED_IN_CHINESE = re.compile(
    r"visglm-tiny|T恤|DNA|X光|X射线|SUV|CD|DVD|VS|ATM|MP3|3D|U盘|卡拉OK|[Tt]恤", re.IGNORECASE
)
CHINESE = re.compile(r"[㐀-鿿]")
ENDS = {"en": (".", "!", "?"), "zh": ("。", "！", "？")}
SAID_OPEN = re.compile(r"(?!one\b|once|uni|use|usu|eu|ukulele|ewe)[aeiou]|hour|heir|honest|x-ray|suv\b", re.IGNORECASE)
# Nouns that are plural: no article before them, unless a word such as "pair" stands between.
PLURALS = {
    "scissors", "glasses", "sunglasses", "trousers", "jeans", "shorts", "skis", "chopsticks", "fries", "noodles",
    "headphones", "socks", "gloves", "grapes", "cherries", "fireworks", "clothes", "pliers", "tongs", "binoculars",
}  # fmt: skip
# Doubled words that are words: 猩猩, 星星, 泡泡 …; "a bye-bye" has a hyphen.
DOUBLED = re.compile(r"([a-z]{3,}) \1\b|([㐀-鿿]{2,})\2", re.IGNORECASE)


def faults(answer: str, language: str) -> set[str]:
    """What is wrong with an answer to a question in this language: "mixed", "broken", "doubled", "article"."""
    found = set()
    text = answer.strip()
    if language == "en" and CHINESE.search(text):
        found.add("mixed")
    if language == "zh" and (re.search("[A-Za-z]", ALLOWED_IN_CHINESE.sub("", text)) or not CHINESE.search(text)):
        found.add("mixed")
    if not text.endswith(ENDS[language]) or "�" in text or "<" in text:
        found.add("broken")
    if DOUBLED.search(text):
        found.add("doubled")
    if language == "en" and wrong_articles(text):
        found.add("article")
    return found


def wrong_articles(text: str) -> list[str]:
    """Articles that do not fit the word behind them."""
    wrong = []
    for article, word, rest in re.findall(r"\b([Aa]n?) ([\w-]+)([\w -]*)", text):
        opens = SAID_OPEN.match(word) is not None
        phrase = (word + rest).strip().lower()
        last = re.split(r" with | of | on | in ", phrase)[0].split()[-1]
        if opens != (article.lower() == "an") or last in PLURALS or word in ("a", "an", "the"):
            wrong.append(f"{article} {phrase}")
    return wrong


def speech_figures(answers: Iterable[tuple[str, str]]) -> dict[str, dict[str, int | dict[str, int]]]:
    """Of `(language, answer)`: how many there are and how many have which fault, by language."""
    counted: dict[str, Counter[str]] = {language: Counter() for language in LANGUAGES}
    totals: Counter[str] = Counter()
    for language, answer in answers:
        totals[language] += 1
        counted[language].update(faults(answer, language))
    return {
        language: {"num": totals[language], "faults": dict(sorted(counted[language].items()))} for language in LANGUAGES
    }
