"""What a setting may be, as data: one `Rule` each, one sentence when it is broken. Loads nothing heavy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from .errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """What a setting may be.

    Args:
        kind: bool, int, float, str, Path (or a str), list (of rows, or the path of some), or any class. A bool is no
            number, and 4.0 no whole one.
        lowest, highest: of a number, both allowed; None for no end. There is no highest without a lowest.
        optional: None is allowed.
        or_zero: 0 is allowed below `lowest`.
        names: that a text must be one of; with `several`, that its parts between commas must be of.
        hint: said at the end of the sentence.
    """

    kind: type
    lowest: float | None = None
    highest: float | None = None
    optional: bool = False
    or_zero: bool = False
    names: tuple[str, ...] = ()
    several: bool = False
    hint: str = ""

    def take(self, name: str, value: Any) -> Any:
        """The value as plain Python has it: numbers of NumPy become int and float, paths become text.

        Raises:
            ConfigError: it is of another type or out of range. Nothing is clamped or converted.
        """
        if value is None and self.optional:
            return None
        if isinstance(value, KINDS.get(self.kind, self.kind)) and isinstance(value, bool) == (self.kind is bool):
            plain = self.kind(value) if self.kind in (int, float) else str(value) if isinstance(value, Path) else value
            if self.allows(plain):
                return plain
        hint = f" {self.hint}" if self.hint else ""
        raise ConfigError(f"{name} must be {self.describe()}; got {shorten(value)}.{hint}")

    def allows(self, value: Any) -> bool:
        if self.kind in (int, float):
            inside = (self.lowest is None or value >= self.lowest) and (self.highest is None or value <= self.highest)
            return math.isfinite(value) and (inside or (self.or_zero and value == 0))
        if self.names:
            parts = [part.strip() for part in value.split(",")] if self.several else [value]
            return set(parts) <= {*self.names}
        return True

    def describe(self) -> str:
        """Such as "a whole number between 1 and 8, or None"."""
        if self.names:
            what = f"one of {', '.join(self.names)}" + (", or several separated by commas" if self.several else "")
        elif self.lowest is not None:
            ends = (
                f"between {number(self.lowest)} and {number(self.highest)}"
                if self.highest is not None
                else (f"at least {number(self.lowest)}")
            )
            what = ends + (", or 0" if self.or_zero else "") + (", a whole number" if self.kind is int else "")
        else:
            what = NOUNS.get(self.kind, self.kind.__name__)
        return what + (", or None" if self.optional else "")


# Kind → the types whose values are of it.
KINDS: dict[type, Any] = {
    bool: bool, int: Integral, float: Real, str: str, Path: (str, Path), list: (str, Path, list, tuple),
}  # fmt: skip
NOUNS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    list: "a path or a list of rows",
}


def number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def check(settings: Any, rules: Mapping[str, Rule]) -> None:
    """Hold the fields of a dataclass, at the end of its `__post_init__`, against their rules.

    Raises:
        ConfigError: one of them breaks its rule.
    """
    for field in dataclasses.fields(settings):
        object.__setattr__(settings, field.name, rules[field.name].take(field.name, getattr(settings, field.name)))


def check_call(rules: Mapping[str, Rule], **arguments: Any) -> None:
    """The same for arguments of a call."""
    for name, value in arguments.items():
        rules[name].take(name, value)
