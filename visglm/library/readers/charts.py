"""Charts of Office as tables: the numbers that they were drawn from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ...errors import require
from ..pieces import LibraryLimits, Piece, check_size

CHART = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
# Of a series: where its points lie, and how high, wide or large they are.
ALONG, VALUES = (f"{CHART}cat", f"{CHART}xVal"), (f"{CHART}val", f"{CHART}yVal", f"{CHART}bubbleSize")
MAX_POINTS = 200_000  # of a series; what is declared may be any number

Points = dict[int, str]  # number of a point → what is said there


def read_chart(chart: Any, limits: LibraryLimits, page: int | None = None, heading: str = "") -> Iterator[Piece]:
    """A row for each category, under the title and the names of the series. Series with points of
    their own stand apart.

    Args:
        chart: the element `chartSpace`, or one that holds it.
    """
    title = _title(chart.find(f".//{CHART}chart/{CHART}title"))
    tables: list[tuple[Points, list[str], list[Points]]] = []  # of series over the same points
    for series in chart.iter(f"{CHART}ser"):
        along = next((_points(found) for found in map(series.find, ALONG) if found is not None), Points())
        if not tables or (along and tables[-1][0] and along != tables[-1][0]):
            tables.append((along, [], []))
        last, names, columns = tables[-1]
        last.update(along)
        for found in (found for found in map(series.find, VALUES) if found is not None):
            names.append(_title(series.find(f"{CHART}tx")))
            columns.append(_points(found))
    if not tables and title:
        yield Piece(title, page, heading)
    for along, names, columns in tables:
        yield from _table(along, names, columns, title, limits, page, heading)


def _table(
    along: Points, names: list[str], columns: list[Points], title: str, limits: LibraryLimits, page: int | None,
    heading: str,
) -> Iterator[Piece]:  # fmt: skip
    numbers = sorted({number for column in columns for number in column} | set(along))
    check_size(len(numbers) * len(columns), limits.max_characters, "values in a chart")
    said = " | ".join(filter(None, names))
    if title or said:
        yield Piece(": ".join(filter(None, (title, said))), page, heading)
    heading = ": ".join(filter(None, (heading, title, said)))
    for number in numbers:
        cells = [along.get(number, ""), *(column.get(number, "") for column in columns)]
        yield Piece(" | ".join(cells).strip(" |"), page, heading)


def _title(element: Any) -> str:
    """What stands in a title or the name of a series: written there, or taken from a cell."""
    if element is None:
        return ""
    words = [found.text or "" for found in element.iter(f"{DRAWING}t", f"{CHART}v")]
    return " ".join("".join(words).split())


def _points(element: Any) -> Points:
    """What was drawn, by the numbers of the points; of categories in levels, the outer first."""
    found: Points = {}
    form = element.findtext(f".//{CHART}formatCode") or ""
    levels = list(element.iter(f"{CHART}lvl")) or [element]
    for level in reversed(levels):
        said = Points()
        for point in level.iter(f"{CHART}pt"):
            number = point.get("idx", "")
            if number.isdecimal() and int(number) < MAX_POINTS:
                said[int(number)] = _shown(point.findtext(f"{CHART}v") or "", form)
        found = _joined(found, said) if found else said
    return found


def _joined(outer: Points, inner: Points) -> Points:
    """An outer category is said once, and holds up to the next one."""
    joined, last = Points(), ""
    for number in sorted(outer.keys() | inner.keys()):
        last = outer.get(number, last)
        joined[number] = " ".join(filter(None, (last, inner.get(number, ""))))
    return joined


def _shown(value: str, form: str) -> str:
    """A value as the chart shows it: a day, a share in percent, a number without what floats add to it."""
    try:
        number = float(value)
    except ValueError:
        return value
    if form.endswith("%"):
        return f"{100 * number:.10g}%"
    if require("library", "openpyxl.styles.numbers").is_date_format(form):
        with suppress(ValueError, OverflowError):  # a day that no calendar has stays a number
            return str(require("library", "openpyxl.utils.datetime").from_excel(number)).removesuffix(" 00:00:00")
    return f"{number:.15g}"
