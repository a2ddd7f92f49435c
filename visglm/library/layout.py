"""How a page reads: its lines in the order in which people read them, and the paragraphs that they make."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from .pieces import Box, Line, Piece, union

WIDE_GAP = 1.6  # between lines, in the usual distance of this page: a new paragraph
ENDS = "。！？!?.:：；;"
ALIKE = 0.8  # least ratio of the heights of two lines of one paragraph
CELLS_APART = 1.5  # heights of the line, from which on a gap in it parts the cells of a table
# What makes two columns of running text, rather than of a table.
FEWEST_LINES = 3  # of a column
FILLED = 0.6  # of its width that its usual line takes
LEAST_WIDTH = 8.0  # of its usual line, in heights
MOST_ACROSS = 0.25  # of all lines that may run across both: titles, captions
SAME_LINE = 0.4  # of a height, that what stands on one line may be apart


@dataclass
class Row:
    """One line as it is printed, in any unit, upright, from the lower left corner.

    Args:
        box: where it is on the page as one sees it, in shares. cells: of a table, that stand on it.
    """

    text: str
    left: float
    bottom: float
    right: float
    top: float
    box: Box = (0.0, 0.0, 1.0, 1.0)
    cells: int = 1

    @property
    def height(self) -> float:
        return max(self.top - self.bottom, 1e-9)

    @property
    def width(self) -> float:
        return self.right - self.left


def paragraphs(rows: Sequence[Row], alike: float = ALIKE) -> Iterator[list[Row]]:
    """Rows that run on are one: no wide gap, no jump up or aside, and none that was cut short behind its last stop.
    What stands in cells is one by itself.

    Args:
        alike: how much the heights of two rows of one differ at most, as a ratio.
    """
    gaps = [one.top - other.top for one, other in zip(rows, rows[1:], strict=False) if one.top > other.top]
    usual = median(gaps) if gaps else 0.0
    paragraph: list[Row] = []
    for row in rows:
        if paragraph:
            last = paragraph[-1]
            step, height = last.top - row.top, last.height
            right = max(other.right for other in paragraph)
            ended = last.text[-1] in ENDS and last.right < right - 1.5 * height
            apart = step > max(WIDE_GAP * usual, 2.5 * height) or step < 0.3 * height
            other_size = not alike < row.height / height < 1 / alike
            aside = row.left > right or row.right < min(other.left for other in paragraph)
            if ended or apart or other_size or aside or max(row.cells, last.cells) > 1:
                yield paragraph
                paragraph = []
        paragraph.append(row)
    if paragraph:
        yield paragraph


def piece_of(paragraph: Sequence[Row], page: int | None = None, heading: str = "") -> Piece:
    """Its rows, each on a line, with their boxes."""
    text, lines = "", list[Line]()
    for row in paragraph:
        text += "\n" if text else ""
        lines.append((len(text), len(text) + len(row.text), row.box))
        text += row.text
    return Piece(text, page, heading, tuple(lines))


def in_order(rows: Sequence[Row]) -> list[Row]:
    """As they are read: column by column where there are columns, else from top to bottom; what stands on one line, as
    one row."""
    gutter = _gutter(rows)
    if gutter is None:
        return list(_on_lines(rows))
    ordered: list[Row] = []
    waiting: list[Row] = []
    for row in sorted(rows, key=lambda row: -row.top):
        if _side(row, gutter) == 0:  # what runs across ends the columns above it
            ordered += _by_columns(waiting, gutter)
            waiting = []
            ordered.append(row)
        else:
            waiting.append(row)
    return ordered + _by_columns(waiting, gutter)


def _by_columns(rows: Sequence[Row], gutter: float) -> list[Row]:
    return [row for side in (-1, 1) for row in in_order([row for row in rows if _side(row, gutter) == side])]


def _side(row: Row, gutter: float) -> int:
    """-1 left of it, 1 right of it, 0 across."""
    slack = 0.3 * row.height
    return -1 if row.right - slack <= gutter else 1 if row.left + slack >= gutter else 0


def _gutter(rows: Sequence[Row]) -> float | None:
    """Where two columns of running text are parted; None where there is one, or a table."""
    best: tuple[int, float] | None = None
    for gutter in {row.left for row in rows}:
        sides = [_side(row, gutter) for row in rows]
        across = sides.count(0)
        if across > MOST_ACROSS * len(rows) or (best is not None and across >= best[0]):
            continue
        if all(_runs_on([row for row, at in zip(rows, sides, strict=True) if at == side]) for side in (-1, 1)):
            best = (across, gutter)
    return None if best is None else best[1]


def _runs_on(rows: Sequence[Row]) -> bool:
    """Whether this is a column of running text."""
    if len(rows) < FEWEST_LINES:
        return False
    usual = median(row.width for row in rows)
    whole = max(row.right for row in rows) - min(row.left for row in rows)
    return usual >= FILLED * whole and usual >= LEAST_WIDTH * median(row.height for row in rows)


def _on_lines(rows: Sequence[Row]) -> Iterator[Row]:
    """From top to bottom; what stands beside each other is one."""
    line: list[Row] = []
    for row in sorted(rows, key=lambda row: -(row.top + row.bottom)):
        if line and line[0].top + line[0].bottom - row.top - row.bottom > 2 * SAME_LINE * line[0].height:
            yield _joined(line)
            line = []
        line.append(row)
    if line:
        yield _joined(line)


def _joined(line: Sequence[Row]) -> Row:
    if len(line) == 1:
        return line[0]
    line = sorted(line, key=lambda row: row.left)
    gaps = [other.left - one.right for one, other in zip(line, line[1:], strict=False)]
    return Row(
        " ".join(row.text for row in line), line[0].left, min(row.bottom for row in line),
        max(row.right for row in line), max(row.top for row in line), union([row.box for row in line]) or line[0].box,
        1 + sum(gap > CELLS_APART * line[0].height for gap in gaps),
    )  # fmt: skip


def upright(corners: Sequence[tuple[float, float]], degrees: float) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of a line on a page that was turned so, y upwards.

    Args:
        corners: x and y in pixels, y downwards, clockwise from the upper left one.
        degrees: by which its lines run downwards.
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across = [x * cos + y * sin for x, y in corners]
    down = [y * cos - x * sin for x, y in corners]
    return min(across), -max(down), max(across), -min(down)


def slant(lines: Sequence[Sequence[tuple[float, float]]]) -> float:
    """By how many degrees most lines run downwards, from the corners of each; short ones do not tell."""
    angles = []
    for (left, top), (right, end), *_, (_, bottom) in lines:
        if right - left > 3 * abs(bottom - top):
            angles.append(math.degrees(math.atan2(end - top, right - left)))
    return median(angles) if angles else 0.0
