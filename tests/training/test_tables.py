"""Tables as spreadsheets save them, which nobody wrote for visglm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visglm.cli import main
from visglm.training.containers import open_rows
from visglm.training.formats import read_row

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
        (table(*ROWS, separator="|"), 2),
        (table(*ROWS, separator=", "), 2),
        (table(*ROWS, separator=", ").replace('"image", "caption"', "image, caption"), 2),
        (table(*ROWS, separator="| "), 2),
        (table(*ROWS, ("", ""), (" ", "")), 2),
        (table(ROWS[0], ("", ""), *ROWS[1:]).replace("\r\n", "\n"), 2),
    ],
    ids=[
        *("plain", "mark", "semicolons", "mark and semicolons", "tabs", "sep", "mark and sep", "blank line first"),
        *("bars", "commas and spaces", "names without quotes", "bars and spaces"),
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


def test_a_table_with_chinese_columns_is_read_as_it_is(folder, capsys):
    path = folder / "问答.csv"
    records = [(str(number), image, "这是什么？", caption) for number, (image, caption) in enumerate(ROWS)]
    path.write_bytes(("\ufeff" + table(*records, header=("ID", "图片", "问题", "回答"))).encode())
    status, out = check(capsys, path)
    assert status == 0 and out.startswith("3 rows can be used (3 question)") and "not used" not in out
    assert main(["data", "convert", str(path), str(folder / "common.jsonl")]) == 0
    common = json.loads((folder / "common.jsonl").read_text("utf-8").splitlines()[0])
    said = [message["content"] for message in common["messages"]]
    assert (common["images"], said) == ([ROWS[0][0]], ["<image>这是什么？", ROWS[0][1]])


def test_a_data_set_with_capitals_is_read_as_it_is(folder):
    """As Parquet files of the hub come."""
    datasets = pytest.importorskip("datasets")
    columns = {"Image": [str(folder / name) for name, _ in ROWS], "Text": [caption for _, caption in ROWS]}
    rows = datasets.Dataset.from_dict(columns).cast_column("Image", datasets.Image())
    read = [read_row(open_rows(rows)[number], "What?") for number in range(3)]
    assert [one.turns[0].answer for one in read] == [caption for _, caption in ROWS]


def test_a_table_may_be_called_a_text(folder, capsys):
    """As Flickr8k's captions.txt."""
    path = folder / "captions.txt"
    path.write_bytes(table(*ROWS).encode())
    status, out = check(capsys, path)
    assert status == 0 and out.startswith("3 rows can be used (3 caption)")


def test_spaces_belong_to_fields_where_names_have_none(folder):
    path = folder / "rows.csv"
    path.write_text('image,caption\na.png, "hi" he said\n')
    assert dict(open_rows(path)[0]) == {"image": "a.png", "caption": ' "hi" he said'}


def test_a_quote_that_is_not_written_twice_says_so(folder, capsys):
    path = folder / "rows.csv"
    path.write_text('image,caption\npictures/0.png,"A \\"disc\\", green."\n')
    status, out = check(capsys, path)
    assert status == 3 and "rows.csv:2" in out and "Write it twice" in out


def test_a_table_in_the_encoding_of_windows_says_what_to_do(folder, capsys):
    path = folder / "rows.csv"
    path.write_bytes(("\ufeff" + table(*ROWS, separator="\t")).encode("utf-16-le"))
    status, out = check(capsys, path)
    assert status == 1 and "is UTF-16. Save it as UTF-8" in out


def test_a_table_of_one_column_is_none_of_two(folder, capsys):
    """Nothing parts the names of its first line, and what its text holds does not either."""
    path = folder / "rows.csv"
    path.write_text("caption\nred; green\n\tblue\n")
    rows = open_rows(path)
    assert [rows[number]["caption"] for number in range(len(rows))] == ["red; green", "\tblue"]


@pytest.mark.parametrize("name", ["rows.xlsx", "ROWS.XLS", "rows.ods"])
def test_a_spreadsheet_is_told_how_to_be_saved(folder, capsys, name):
    path = folder / name
    path.write_bytes(b"PK\x03\x04 and so on")
    status, out = check(capsys, path)
    assert status == 1 and f"{path} is a spreadsheet. Save it as CSV in UTF-8" in out


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
