"""Sentences of both languages, and parts that stay within a section, a page and a size."""

from __future__ import annotations

import pytest

from visglm.library import Piece
from visglm.library.chunks import MAX_WEIGHT, chunks, in_one_line, sentences, weight


@pytest.mark.parametrize(
    "text, expected",
    [
        ("First one. Second one! Third?", ["First one.", "Second one!", "Third?"]),
        ("第一句。第二句！“第三句？”第四句", ["第一句。", "第二句！", "“第三句？”", "第四句"]),
        ("It costs 3.50 dollars, e.g. today. Dr. Who came.", ["It costs 3.50 dollars, e.g. today.", "Dr. Who came."]),
        ("A line that\ngoes on. 中文句。Then.", ["A line that\ngoes on.", "中文句。", "Then."]),
        ("One\n\nTwo", ["One", "Two"]),
        ("List:\n- a\n- b", ["List:", "- a", "- b"]),
        ("版本 2.0 发布了。见 example.com 网站。", ["版本 2.0 发布了。", "见 example.com 网站。"]),
        ("   ", []),
    ],
)
def test_sentences(text, expected):
    assert [text[start:end] for start, end in sentences(text)] == expected


def test_a_sentence_without_an_end_is_cut_and_loses_nothing():
    text = "词" * 1500
    assert "".join(text[start:end] for start, end in sentences(text)) == text
    text = "word, " * 500
    assert "".join(text[start:end] for start, end in sentences(text)).replace(" ", "") == text.replace(" ", "")


# Each of these took time by the square of its length, or worse: at this one, hours.
ENDLESS = {
    "words": "word " * 100_000, "letters": "x" * 500_000, "Chinese": "我" * 200_000,
    "blanks": "a." + " " * 500_000 + "x",
    "dots": "." * 500_000 + "x", "marks": "!?" * 250_000 + "x", "dots and blanks": ". " * 200_000,
    "dots and quotes": '."' * 200_000 + "x", "tabs": "\n\t" * 100_000 + "x", "commas": "我，" * 20_000,
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_of_a_sentence_takes_time_that_grows_with_it(name):
    text = ENDLESS[name]
    found = list(chunks([Piece(text)]))
    assert all(chunk.text == text[chunk.start : chunk.end] for chunk in found)
    assert "".join("".join(chunk.text for chunk in found).split()) == "".join(text.split())


def test_neighbours_join_within_one_section_and_page_only():
    pieces = [
        Piece("a", 1, "one"), Piece("b", 1, "one"), Piece("c", 1, "two"), Piece("d", 2, "two"), Piece("", 2, "two"),
        Piece("e", 2, "two"),
    ]  # fmt: skip
    assert [(chunk.text, chunk.page, chunk.heading) for chunk in chunks(pieces)] == [
        ("a\n\nb", 1, "one"), ("c", 1, "two"), ("d\n\ne", 2, "two"),
    ]  # fmt: skip


def test_long_pieces_are_parted_between_sentences_and_keep_their_lines():
    lines, text = [], ""
    for number in range(60):
        line = f"Sentence number {number} says something of its own."
        lines.append((len(text), len(text) + len(line), (0.1, number / 60, 0.9, (number + 1) / 60)))
        text += line + "\n"
    found = list(chunks([Piece(text, 3, "", tuple(lines), start=100)]))
    assert len(found) > 2 and all(weight(chunk.text) <= MAX_WEIGHT for chunk in found)
    for chunk in found:
        assert chunk.text == text[chunk.start - 100 : chunk.end - 100]
        for start, end, box in chunk.lines:
            assert chunk.text[start:end] == f"Sentence number {round(box[1] * 60)} says something of its own."
    assert sum(len(chunk.lines) for chunk in found) == 60


def test_lines_of_a_page_become_one():
    assert in_one_line("这是一\n句话，\n再来") == "这是一句话，再来"
    assert in_one_line("one\ntwo 中\nthree") == "one two 中 three"
