"""Errors speak Python; who typed a command is told flags."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping

CALL = r"[\w.]+\([^()]*\)"  # code that is shown as such stays as it is


def flags_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Argument → the flag that sets it, of a command's parser and of those below it."""
    flags: dict[str, str] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                flags |= flags_of(below)
        elif action.option_strings and action.dest != "help":
            flags[action.dest] = max(action.option_strings, key=len)
    return flags


def in_flags(text: str, flags: Mapping[str, str]) -> str:
    """What an error says of the arguments in `flags`, as who typed a command can follow it: `top_p must be …` becomes
    `--top-p must be …`, `allow_urls=True` becomes `--allow-urls`, `tokenizer=…` becomes `--tokenizer …`. Code in it,
    quoted words and the paths of files stay.
    """
    if not flags:
        return text
    names = "|".join(sorted(map(re.escape, flags), key=len, reverse=True))
    joined = "|".join(sorted((re.escape(name) for name in flags if "_" in name), key=len, reverse=True)) or "(?!)"
    pattern = re.compile(
        rf"(?P<code>{CALL}|'[^'\n]*'|\"[^\"\n]*\")"
        rf"|(?<![\w./-])(?P<set>{names})=(?P<value>'[^'\n]*'|\"[^\"\n]*\"|[\w…-]+)(?P<both> \(--[\w-]+\))?"
        rf"|(?<![\w./-])(?P<subject>{names})(?= must be )"
        rf"|(?<![\w./=-])(?P<joined>{joined})(?![\w./=-])"
    )

    def translate(match: re.Match[str]) -> str:
        if match["code"]:
            return match["code"]
        flag = flags[match["set"] or match["subject"] or match["joined"]]
        value = (match["value"] or "True").strip("'\"")
        return flag if value == "True" else f"{flag} {value}"

    return pattern.sub(translate, text).replace(", or None; got", ", or left out; got")
