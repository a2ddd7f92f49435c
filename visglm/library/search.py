"""What a question or a picture finds: by words, by meaning and by looks, each ranked by itself, then put together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..errors import ConfigError
from .pieces import Box, Line, union
from .store import HEAD, Store, among, quoted

DEPTH = 50  # of each ranking
# What the best by words counts beside the best by meaning: see RESULTS.md.
WORDS = 0.4
KINDS = ("text", "picture")
LANGUAGES = ("zh", "en")


@dataclass(frozen=True)
class Found:
    """A part of a document that was found, or a picture.

    Args:
        source: the file.
        page: from 1 on; None where there are none.
        box: around it, in shares of the page from its upper left corner.
        heading: of the section.
        kind: "text" or "picture".
        text: as it stands there; of a picture what the model says that it shows.
        start: in the text of the document, in characters.
        end: there, too.
        score: of all rankings together; compare it within one search only.
        likeness: the cosine between question and part, or between two pictures; None where it was not among the
            nearest.
        words: the BM25 of the words; None where it was not among the best.
        modified: when the file was, in seconds of the epoch.
        part: its number in the document.
        lines: where its lines stand.
    """

    source: str
    page: int | None
    box: Box | None
    heading: str
    kind: str
    text: str
    start: int
    end: int
    score: float
    likeness: float | None = None
    words: float | None = None
    language: str = ""
    modified: float = 0.0
    part: int = 0
    lines: tuple[Line, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Filter:
    """What may be found at all.

    Args:
        files: patterns (`*.pdf`, `reports/*`), each of the end of a path; empty for all.
        kinds: of `KINDS`. languages: of `LANGUAGES`; of pictures none counts.
        after, before: when the file was modified.
    """

    files: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    after: datetime | float | None = None
    before: datetime | float | None = None

    @classmethod
    def of(cls, **values: Any) -> Filter:
        """From what a caller gives: one text or several.

        Raises:
            ConfigError: a kind or language is none.
        """
        tuples: dict[str, Any] = {name: several(values.pop(name, None)) for name in ("files", "kinds", "languages")}
        for name, allowed in (("kinds", KINDS), ("languages", LANGUAGES)):
            if unknown := [value for value in tuples[name] if value not in allowed]:
                raise ConfigError(f"{name} must be of {', '.join(allowed)}; got {unknown[0]!r:.80}.")
        for name in ("after", "before"):
            value = values.get(name)
            if isinstance(value, bool) or not isinstance(value, datetime | float | int | None):
                raise ConfigError(f"{name} must be a datetime or seconds of the epoch; got {value!r:.80}.")
        return cls(**tuples, **values)

    @property
    def where(self) -> str:
        """As a condition of SQL."""
        conditions = [f"part > {HEAD}"]
        if self.files:
            patterns = (f"regexp_like(source, {quoted(pattern(name))})" for name in self.files)
            conditions.append(f"({' OR '.join(patterns)})")
        if self.kinds:
            conditions.append(among("kind", self.kinds))
        if self.languages:
            conditions.append(among("language", [*self.languages, ""]))
        for name, sign in (("after", ">="), ("before", "<")):
            moment = getattr(self, name)
            if moment is not None:
                seconds = moment.timestamp() if isinstance(moment, datetime) else float(moment)
                conditions.append(f"modified {sign} {seconds!r}")
        return " AND ".join(conditions)


def several(value: str | Iterable[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def pattern(name: str) -> str:
    """A pattern of a shell as a regular expression that holds of the end of a path, from a slash on."""
    parts = [".*" if letter == "*" else "." if letter == "?" else re.escape(letter) for letter in name]
    return f"(^|/){''.join(parts)}$"


def by_text(
    store: Store, question: str, vector: Any, wanted: Filter, limit: int, look: Any = None, looker: str = ""
) -> list[Found]:
    """Best first.

    Args:
        vector: of the question; None to go by words alone.
        look: of a picture that goes with the question. looker: who looked at it.
    """
    rankings = [store.by_words(question, wanted.where, DEPTH)] if question.strip() else []
    if vector is not None:
        # A vector prefers texts in the question's own language: each language is ranked by itself, pictures too.
        for language in (*LANGUAGES, ""):
            where = f"{wanted.where} AND language = {quoted(language)}"
            rankings.append(store.by_vector("vector", vector, where, DEPTH))
    if look is not None:
        rankings.append(store.by_vector("look", look, f"{wanted.where} AND looker = {quoted(looker)}", DEPTH))
    return fuse(rankings)[:limit]


def fuse(rankings: Sequence[list[dict[str, Any]]]) -> list[Found]:
    """Rankings of the same things put together by how far each stands behind the best of its ranking: a second place
    may be as good as the first, or far behind, and its rank alone does not tell."""
    scores: dict[tuple[str, int], float] = {}
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for ranking in rankings:
        for row, share in zip(ranking, shares(ranking), strict=True):
            key = (row["source"], row["part"])
            scores[key] = scores.get(key, 0.0) + share
            rows[key] = rows.get(key, {}) | row
    best = sorted(scores, key=lambda key: (-scores[key], key))
    return [found(rows[key], scores[key]) for key in best]


def shares(ranking: Sequence[dict[str, Any]]) -> list[float]:
    """What each counts: by words in proportion to its BM25; by cosine, whose scale says nothing, between the last and
    the first."""
    if not ranking:
        return []
    if "_score" in ranking[0]:
        return [WORDS * row["_score"] / max(ranking[0]["_score"], 1e-9) for row in ranking]
    nearest, farthest = ranking[0]["_distance"], ranking[-1]["_distance"]
    width = farthest - nearest
    return [(1 - WORDS) * ((farthest - row["_distance"]) / width if width > 0 else 1.0) for row in ranking]


def found(row: dict[str, Any], score: float) -> Found:
    """A row of the store as people get it."""
    numbers = row["lines"] or []
    lines = tuple(
        (int(numbers[place]), int(numbers[place + 1]), tuple(numbers[place + 2 : place + 6]))
        for place in range(0, len(numbers), 6)
    )
    distance = row.get("_distance")
    return Found(
        source=row["source"], page=row["page"], box=union([box for *_, box in lines]), heading=row["heading"],
        kind=row["kind"], text=row["text"], start=row["start"], end=row["end"], score=score,
        likeness=None if distance is None else 1.0 - distance, words=row.get("_score"), language=row["language"],
        modified=row["modified"], part=row["part"], lines=lines,
    )  # fmt: skip
