"""Pages of HTML: what is written on them, and that nothing on them is taken for markup."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from visglm.training.page import Html, escape, folded, line_chart, page, pictures, table, ticks


def test_text_is_escaped_and_html_is_not() -> None:
    cells = table(["<b>"], [["a < b\nc", Html("<i>x</i>"), 0.123456, None]])
    assert "<th>&lt;b&gt;</th>" in cells
    assert "<td>a &lt; b<br>c</td><td><i>x</i></td><td>0.1235</td><td>–</td>" in cells


def test_a_table_without_names_has_no_empty_line_on_top() -> None:
    assert "<th" not in table(["", ""], [["rows", 3]])


def test_page_is_whole_and_needs_nothing_beside_it() -> None:
    text = page("猫 & dog", escape("1 < 2"), pictures(["data:image/png;base64,AA=="]))
    assert "<title>猫 &amp; dog</title>" in text and "1 &lt; 2" in text
    assert re.findall(r'(?:src|href)="(.{5})', text) == ["data:"]


def test_what_is_folded_keeps_its_content() -> None:
    assert folded("a & b", Html("<pre>c</pre>")) == ("<details><summary>a &amp; b</summary><pre>c</pre></details>")


def test_picture_urls_cannot_leave_their_attribute() -> None:
    assert '"><script' not in pictures(['"><script>'])


def test_line_chart_places_points_to_scale() -> None:
    chart = line_chart({"loss <1>": [(0, 0), (5, 10), (10, 5)]}, "step", "loss")
    svg = ElementTree.fromstring(chart)
    paths = [path.get("d") for path in svg.iter("path") if path.get("stroke-width") == "1.5"]
    assert len(paths) == 1
    (x0, y0), (x1, y1), (x2, y2) = ((float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", paths[0]))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y2 == pytest.approx(y2 - y1, abs=0.2) and y1 < y2 < y0
    words = [text.text for text in svg.iter("text")]
    assert {"step", "loss", "loss <1>", "0", "10"} <= set(words)


def test_line_chart_has_room_for_the_names_of_five_lines() -> None:
    names = ["whole ViT", "first round", "second round", "third round", "fourth round"]
    svg = ElementTree.fromstring(line_chart({name: [(0, 0), (1, 1)] for name in names}, "step", "percent"))
    width = float(svg.get("viewBox").split()[2])
    starts = [float(text.get("x")) for text in svg.iter("text") if text.text in names]
    for name, start, limit in zip(names, starts, [*starts[1:], width + 24], strict=True):
        assert start + 6.5 * len(name) < limit - 24  # the next has its stroke before it


def test_line_chart_leaves_a_gap_where_a_value_is_not_finite() -> None:
    chart = line_chart({"loss": [(0, 1), (1, math.nan), (2, 1), (3, 2)]}, "step", "loss")
    path = re.search(r'd="([^"]*)" fill="none"', chart)[1]
    assert path.count("M") == 2 and path.count("L") == 1 and "nan" not in chart


def test_line_chart_of_nothing_says_so() -> None:
    assert "nothing was measured" in line_chart({"loss": [(1, math.inf)]}, "step", "loss")


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.1, 0.9, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3, 3, [3, 4]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0, 0, [0, 0.2]),
    ],
)
def test_ticks_are_round_and_hold_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)
