"""Tables as spreadsheets save them, which nobody wrote for visglm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visglm.cli import main
from visglm.training.containers import open_rows

from .samples import write_pictures

ROWS = [
    ("pictures/0.png", "一只红色的圆盘。"),
    ("pictures/1.png", 'A "disc", green.'),
    ("pictures/2.png", "Blue; black"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path, 3)
    return tmp_path


def table(*records: tuple[str, ...], separator: str = ",", header: tuple[str, ...] = ("image", "caption")) -> str:
    """Every field in quotes, lines as Windows ends them."""
    lines = (separator.join('"' + field.replace('"', '""') + '"' for field in record) for record in (header, *records))
    return "".join(f"{line}\r\n" for line in lines)


def check(capsys: pytest.CaptureFixture[str], path: Path) -> tuple[int, str]:
    """Status and table of `visglm data check`."""
    status = main(["data", "check", str(path), "--max-length", "200"])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.mark.parametrize(
    "text, first_line",
    [
        (table(*ROWS), 2),
        ("\ufeff" + table(*ROWS), 2),
        (table(*ROWS, separator=";"), 2),
        ("\ufeff" + table(*ROWS, separator=";"), 2),
        (table(*ROWS, separator="\t"), 2),
        ("sep=;\r\n" + table(*ROWS, separator=";"), 3),
        ("\ufeffsep=,\r\n" + table(*ROWS), 3),
        ("\r\n" + table(*ROWS), 3),
        (table(*((*row, "", "") for row in ROWS), header=("image", "caption", "", "")), 2),
        (table(*((str(number), *row) for number, row in enumerate(ROWS)), header=("", "image", "caption")), 2),
        (table(*ROWS, ("", ""), (" ", "")), 2),
        (table(ROWS[0], ("", ""), *ROWS[1:]).replace("\r\n", "\n"), 2),
    ],
    ids=[
        *("plain", "mark", "semicolons", "mark and semicolons", "tabs", "sep", "mark and sep", "blank line first"),
        *("columns without a name", "index", "empty records behind", "empty record between"),
    ],
)
def test_every_table_that_a_spreadsheet_saves_gives_the_same_rows(folder, capsys, text, first_line):
    path = folder / "rows.csv"
    path.write_bytes(text.encode())
    status, out = check(capsys, path)
    assert status == 0 and out.startswith("3 rows can be used (3 caption)") and "not used" not in out
    rows = open_rows(path)
    assert [(rows[number]["image"], rows[number]["caption"]) for number in range(3)] == ROWS
    assert rows.where(0) == f"{path}:{first_line}"


def test_a_table_of_one_column_is_none_of_two(folder, capsys):
    """Nothing parts the names of its first line, and what its text holds does not either."""
    path = folder / "rows.csv"
    path.write_text("caption\nred; green\n\tblue\n")
    rows = open_rows(path)
    assert [rows[number]["caption"] for number in range(len(rows))] == ["red; green", "\tblue"]


def test_a_tsv_is_parted_by_tabs_whatever_its_names_hold(folder):
    path = folder / "rows.tsv"
    path.write_text("image\tcaption, or label\nb.png\tA, b; c\n")
    assert dict(open_rows(path)[0]) == {"image": "b.png", "caption, or label": "A, b; c"}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_that_holds_a_byte_order_mark_alone_is_blank(folder, capsys, end):
    path = folder / "rows.jsonl"
    lines = [json.dumps({"image": image, "caption": caption}, ensure_ascii=False) for image, caption in ROWS]
    path.write_bytes(("\ufeff" + end + end.join(lines)).encode())
    status, out = check(capsys, path)
    assert status == 0 and out.startswith("3 rows can be used")


@pytest.mark.parametrize(
    "value", [{"data": [{"image": "pictures/0.png", "caption": "A disc."}] * 3}, {"image": "a.png"}]
)
@pytest.mark.parametrize("indent", [2, "\t"])
def test_an_object_over_several_lines_is_one_clear_error(folder, capsys, value, indent):
    """Its lines are no rows, and hundreds of complaints about brackets would hide that."""
    path = folder / "rows.json"
    path.write_text(json.dumps(value, indent=indent))
    status, out = check(capsys, path)
    assert status == 1 and "several lines" in out and "a list" in out and str(path) in out
    assert len(out.splitlines()) == 1
