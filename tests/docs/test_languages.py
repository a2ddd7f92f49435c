"""Both languages have the same pages, and on each the same code, output, pictures and links; only the words differ."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import CHINESE, ENGLISH, README, README_ZH, Block, blocks_of

PAIRS = [(README, README_ZH), *((page, page.parents[1] / "zh" / page.name) for page in ENGLISH)]
WITHOUT_FENCES = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def pages_linked(page: Path) -> list[str]:
    text = WITHOUT_FENCES.sub("", page.read_text("utf-8"))
    targets = re.findall(r'(?:\]\(|src=")([^)"]+)', text)
    # Anchors are headings, and each language links to its own README and folder.
    return sorted(re.sub(r"README\w*\.md|/(en|zh)/", "…", target.partition("#")[0]) for target in targets)


def is_tree(block: Block) -> bool:
    return block.text.startswith("visglm/")


def test_both_have_the_same_pages():
    assert [page.name for page in ENGLISH] == [page.name for page in CHINESE]


@pytest.mark.parametrize("english, chinese", PAIRS, ids=lambda path: "/".join(path.parts[-2:]))
def test_the_code_is_the_same(english, chinese):
    ours, theirs = ([block for block in blocks_of(page) if not is_tree(block)] for page in (english, chinese))
    assert [block.language for block in ours] == [block.language for block in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.code == other.code, f"{one} and {other}"
        assert one.untested == other.untested, f"{one} and {other} do not leave the same lines untested"


@pytest.mark.parametrize("english, chinese", PAIRS, ids=lambda path: "/".join(path.parts[-2:]))
def test_they_lead_to_the_same_places(english, chinese):
    assert pages_linked(english) == pages_linked(chinese)


@pytest.mark.parametrize("page", CHINESE, ids=lambda path: path.name)
def test_chinese_pages_are_in_chinese(page):
    """Every heading, paragraph and row has Chinese in it, unless it is a name."""
    text = WITHOUT_FENCES.sub("", page.read_text("utf-8"))
    chinese, letters = (len(re.findall(pattern, text)) for pattern in (r"[\u4e00-\u9fff]", r"[A-Za-z]+"))
    assert chinese > letters, f"{chinese} characters beside {letters} words of letters"
