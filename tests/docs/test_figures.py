"""Figures in the words of a page are those that were measured of the weights in the package."""

from __future__ import annotations

import json
import re

import pytest

from tests.docs.pages import ROOT

MEASURED = json.loads((ROOT / "finetune/visglm-tiny/measured.json").read_text("utf-8"))
# What was measured → how the pages say it, in 100.
SAID = {
    "plain: count": (r"one to four things right in (\d+)", r"数对一到四个：(\d+) 次"),
    "plain: name": (r"names a single thing in (\d+)", r"叫出单个物体的名字（共 782 个）：(\d+) 次"),
    "plain: group": (r"its group in (\d+)", r"说对类别 (\d+) 次"),
    "plain: colour": (r"its colour in (\d+)", r"颜色 (\d+) 次"),
    "plain: presence": (r"whether something is there in (\d+)", r"答对有没有某样东西：(\d+) 次"),
    "plain: where": (r"where it is in (\d+)", r"答对在哪里：(\d+) 次"),
    "plain: position": (r"stands at a place in (\d+)", r"某个位置上的是什么：(\d+) 次"),
    "stamps: name": (r"it names (\d+) in 100", r"认得出\s+(\d+) 张"),
}


@pytest.mark.parametrize("measured", SAID)
@pytest.mark.parametrize("language", [0, 1], ids=["en", "zh"])
def test_the_page_of_visglm_tiny_says_what_was_measured(measured, language):
    page = ROOT / "docs" / ("en", "zh")[language] / "tiny.md"
    found = re.search(SAID[measured][language], page.read_text("utf-8"))
    share = sum(MEASURED["answers"][measured][key]["share"] for key in ("en", "zh")) / 2
    assert found and abs(int(found[1]) - 100 * share) <= 1, f"{measured}: {100 * share:.1f} in 100"


def test_how_many_parameters_it_has():
    millions = MEASURED["sizes"]["num_parameters"] / 1e6
    assert f"{millions:.1f} million parameters" in (ROOT / "docs/en/tiny.md").read_text("utf-8")
    assert f"{round(millions, 1) * 100:,.0f} 万参数" in (ROOT / "docs/zh/tiny.md").read_text("utf-8")
