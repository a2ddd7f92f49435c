"""Small pages of HTML that need nothing beside them: text, tables, line charts, pictures.

Every function returns `Html`; whatever is not `Html` already is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #8886 }
td { font-variant-numeric: tabular-nums }
summary { cursor: pointer; margin: .6rem 0 }
img { image-rendering: auto; max-width: 16rem; margin-right: .4rem }
pre { white-space: pre-wrap; background: #8882; padding: .6rem; border-radius: .3rem }
svg { max-width: 100%; height: auto } svg text { fill: currentColor; font: 12px system-ui, sans-serif }
"""
# Told apart on light and on dark pages, and by people who see red and green alike (Okabe and Ito's palette).
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 280, 64, 16, 28, 40  # of a chart and its margins, in pixels


class Html(str):
    """Text that is HTML already."""


def escape(value: Any) -> Html:
    """A value as HTML; four digits of a number are enough to read."""
    if isinstance(value, Html):
        return value
    text = f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)
    return Html(html.escape(text).replace("\n", "<br>"))


def page(title: str, *parts: Html) -> Html:
    """A whole page."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = f"<h1>{escape(title)}</h1>\n" + "\n".join(map(escape, parts))
    return Html(f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n')


def heading(text: Any) -> Html:
    return Html(f"<h2>{escape(text)}</h2>")


def paragraph(text: Any) -> Html:
    return Html(f"<p>{escape(text)}</p>")


def preformatted(text: Any) -> Html:
    """Commands, versions: every space and line as it is."""
    return Html(f"<pre>{html.escape(str(text))}</pre>")


def folded(title: Any, content: Html) -> Html:
    """What few want to read: shown when its title is clicked."""
    return Html(f"<details><summary>{escape(title)}</summary>{content}</details>")


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    """Columns under their names, where they have any; a cell is a value or `Html`."""
    top = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr></thead>" if any(header) else ""
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return Html(f"<table>{top}<tbody>\n{body}</tbody></table>")


def pictures(urls: Iterable[str]) -> Html:
    """Pictures side by side, each a data URL (see `visglm.reply.thumbnail_url`)."""
    return Html("".join(f'<img src="{html.escape(url)}" alt="">' for url in urls))


def line_chart(lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> Html:
    """Named lines through `(x, y)` points over shared axes, as SVG; points that are not finite leave a gap."""
    finite = [point for points in lines.values() for point in points if all(map(math.isfinite, point))]
    if not finite:
        return paragraph(f"{y_label}: nothing was measured.")
    x_ticks, y_ticks = (ticks(min(values), max(values)) for values in zip(*finite, strict=True))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    marks = []
    for tick in y_ticks:
        _, y = place(x_ticks[0], tick)
        marks.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#8884"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_ticks[0])
        marks.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:.6g}</text>')
    marks.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(x_label)}</text>')
    marks.append(f'<text x="4" y="14">{escape(y_label)}</text>')
    key = LEFT + 40  # behind the label of the other axis
    for number, (name, points) in enumerate(lines.items()):
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        line = f'd="{trace(points, place)}" fill="none" stroke="{colour}"'
        marks.append(f'<path {line} stroke-width="1.5" stroke-linecap="round"/>')
        marks.append(f'<path d="M{key} 10h18" stroke="{colour}" stroke-width="3"/>')
        marks.append(f'<text x="{key + 24}" y="14">{escape(name)}</text>')
        key += 44 + 7 * len(name)  # one behind the other, with room for what a letter takes at most
    return Html(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">{"".join(marks)}</svg>')


def trace(points: Sequence[tuple[float, float]], place: Any) -> str:
    """An SVG path through the points, begun anew behind each gap. A point on its own becomes a dot."""
    path, drawing = "", False
    for x, y in points:
        if not math.isfinite(x) or not math.isfinite(y):
            drawing = False
            continue
        across, up = place(x, y)
        path += f"L{across:.1f} {up:.1f}" if drawing else f"M{across:.1f} {up:.1f}h0"
        drawing = True
    return path


def ticks(low: float, high: float, num_wanted: int = 5) -> list[float]:
    """Round numbers, evenly spaced, from at most `low` to at least `high`."""
    spread = (high - low) or abs(high) or 1.0
    rough = spread / num_wanted
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(step for factor in (1, 2, 5, 10) if (step := factor * magnitude) >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]
