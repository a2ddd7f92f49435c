"""MODEL_CARD.md: what stands between its markers is written by the evaluations."""

from __future__ import annotations

import re
from pathlib import Path


def write_between(card: Path, name: str, text: str) -> None:
    """Put `text` between the markers `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: the card has no such markers.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    written, number = re.subn(pattern, lambda _: f"{begin}\n{text}\n{end}", card.read_text("utf-8"), flags=re.DOTALL)
    if number != 1:
        raise ValueError(f"{card} should have {begin} … {end} once; it has them {number} times.")
    card.write_text(written, "utf-8")
