"""Answers that say where they come from: extracts word for word, or what a model writes, held against its sources."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, NamedTuple

from ..errors import ContextLengthError, PromptError
from ..prompt import Reference, Turn, detect_language
from ..reply import Citation, History, Reply, Timings, Usage
from .chunks import LEADERS, in_one_line, sentences
from .collection import Library
from .pieces import Box, Line, union
from .search import Found
from .words import NUMBER, coverage, name_in_words, rarity, supports, words_of

# Positions from which on a model is taken for one that reads: with fewer there is no room for references.
READING_CONTEXT = 1024
ANSWER_TOKENS = 256  # room for an answer beside its references
DEPTH = 12  # parts among which sentences are looked for
NOTHING = {"zh": "资料中没有找到相关内容。", "en": "Nothing was found about this."}
UNSUPPORTED = {"zh": "（资料中未见）", "en": " (not in the sources)"}
MARK = re.compile(r"\s*[\[【](\d{1,2})[\]】]")
# A question after a number is answered by a sentence with one.
ASKS_NUMBER = re.compile(
    r"多少|几[^乎]|哪[一]?[年天月日]|何时|什么时[候间]|多[大长高远久重]"
    r"|\bhow (?:many|much|long|old|far|often)\b|\bwhen\b",
    re.IGNORECASE,
)
ASKS = re.compile(r"[?？][\"')\]”’」』）]*\Z")
ECHO = 0.6  # what a sentence counts that asks itself, or has no word that the question has not
WORTH = 0.3  # of the best extract's score: what has less is left out

Write = Callable[[str, tuple[Reference, ...]], Reply]
Meaning = Callable[[str, Sequence[str]], list[float]]
MAX_FOREIGN = 2  # parts in another language whose sentences are compared, one by one
FOREIGN = 0.7  # what meaning alone counts beside words


@dataclass(frozen=True)
class Extract:
    """A sentence that may answer, or a picture.

    Args:
        found: what it is a part of. start, end: of the sentence in its text.
        score: 0 to 1.
    """

    found: Found
    start: int
    end: int
    score: float

    @property
    def quote(self) -> str:
        return self.found.text[self.start : self.end]

    @property
    def box(self) -> Box | None:
        """Around the lines of the sentence; of a picture its own."""
        if self.found.kind == "picture":
            return self.found.box
        return union([box for start, end, box in self.found.lines if start < self.end and end > self.start])

    def cite(self, number: int) -> Citation:
        return Citation(
            number=number, source=self.found.source, quote=self.quote, page=self.found.page, box=self.box,
            score=self.score, kind=self.found.kind, heading=self.found.heading, start=self.found.start + self.start,
            # What a picture shows is said by the model, and stands nowhere in the document.
            end=self.found.end if self.found.kind == "picture" else self.found.start + self.end,
        )  # fmt: skip


class Confident(NamedTuple):
    """A part that is about a question.

    Args:
        rank: its place in the search. sure: 0 to 1. weights: of the question's words.
    """

    found: Found
    rank: int
    sure: float
    weights: dict[str, float]


def answer(
    question: str,
    library: Library,
    *,
    image: Any = None,
    past: History | None = None,
    language: str = "auto",
    limit: int = 3,
    write: Write | None = None,
    **wanted: Any,
) -> Reply:
    """Answer a question from a library.

    Args:
        image: a picture to look for, besides the words.
        past: the turns before.
        limit: sources, at most.
        write: has a model that reads write the answer, from references; None for extracts.
        wanted: what may be cited, as in `Library.search`.

    Raises:
        PromptError: the question is empty.
        ContextLengthError: not even one reference fits.
    """
    started = time.perf_counter()
    if not isinstance(question, str) or not (question.strip() or image is not None):
        raise PromptError(f"the question must be a string that is not empty; got {question!r:.80}.")
    language = detect_language(question) if language == "auto" else language
    past = History() if past is None else past
    hits = library.search(question, limit=max(DEPTH, limit), image=image, **wanted)
    sure = confident(question, hits, has_image=image is not None)
    chosen = choose(question, sure, limit, library.meaning)
    if chosen and write is not None:
        return write_from(question, [found for found, *_ in sure][:limit], language, write)
    text = "\n".join(shown(extract, number, language) for number, extract in enumerate(chosen, start=1))
    text = text or NOTHING[language]
    seconds = time.perf_counter() - started
    return Reply(
        text=text,
        history=replace(past, turns=(*past.turns, Turn(question, text))),
        usage=Usage(0, 0),
        timings=Timings(0.0, seconds, seconds),
        finish_reason="stop",
        citations=tuple(extract.cite(number) for number, extract in enumerate(chosen, start=1)),
    )


def shown(extract: Extract, number: int, language: str) -> str:
    """An extract as a line of an answer."""
    if extract.found.kind == "text":
        return f"{in_one_line(extract.quote)} [{number}]"
    said = extract.found.text.split("\n")
    words = next((line for line in said if detect_language(line) == language), said[0])
    return f"{PurePath(extract.found.source).name}{'：' if language == 'zh' else ': '}{words} [{number}]"


def confident(question: str, hits: Sequence[Found], has_image: bool = False) -> list[Confident]:
    """What is about the question, best first, each with its rank and how sure that is."""
    weights = rarity(words_of(question, is_question=True), [context(hit) for hit in hits])
    found = [
        Confident(hit, rank, confidence(question, weights, hit, has_image), weights) for rank, hit in enumerate(hits)
    ]
    return [one for one in found if one.sure >= LEAST_CONFIDENCE]


def confidences(question: str, hits: Sequence[Found]) -> list[float]:
    """How sure it is, 0 to 1, that each of what was found is about the question; below `LEAST_CONFIDENCE` it is not
    cited."""
    weights = rarity(words_of(question, is_question=True), [context(hit) for hit in hits])
    return [confidence(question, weights, hit) for hit in hits]


def choose(question: str, sure: Sequence[Confident], limit: int, meaning: Meaning | None = None) -> list[Extract]:
    """The best sentences of what was found, and pictures.

    Args:
        meaning: the cosine between a question and texts: for those in another language, which share no word with it.
    """
    extracts, foreign = [], 0
    for one in sure:
        if one.found.kind == "picture":
            extracts.append(Extract(one.found, 0, len(one.found.text), min(1.0, one.sure)))
        elif is_foreign(question, one.found):
            foreign += 1
            if meaning is not None and foreign <= MAX_FOREIGN:
                extracts += by_meaning(question, one, meaning)
            # One Chinese name in it makes a part Chinese; what it says in English is found by its words all the same.
            extracts += [extract for extract in in_text(question, one) if is_own(question, one, extract)]
        else:
            extracts += in_text(question, one)
    extracts.sort(key=lambda extract: -extract.score)
    least = extracts[0].score * WORTH if extracts else 0.0
    return [extract for extract in different(extracts) if extract.score >= least][:limit]


def context(hit: Found) -> str:
    """What a part is found by: its heading and text; of a picture its file's name, too."""
    return "\n".join((name_in_words(hit.source) if hit.kind == "picture" else "", hit.heading, hit.text))


# Measured by benchmarks/library.py on questions that have an answer and such that have none: see RESULTS.md.
LEAST_CONFIDENCE = 0.5
# Cosines of multilingual-e5-small between a question and what is not, or surely is, about it; lower across languages.
FAR_NEAR = {False: (0.80, 0.90), True: (0.73, 0.83)}


def confidence(question: str, weights: dict[str, float], hit: Found, has_image: bool = False) -> float:
    """How sure it is that a part is about a question, 0 to 1: by the words that it has, and by its meaning."""
    said = coverage(weights, context(hit))
    if hit.kind == "picture":
        return max(said, (hit.likeness or 0.0) if has_image else 0.0)
    if hit.likeness is None:
        return said
    by_both = (said + near(hit.likeness, False)) / 2
    return max(near(hit.likeness, True), by_both) if is_foreign(question, hit) else by_both


def in_text(question: str, one: Confident) -> list[Extract]:
    """The sentences of a part, each by the words it has of the question, and a little by those of its neighbours: the
    answer often stands beside what names the thing."""
    hit = one.found
    places = list(sentences(hit.text))
    said = [hit.text[start:end] for start, end in places]
    own = [coverage(one.weights, text) for text in said]
    is_title = titles(hit, said)
    asked = words_of(question)
    wants_number = ASKS_NUMBER.search(question) is not None
    found = []
    for number, (start, end) in enumerate(places):
        beside = max((own[other] for other in (number - 1, number + 1) if 0 <= other < len(own)), default=0.0)
        score = 0.7 * own[number] + 0.15 * beside
        score += 0.1 * (wants_number and NUMBER.search(said[number]) is not None)
        if ASKS.search(said[number]) or words_of(said[number]) <= asked:
            score *= ECHO
        if LEADERS.search(said[number]) or is_title[number]:  # a table of contents, or what stands behind the source
            score = 0.0
        found.append(Extract(hit, start, end, min(1.0, score * one.sure**0.5 / (1 + 0.15 * one.rank))))
    return found


def titles(hit: Found, said: Sequence[str]) -> list[bool]:
    """Which sentences of a part only say its heading again, as a slide's title and the names of columns do; none where
    there are no others."""
    found = [hit.heading.endswith(in_one_line(text)) for text in said]
    return [False] * len(said) if all(found) else found


def is_foreign(question: str, hit: Found) -> bool:
    """Whether a text is in the other language than the question."""
    return hit.kind == "text" and hit.language != detect_language(question)


def is_own(question: str, one: Confident, extract: Extract) -> bool:
    """Whether a sentence is in the question's language and has a word of it."""
    return detect_language(extract.quote) == detect_language(question) and coverage(one.weights, extract.quote) > 0


def by_meaning(question: str, one: Confident, meaning: Meaning) -> list[Extract]:
    """The sentence of a part in another language that means most like the question."""
    places = list(sentences(one.found.text))
    said = [one.found.text[start:end] for start, end in places]
    places = [place for place, is_title in zip(places, titles(one.found, said), strict=True) if not is_title]
    likeness = meaning(question, [one.found.text[start:end] for start, end in places])
    if not likeness:
        return []
    best = max(likeness)
    start, end = places[likeness.index(best)]
    return [Extract(one.found, start, end, near(best, True) * one.sure**0.5 * FOREIGN)]


def near(cosine: float, foreign: bool) -> float:
    """A cosine as 0, what is not about it, to 1, what surely is."""
    far, close = FAR_NEAR[foreign]
    return min(max((cosine - far) / (close - far), 0.0), 1.0)


def different(extracts: Sequence[Extract]) -> list[Extract]:
    """Each sentence once, however many files have it; and nothing that says nothing of the question."""
    seen: set[str] = set()
    kept = []
    for extract in extracts:
        words = f"{extract.found.source if extract.found.kind == 'picture' else ''}{in_one_line(extract.quote)}"
        if words not in seen and extract.score > 0:
            seen.add(words)
            kept.append(extract)
    return kept


def write_from(question: str, parts: Sequence[Found], language: str, write: Write) -> Reply:
    """Have it written from as many references as fit, and mark what none of them says."""
    for count in range(len(parts), 0, -1):
        references = tuple(
            Reference(str(number), in_one_line(part.text)) for number, part in enumerate(parts[:count], start=1)
        )
        try:
            reply = write(question, references)
        except ContextLengthError:
            if count == 1:
                raise
            continue
        return held(reply, parts[:count], language)
    raise PromptError("there is no reference to answer from.")


def held(reply: Reply, parts: Sequence[Found], language: str) -> Reply:
    """Every sentence with the reference that says it, whatever number the model gave it; else with a mark."""
    said: list[str] = []
    citations: dict[int, Citation] = {}
    for start, end in sentences(reply.text):
        sentence = MARK.sub("", reply.text[start:end]).strip()
        if not sentence:
            continue
        place = next((place for place, part in enumerate(parts) if supports(part.text, sentence)), None)
        if place is None:
            said.append(sentence + UNSUPPORTED[language])
            continue
        said.append(f"{sentence} [{place + 1}]")
        if place + 1 not in citations:
            citations[place + 1] = best_quote(parts[place], sentence).cite(place + 1)
    text = ("" if language == "zh" else " ").join(said)
    turns = reply.history.turns
    history = replace(reply.history, turns=(*turns[:-1], replace(turns[-1], answer=text, references=())))
    return replace(
        reply, text=text, history=history, citations=tuple(citations[number] for number in sorted(citations))
    )


def best_quote(part: Found, sentence: str) -> Extract:
    """The sentence of a reference that has most of another one's words."""
    words = dict.fromkeys(words_of(sentence), 1.0)
    places = list(sentences(part.text)) or [(0, len(part.text))]
    score, (start, end) = max(((coverage(words, part.text[a:b]), (a, b)) for a, b in places), key=lambda pair: pair[0])
    return Extract(part, start, end, score)


__all__ = ["ANSWER_TOKENS", "READING_CONTEXT", "Line", "answer"]
