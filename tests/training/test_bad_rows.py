"""What strangers write into data files: every row that cannot be used is counted and told, and none ends a run."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import get_worker_info

from visglm import VisGLM
from visglm.cli import main
from visglm.errors import ConfigError, DataError, TrainingError, VisGLMError, counted
from visglm.training import check_data, convert_data
from visglm.training.containers import open_rows
from visglm.training.formats import read_row

from .samples import captions, picture, write_lines, write_pictures

FAST: dict[str, Any] = {
    "max_steps": 1, "batch_size": 2, "num_workers": 0, "held_out": 0.2, "report_to": "none",
    "rank": 2, "accumulation": 1, "replay": 0.0,
    "num_samples": 2, "max_bad_rows": 0.5,
}  # fmt: skip
GOOD = json.dumps({"image": "pictures/0.png", "caption": "A disc."})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path, 3)
    return tmp_path


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained()


def check(capsys: pytest.CaptureFixture[str], path: Path | str, *flags: str) -> tuple[int, str]:
    """Status and table of `visglm data check`."""
    status = main(["data", "check", str(path), "--max-length", "200", *flags])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def row_of(answer: Any = "A disc.", image: Any = "pictures/0.png", **more: Any) -> str:
    return json.dumps({"image": image, "caption": answer, **more})


# ---- one row, whatever it is ----------------------------------------------------------------------------------------

BAD_LINES = {
    "a number of 6,000 digits": ('{"image": "pictures/0.png", "caption": "A.", "id": ' + "1" * 6000 + "}", "digits"),
    "nested 3,000 deep": ('{"image": ' + "[" * 3000 + "]" * 3000 + ', "caption": "A."}', "nested"),
    "nested 500 deep": ('{"image": ' + "[" * 500 + "]" * 500 + ', "caption": "A."}', "nested"),
    "half a character in the answer": ('{"image": "pictures/0.png", "caption": "A \\ud83d."}', "half of a character"),
    "half a character in the path": ('{"image": "pictures/\\ud83d.png", "caption": "A."}', "half of a character"),
    "a path of 5,000 characters": (row_of(image="a" * 5000), "no picture"),
    "a path with a null character": (row_of(image="a\0.png"), "no picture"),
    "an empty path": ('{"images": [""], "messages": [{"role": "user", "content": "<image>A?"}, '
                      '{"role": "assistant", "content": "B."}]}', "empty"),
    "a folder": (row_of(image="pictures"), "no picture"),
    "a number in place of a picture": (row_of(image=5), "int"),
    "an object in place of a picture": (row_of(image={"file": "a.png"}), "file"),
    "a role that is an object": ('{"conversations": [{"from": {}, "value": "A?"}]}', "from"),
    "a list of messages in messages": ('{"messages": [[["A?"]]]}', "role"),
    "a number": ("5", "int"),
    "a URL": (row_of(image="https://example.org/a.png"), "URL"),
    "an address of a file": (row_of(image="file:///tmp/a.png"), "by its path"),
    "no UTF-8": ('{"image": "pictures/0.png", "caption": "caf\udce9"}', "UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_counted_with_its_number_and_the_others_are_used(folder, capsys, name):
    line, problem = BAD_LINES[name]
    path = folder / "rows.jsonl"
    path.write_bytes("\n".join([GOOD, line, GOOD]).encode("utf-8", "surrogateescape"))
    status, out = check(capsys, path)
    assert status == 3
    assert "2 rows can be used" in out
    told = [text for text in out.splitlines() if "rows.jsonl:2:" in text and "same as" not in text]
    assert len(told) == 1 and problem in told[0] and len(told[0]) < 1000


@pytest.mark.parametrize("door", ["finetune", "evaluate"])
def test_no_bad_line_ends_training_or_evaluation(folder, vlm, door):
    lines = [GOOD.replace("/0", f"/{number % 3}") for number in range(len(BAD_LINES) + 5)]
    bad = [line for line, _ in BAD_LINES.values()]
    (folder / "rows.jsonl").write_bytes("\n".join(lines + bad).encode("utf-8", "surrogateescape"))
    if door == "evaluate":
        evaluation = vlm.evaluate(folder / "rows.jsonl", max_new_tokens=2, progress=False)
        assert (evaluation.metrics["num_answers"], evaluation.metrics["num_errors"]) == (len(lines), len(bad))
        evaluation.save(folder / "evaluation")
        return
    report = VisGLM.from_pretrained().finetune(folder / "rows.jsonl", output_dir=folder / "out", **FAST)
    assert report.data["rows_left_out"] == len(bad)


def test_a_row_of_very_many_turns_is_read_in_time_that_grows_with_it(folder, capsys):
    messages = [{"role": role, "content": "a"} for _ in range(400) for role in ("user", "assistant")]
    write_lines(folder / "rows.jsonl", [{"messages": messages}])
    status, out = check(capsys, folder / "rows.jsonl")
    assert status == 0 and "400 answers" in out


def test_foreign_text_cannot_steer_the_terminal(folder, capsys):
    lines = [
        json.dumps({"pic\x1b[31m\nture\u202e\u2028": "a", "text": "b"}),
        row_of(image="a\x1b]0;title\x07\n rows.jsonl:99: b\u202e.png"),
        '{"conversations": [{"from": "robot\\u001b[2J", "value": "A?"}]}',
        GOOD[:-1] + ', "extra\\u001b[31m\\n": 1}',
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines), "utf-8")
    _, out = check(capsys, folder / "rows.jsonl")
    assert "\\x1b" in out and "rows.jsonl:3:" in out
    assert not any(mark in out for mark in "\x1b\x07\u202e\u2028")
    assert not any(line.strip().startswith("rows.jsonl:99") for line in out.splitlines())


def test_the_error_of_a_missing_picture_says_where_it_looked(folder, capsys, monkeypatch, vlm):
    write_lines(folder / "rows.jsonl", [{"image": "gone.png", "caption": "A."}])
    _, out = check(capsys, folder / "rows.jsonl")
    assert "gone.png" in out and f"looked for in {folder}" in out
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=f"looked for in {folder}, the working directory"):
        vlm.finetune([{"image": "gone.png", "caption": "A."}] * 3, output_dir=folder / "out", **FAST)


# ---- CSV ------------------------------------------------------------------------------------------------------------


def write_csv(folder: Path, text: str | bytes) -> Path:
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    (folder / "rows.csv").write_bytes(data)
    return folder / "rows.csv"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_is_one(folder, capsys, end):
    lines = ["image,caption", "pictures/0.png,A disc.", "gone.png,A cat.", 'pictures/1.png,"Two\nlines, here"']
    status, out = check(capsys, write_csv(folder, end.join(lines)))
    assert status == 3 and "2 rows can be used" in out and "rows.csv:3:" in out


@pytest.mark.parametrize(
    "lines, bad, num_good",
    [
        (["pictures/0.png," + "a" * 200_000, "pictures/1.png,B."], [2], 1),
        (['pictures/0.png,"A', "pictures/1.png,B.", "pictures/2.png,C."], [2], 2),
        (['pictures/0.png,"A', 'pictures/1.png,"B."', "pictures/2.png,C."], [2], 2),
        (["pictures/1.png,B.", 'pictures/0.png,"A'], [3], 1),
        (['pictures/0.png,"A', "pictures/1.png," + "a b" * 100_000, "pictures/2.png,C."], [2, 3], 1),
        (["pictures/0.png", "pictures/1.png,B."], [2], 1),
        (["pictures/0.png,A,b", "pictures/1.png,B."], [2], 1),
        (["pictures/0.png,caf\udce9", "pictures/1.png,B."], [2], 1),
    ],
    ids=["long", "open", "open, then another", "open at the end", "open and long", "few", "many", "bytes"],
)
def test_a_bad_row_of_a_table_takes_no_other_along(folder, capsys, lines, bad, num_good):
    data = "\n".join(["image,caption", *lines]).encode("utf-8", "surrogateescape")
    status, out = check(capsys, write_csv(folder, data))
    assert status == 3 and f"{counted(num_good, 'row')} can be used" in out
    told = [line.split("rows.csv:")[1].split(":")[0] for line in out.splitlines() if line.startswith("  /")]
    assert told == [str(number) for number in bad]


@pytest.mark.parametrize(
    "data, problem",
    [
        (b"\xff\xfei\x00m\x00a\x00g\x00e\x00,\x00\n\x00", "UTF-8"),
        (b"image,caption,image\na,b,c\n", "twice"),
        (b'"image,caption\n', "first line"),
        (b"image,caption\n", "no rows"),
        (b"a" * 300_000 + b",b\n1,2\n", "first line"),
    ],
)
def test_a_table_that_cannot_be_read_at_all_is_one_clear_error(folder, capsys, data, problem):
    status, out = check(capsys, write_csv(folder, data))
    assert status == 1 and problem in out and "rows.csv" in out and "Traceback" not in out


# ---- a JSON list ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, problem",
    [
        (b'[{"caption": "' + b'\\"' * 2_000_000, "line 1"),
        (b'[\n{"caption": "a"},\n{"caption": "' + b'\\" [ { ' * 300_000, "line 3"),
        (b'[{"caption": "' + b"\\" * 4_000_001, "line 1"),
        (b"[" * 300_000, "line 1, 100000 brackets are open at once"),
        (b'[\n{"caption": [}\n, {"caption": "a"}]', "line 2"),
        (b'[{"caption": "a"}]\n[{"caption": "b"}]', "line 2"),
    ],
    ids=["quotes", "quotes and brackets", "backslashes", "brackets", "mixed brackets", "two lists"],
)
def test_a_broken_list_is_one_error_in_little_time_and_memory(folder, text, problem):
    (folder / "rows.json").write_bytes(text)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(DataError, match=problem):
        open_rows(folder / "rows.json")
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    assert seconds < 60  # a scan that goes back takes hours


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_list_in_the_encoding_of_windows_says_what_to_do(folder, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (folder / "rows.json").write_bytes((mark + "[" + GOOD + "]").encode(encoding))
    with pytest.raises(DataError, match="UTF-16.*Save it as UTF-8"):
        open_rows(folder / "rows.json")


def test_what_is_no_row_of_a_list_is_counted(folder, capsys):
    (folder / "rows.json").write_text(f'[\n{GOOD},\n5,\n"text",\n{GOOD} {GOOD},\n[],\n{GOOD},\n]')
    status, out = check(capsys, folder / "rows.json")
    assert status == 3 and "2 rows can be used" in out
    assert [f"rows.json:{line}:" in out for line in (3, 4, 5, 6)] == [True] * 4


@pytest.mark.parametrize("text", ["[]", "[ ]", "[\n]", ""])
def test_a_list_of_nothing_holds_no_rows(folder, text):
    (folder / "rows.json").write_text(text)
    with pytest.raises(DataError):
        open_rows(folder / "rows.json")


# ---- tar files ------------------------------------------------------------------------------------------------------


def png(number: int = 0, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture(number).save(file, kind)
    return file.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def write_tar(path: Path, members: Sequence[tuple[Any, ...]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data, *fields in members:
            add(archive, name, data, **(fields[0] if fields else {}))
    return path


def pair(key: str, kind: str = "PNG") -> list[tuple[str, bytes]]:
    return [(f"{key}.{kind.lower()}", png(kind=kind)), (f"{key}.txt", f"A disc called {key}.".encode())]


def test_a_tar_in_a_folder_with_a_bracket_in_its_name(folder, capsys):
    (folder / "run[1]").mkdir()
    path = write_tar(folder / "run[1]" / "part[2].tar", pair("a"))
    for source in (path, path.parent, path.parent / "*.tar"):
        assert check(capsys, source)[0] == 0


def test_what_macs_add_to_tars_is_no_row(folder, capsys):
    members = [("._a.png", b"\0\5\x16\7"), *pair("a")[:1], ("._a.txt", b"\0\5"), *pair("a")[1:], (".DS_Store", b"x")]
    status, out = check(capsys, write_tar(folder / "rows.tar", members))
    assert status == 0 and "1 row can be used" in out and "not used" not in out


@pytest.mark.parametrize("kind", ["BMP", "GIF", "WEBP", "JPEG"])
def test_members_of_every_kind_of_picture_are_read(folder, capsys, kind):
    assert check(capsys, write_tar(folder / "rows.tar", pair("a", kind)))[0] == 0


@pytest.mark.parametrize(
    "members, problem",
    [
        ([("b.json", b"[1, 2]")], "holds a list"),
        ([("b.json", b'[["txt", "A."]]')], "holds a list"),
        ([("b.json", b"{")], "no JSON"),
        ([("b.png", png()), ("b.txt", b"caf\xe9")], "b.txt"),
        ([("b.txt", b"A."), ("b.png", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})], "link"),
        ([("b.txt", b"A."), ("b.png", b"", {"type": tarfile.LNKTYPE, "linkname": "a.png"})], "link"),
        ([("b.txt", b"A."), ("b.png", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5})], "device"),
        ([("b.txt", b"A."), ("b.png", b"", {"type": tarfile.FIFOTYPE})], "device"),
        ([("b.png", png()), ("b.png", png(1)), ("b.txt", b"A.")], "twice"),
        ([("b.json", b'{"image": "/etc/hostname", "caption": "A."}')], "outside"),
        ([("b\x1b[2J.txt", b"A.")], "keys txt"),
    ],
)
def test_a_bad_sample_is_counted_and_the_others_are_used(folder, capsys, members, problem):
    path = write_tar(folder / "rows.tar", [*pair("a"), *members, *pair("/c/../../c")])
    status, out = check(capsys, path)
    assert status == 3 and "2 rows can be used" in out
    assert sum("rows.tar:b" in line and problem in line for line in out.splitlines()) == 1, out
    assert "\x1b" not in out


def sparse_tar(path: Path, size: int) -> Path:
    """A picture that claims to be `size` bytes of zeros, in a few bytes of an archive."""
    write_tar(path, [*pair("a"), ("b.png", b""), ("b.txt", b"A."), *pair("c")])
    data = bytearray(path.read_bytes())
    start = data.index(b"b.png\0")
    header = tarfile.TarInfo("b.png").tobuf(tarfile.GNU_FORMAT)
    block = bytearray(header)
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[257:265] = b"ustar  \0"
    block[386:398], block[398:410] = b"%011o\0" % 0, b"%011o\0" % 0
    block[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % (256 + sum(block[0:148]) + sum(block[156:512]))
    data[start : start + 512] = block
    path.write_bytes(data)
    return path


def test_a_sparse_member_of_100_gb_is_a_bad_row(folder, capsys):
    status, out = check(capsys, sparse_tar(folder / "rows.tar", 100 * 2**30))
    assert status == 3 and "2 rows can be used" in out
    assert any("rows.tar:b" in line and "b.png is a sparse file" in line for line in out.splitlines())


@pytest.mark.parametrize("size", [-512, -1024, -(2**40), 2**60])
def test_a_tar_that_lies_about_sizes_is_one_clear_error(folder, capsys, size):
    path = write_tar(folder / "rows.tar", [*pair("a"), ("b.png", b"x" * 512), *pair("c")])
    data = bytearray(path.read_bytes())
    start = data.index(b"b.png\0")
    data[start + 124 : start + 136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    data[start + 148 : start + 156] = b"        "
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    path.write_bytes(data)
    status, out = check(capsys, path)
    assert status == 1 and "rows.tar" in out and "Traceback" not in out


# ---- paths of other systems and other folders ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pictures\\0.png", ".\\pictures\\子 夹\\0.png"])
def test_paths_written_on_windows_lead_to_the_same_pictures(folder, capsys, name):
    (folder / "pictures" / "子 夹").mkdir()
    picture(4).save(folder / "pictures" / "子 夹" / "0.png")
    table = folder / "rows.csv"
    table.write_bytes(f"\ufeffimage,caption\r\n{name},一个圆\r\n".encode())
    status, out = check(capsys, table)
    assert status == 0 and "1 picture." in out
    assert main(["data", "convert", str(table), str(folder / "common.jsonl")]) == 0
    assert "\\\\" not in (folder / "common.jsonl").read_text("utf-8")
    assert check(capsys, folder / "common.jsonl")[0] == 0


@pytest.mark.parametrize(
    "name",
    ["pictures/0.PNG", "Pictures/0.png", "PICTURES\\0.PNG", "./Pictures/0.Png", " pictures/0.png ", "Caf\u00e9.png"],
)
def test_names_in_other_letters_lead_to_the_same_pictures(folder, capsys, name):
    """As Windows and macOS let people write them."""
    picture(4).save(folder / "cafe\u0301.PNG")  # an accent for itself
    table = write_lines(folder / "rows.jsonl", [json.loads(row_of(image=name))])
    status, out = check(capsys, table)
    assert status == 0 and "1 picture." in out
    assert main(["data", "convert", str(table), str(folder / "common.jsonl")]) == 0
    written = json.loads((folder / "common.jsonl").read_text("utf-8"))["images"][0]
    assert (folder / written).is_file()


def test_a_name_that_could_be_two_pictures_is_none_of_them(folder, capsys):
    for number, name in enumerate(("a.png", "A.png", "b.png")):
        picture(number).save(folder / name)
    rows = [json.loads(row_of(image=name)) for name in ("a.PNG", "A.png", "B.png", "../private.PNG")]
    picture(5).save(folder.parent / "private.png")
    status, out = check(capsys, write_lines(folder / "rows.jsonl", rows))
    assert status == 3 and "2 rows can be used" in out
    assert "there is no picture 'a.PNG'" in out and "rows.jsonl:4" in out


def test_a_name_with_a_backslash_of_its_own_is_found_first(folder, capsys):
    (folder / "pictures\\0.png").write_bytes(b"garbage")
    assert check(capsys, write_lines(folder / "rows.jsonl", [json.loads(row_of(image="pictures\\0.png"))]))[0] == 3


def test_windows_paths_that_leave_the_folder_are_refused_as_others_are(private, capsys):
    row = json.loads(row_of(image="..\\private.png"))
    status, out = check(capsys, write_lines(private.parent / "windows.jsonl", [row]))
    assert status == 3 and "outside" in out


def test_visualglms_own_few_shot_data_is_read_where_it_lies(tmp_path, capsys):
    """fewshot-data/dataset.json names its pictures from the folder above, where its commands are run."""
    folder = tmp_path / "fewshot-data"
    folder.mkdir()
    picture(0).save(folder / "2p.png")
    row = {"img": "fewshot-data/2p.png", "prompt": "这张图片的背景里有什么内容？", "label": "一个圆。"}
    (folder / "dataset.json").write_text(json.dumps([row] * 3, ensure_ascii=False), "utf-8")
    status, out = check(capsys, folder / "dataset.json")
    assert status == 0 and "3 rows can be used (3 visualglm)" in out
    report = VisGLM.from_pretrained().finetune(folder / "dataset.json", output_dir=tmp_path / "out", **FAST)
    assert report.data["answers"] == 3 and report.data["rows_left_out"] == 0


# ---- paths that leave the folder ------------------------------------------------------------------------------------


@pytest.fixture
def private(folder: Path) -> Path:
    """A data file in a folder of its own, beside a picture that is nobody's business; what the rows are."""
    (folder / "data").mkdir()
    write_pictures(folder / "data", 3)
    picture(5).save(folder / "private.png")
    (folder / "data" / "link.png").symlink_to(folder / "private.png")
    outside = ["../private.png", str(folder / "private.png"), "link.png", "pictures/../../private.png"]
    inside = ["pictures/0.png", str(folder / "data/pictures/1.png"), "pictures/../pictures/2.png"]
    rows = [{"image": name, "caption": f"Disc {place}."} for place, name in enumerate(outside + inside * 3)]
    return write_lines(folder / "data" / "rows.jsonl", rows)


def test_a_picture_outside_of_the_data_files_folder_is_refused_and_the_text_says_what_to_pass(private, capsys):
    status, out = check(capsys, private)
    assert status == 3 and "9 rows can be used" in out
    for line in range(1, 5):
        told = [text for text in out.splitlines() if text.startswith(f"  {private}:{line}:")]
        assert (
            len(told) == 1 and "outside" in told[0] and "--allow-outside" in told[0] and "allow_outside=True" in told[0]
        )
    status, out = check(capsys, private, "--allow-outside")
    assert status == 0 and "13 rows can be used" in out


def test_training_leaves_them_out_unless_it_is_told_to_take_them(private, capsys, folder):
    settings = FAST | {"held_out": 0.5, "max_steps": 1}
    report = VisGLM.from_pretrained().finetune(private, output_dir=folder / "one", **settings)
    assert report.data["rows_left_out"] == 4
    report = VisGLM.from_pretrained().finetune(private, output_dir=folder / "two", allow_outside=True, **settings)
    assert report.data["rows_left_out"] == 0 and "--allow-outside" in report.command
    words = ["--held-out", "0.5", "--max-steps", "1", "--num-workers", "0", "--report-to", "none", "--replay", "0"]
    assert main(["finetune", str(private), "--output-dir", str(folder / "three"), *words]) == 1
    assert "--allow-outside" in capsys.readouterr().err
    more = ["--eval-data", str(private), "--allow-outside"]
    assert main(["finetune", str(folder / "data/rows2.jsonl"), "--output-dir", str(folder / "four"), *more]) == 1


def test_evaluation_leaves_them_out_unless_it_is_told_to_take_them(private, vlm, capsys):
    evaluation = vlm.evaluate(private, max_new_tokens=2, progress=False)
    assert evaluation.metrics["num_errors"] == 4
    assert all("outside" in row["error"] for row in evaluation.predictions if "error" in row)
    assert vlm.evaluate(private, max_new_tokens=2, progress=False, allow_outside=True).metrics["num_errors"] == 0
    assert main(["evaluate", str(private), "--max-new-tokens", "2"]) == 3
    assert main(["evaluate", str(private), "--max-new-tokens", "2", "--allow-outside"]) == 0


def test_conversion_leaves_them_out_too(private, folder):
    assert convert_data(private, folder / "data/common.jsonl")[0] == 9
    assert convert_data(private, folder / "data/common.jsonl", allow_outside=True)[0] == 13


def test_paths_of_rows_in_memory_are_the_callers_own(folder, monkeypatch, vlm):
    picture(5).save(folder / "private.png")
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    rows = [{"image": name, "caption": "A."} for name in (str(folder / "private.png"), "../private.png")]
    assert vlm.evaluate(rows, max_new_tokens=2, progress=False).metrics["num_errors"] == 0


# ---- what is text stays text ----------------------------------------------------------------------------------------


def test_a_marker_places_pictures_in_user_messages_of_the_marker_formats_only():
    typed = "Write <image> here."
    common = {"images": ["a.png"], "messages": [
        {"role": "system", "content": typed}, {"role": "user", "content": "<image>What?"},
        {"role": "assistant", "content": typed},
    ]}  # fmt: skip
    conversation = read_row(common)
    assert conversation.turns[0].answer == typed and typed in conversation.turns[0].question
    assert conversation.turns[0].num_images == 1
    said = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": typed}]
    llava = {"image": "a.png", "conversations": said}
    assert read_row(llava).turns[0].answer == typed
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": typed}]
    openai = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": typed}]}
    assert (read_row(openai).turns[0].question, read_row(openai).turns[0].num_images) == (typed, 1)
    assert read_row({"image": "a.png", "caption": typed}).turns[0].answer == typed
    one = read_row({"img": "a.png", "prompt": typed, "label": typed}).turns[0]
    assert (one.question, one.answer, one.num_images) == (typed, typed, 1)


def test_typed_markers_survive_conversion(folder, capsys):
    typed = "Write <image> here."
    parts = [{"type": "text", "text": typed}]
    rows = [
        {"image": "pictures/0.png", "caption": typed},
        {"img": "pictures/0.png", "prompt": typed, "label": typed},
        {"messages": [{"role": "user", "content": typed}, {"role": "assistant", "content": parts}]},
    ]
    source = write_lines(folder / "rows.jsonl", rows)
    assert main(["data", "convert", str(source), str(folder / "common.jsonl"), "--prompt", "What?"]) == 0
    before, after = open_rows(source), open_rows(folder / "common.jsonl")
    assert [read_row(row, "What?") for row in map(before.__getitem__, range(3))] == [
        read_row(row) for row in map(after.__getitem__, range(3))
    ]


def test_conversion_keeps_what_evaluation_reads(folder):
    row = {"image": "pictures/0.png", "caption": "A disc.", "references": ["disc", "circle"], "type": "name"}
    convert_data(write_lines(folder / "rows.jsonl", [row]), folder / "common.jsonl")
    written = open_rows(folder / "common.jsonl")[0]
    assert (written["references"], written["type"]) == (["disc", "circle"], "name")


def test_conversion_leaves_out_what_evaluation_could_not_read(folder):
    caption = {"image": "pictures/0.png", "caption": "A disc."}
    rows = [
        caption,
        caption | {"references": ["half \ud83d"]},
        caption | {"references": 5},
        caption | {"type": "\udce9"},
    ]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    num_written, problems = convert_data(path, folder / "common.jsonl")
    assert num_written == 1 and [problem.split("rows.jsonl:")[1][0] for problem in problems] == ["2", "3", "4"]


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_system_field_beside_the_messages_is_used(key):
    names = ("role", "content") if key == "messages" else ("from", "value")
    said = [dict(zip(names, pair, strict=True)) for pair in (("user", "What?"), ("assistant", "A cat."))]
    assert read_row({key: said, "system": "Be brief."}).turns[0].question == "Be brief.\nWhat?"
    with pytest.raises(DataError, match="system"):
        read_row({key: [{names[0]: "system", names[1]: "Be long."}, *said], "system": "Be brief."})
    with pytest.raises(DataError, match="system"):
        read_row({key: said, "system": 5})


def test_a_key_filled_with_none_is_an_absent_key_at_every_depth():
    empty = {"messages": None, "conversations": None, "caption": None, "image": None, "img": None, "system": None}
    parts = [
        {"type": "text", "text": "What?", "image": None, "image_url": None},
        {"type": "image", "text": None, "image": {"bytes": None, "path": "a.png"}, "image_url": {"url": None}},
    ]
    answer = [{"type": "text", "text": "A cat.", "image": None}]
    said = [{"role": "user", "content": parts, "name": None}, {"role": "assistant", "content": answer}]
    llava = [{"from": "human", "value": "<image>What?", "x": None}, {"from": "gpt", "value": "A cat."}]
    for row in (
        {**empty, "messages": said},
        {**empty, "image": "a.png", "caption": "A cat."},
        {**empty, "img": "a.png", "prompt": "What?", "label": "A cat."},
        {**empty, "image": "a.png", "conversations": llava},
    ):
        conversation = read_row(row, "What?")
        assert conversation.images == ("a.png",) and conversation.turns[0].answer == "A cat."


def test_image_parts_without_source_take_the_rows_pictures_in_order():
    parts = [{"type": "image"}, {"type": "image", "image": "b.png"}, {"type": "image"}, {"type": "text", "text": "A?"}]
    said = [{"role": "user", "content": parts}, {"role": "assistant", "content": "B."}]
    row = {"images": ["a.png", "c.png"], "messages": said}
    assert read_row(row).images == ("a.png", "b.png", "c.png")
    with pytest.raises(DataError, match="1 image, but 2 image parts"):
        read_row(row | {"images": ["a.png"]})


def test_keys_that_are_not_used_are_told_once_with_their_counts(folder, capsys, caplog):
    caption = {"image": "pictures/0.png", "weight": 2, "id": 1}
    rows: list[Any] = [{**caption, "caption": f"A {number}."} for number in range(9)]
    message = {"role": "assistant", "content": "Hi.", "tool_calls": []}
    rows.append({"messages": [{"role": "user", "content": "Hello"}, message], "references": ["Hi."], "type": "a"})
    path = write_lines(folder / "rows.jsonl", rows)
    status, out = check(capsys, path)
    assert status == 0
    told = [line for line in out.splitlines() if "not used" in line]
    assert len(told) == 1 and "weight (9 rows)" in told[0] and "messages.tool_calls (1 row)" in told[0]
    assert "id" not in told[0].replace("read", "").split() and "references" not in told[0]
    VisGLM.from_pretrained().finetune(path, output_dir=folder / "out", **FAST)
    assert sum("weight (9 rows)" in record.getMessage() for record in caplog.records) == 1


# ---- pictures in rows that are Python objects -----------------------------------------------------------------------


def test_numpy_pictures_and_pil_pictures_in_rows(folder, vlm):
    rows = [
        {"image": convert(picture(number)), "caption": f"Disc {number}."}
        for number in range(4)
        for convert in (np.asarray, lambda image: image)
    ]
    cut = Image.open(io.BytesIO(png()[:80]))
    rows += [{"image": cut, "caption": "Cut."}, {"image": np.zeros((2, 2, 2, 2)), "caption": "What?"}]
    report = check_data(rows, vlm.processor, max_length=200)
    assert (report.num_rows, len(report.problems), len(report.duplicates)) == (8, 2, 4)
    assert VisGLM.from_pretrained().finetune(rows, output_dir=folder / "out", **FAST).data["rows"] == 10


def test_datasets_with_lists_of_pictures_and_pictures_in_parts(folder, vlm):
    import datasets
    from datasets import Features, Value

    Many = getattr(datasets, "List", None) or datasets.Sequence
    broken = {"bytes": b"garbage", "path": None}
    good = [{"bytes": png(number), "path": None} for number in range(3)]
    messages = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A disc."}]
    lists = datasets.Dataset.from_list(
        [{"images": [image], "messages": messages} for image in (*good, broken)],
        features=Features({
            "images": Many(datasets.Image()), "messages": [{"role": Value("string"), "content": Value("string")}],
        }),
    )  # fmt: skip
    part = {"type": Value("string"), "text": Value("string"), "image": datasets.Image()}
    question = {"type": "text", "text": "What?", "image": None}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A disc.", "image": None}]}
    seen = [{"type": "image", "text": None, "image": image} for image in (*good, broken)]
    parts = datasets.Dataset.from_list(
        [{"messages": [{"role": "user", "content": [image, question]}, answer]} for image in seen],
        features=Features({"messages": [{"role": Value("string"), "content": [part]}]}),
    )  # fmt: skip
    for rows in (lists, parts):
        report = check_data(rows, vlm.processor, max_length=200)
        assert report.num_rows == 3 and [(kind, where) for kind, where, _ in report.problems] == [
            ("unreadable image", "row 3")
        ]
        settings = FAST | {"held_out": 0.0, "max_steps": 2, "batch_size": 4}
        result = VisGLM.from_pretrained().finetune(rows, output_dir=folder / f"out{len(rows.features)}", **settings)
        assert result.data["rows_left_out_while_training"] >= 1
        stream = rows.to_iterable_dataset()
        settings = FAST | {"held_out": 0.0, "max_steps": 1, "batch_size": 3}
        VisGLM.from_pretrained().finetune(stream, output_dir=folder / f"stream{len(rows.features)}", **settings)


def test_a_data_set_whose_own_code_fails_on_a_row_is_a_bad_row(vlm):
    class Rows(list):
        def __getitem__(self, index):
            if index == 1:
                raise KeyError("broken\x1b[31m")
            return super().__getitem__(index)

    rows = Rows([{"image": picture(0), "caption": "A."}, {}, {"image": picture(2), "caption": "B."}])
    report = check_data(rows, vlm.processor, max_length=200)
    assert report.num_rows == 2 and "KeyError" in report.problems[0][2] and "\x1b" not in report.problems[0][2]


# ---- held-out and general rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\x00\xff", b'[{"a": ', b'{"image": "gone.png", "caption": "A."}\n', b"a\rb\r"]
)
@pytest.mark.parametrize("setting", ["eval_data", "replay_data"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "json"])
def test_unusable_second_data_is_one_clear_error(folder, vlm, setting, content, suffix):
    path = folder / f"second.{suffix}"
    path.write_bytes(content)
    more = {"replay": 0.5} if setting == "replay_data" else {}
    settings = FAST | {"max_bad_rows": 1.0, setting: str(path)} | more
    with pytest.raises((DataError, ConfigError), match="second"):
        vlm.finetune(captions(folder, 4), output_dir=folder / "out", **settings)


def test_a_stream_tells_of_a_key_that_is_not_used_when_it_comes_up(folder, caplog):
    import datasets

    rows = [{"image": picture(number), "caption": f"A {number}.", "weight": 1} for number in range(6)]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    VisGLM.from_pretrained().finetune(stream, output_dir=folder / "out", **FAST | {"held_out": 0.0, "max_steps": 2})
    assert sum("weight (1 row)" in record.getMessage() for record in caplog.records) == 1


def test_a_broken_picture_does_not_end_the_answers_that_replay_asks_for(folder):
    path = captions(folder, 8)
    (folder / "pictures" / "2.png").write_bytes(b"garbage")
    settings = FAST | {"replay": 0.5, "held_out": 0.0}
    report = VisGLM.from_pretrained().finetune(path, output_dir=folder / "out", **settings)
    assert report.history


@pytest.mark.parametrize("broken", [1, 2])
def test_a_broken_held_out_picture_is_counted_and_the_loss_is_that_of_the_others(folder, broken, caplog):
    path = captions(folder, 8)
    others = [{"image": f"held/{number}.png", "caption": f"A disc, number {number}."} for number in range(4)]
    (folder / "held").mkdir()
    for number in range(4):
        picture(number + 20).save(folder / "held" / f"{number}.png")
    good = write_lines(folder / "good.jsonl", [row for place, row in enumerate(others) if place != broken])
    everything = write_lines(folder / "all.jsonl", others)
    (folder / "held" / f"{broken}.png").write_bytes(b"garbage")
    losses = {}
    for name, held_out in (("good", good), ("all", everything)):
        settings = FAST | {"eval_data": str(held_out), "batch_size": 1, "prompt": "What is this?"}
        report = VisGLM.from_pretrained().finetune(path, output_dir=folder / name, **settings)
        losses[name] = [row["eval_loss"] for row in report.history if "eval_loss" in row]
    assert losses["all"] == pytest.approx(losses["good"], abs=1e-6)
    assert report.data["rows_left_out_while_training"] == 1
    assert any(f"all.jsonl:{broken + 1}" in record.getMessage() for record in caplog.records)


def test_held_out_pictures_that_are_all_broken_are_told_before_training(folder, vlm):
    path = captions(folder, 8)
    (folder / "broken.png").write_bytes(b"garbage")
    second = write_lines(folder / "second.jsonl", [{"image": "broken.png", "caption": f"A {n}."} for n in range(3)])
    with pytest.raises(DataError, match=r"second\.jsonl:1"):
        vlm.finetune(path, output_dir=folder / "out", **FAST | {"eval_data": str(second)})


def test_a_broken_picture_is_told_and_counted_once_however_often_it_comes_round(folder, capsys):
    path = captions(folder, 8)
    (folder / "pictures" / "2.png").write_bytes(b"garbage")
    settings = FAST | {"held_out": 0.0, "replay": 0.0, "max_steps": 12}  # three times over all rows
    report = VisGLM.from_pretrained().finetune(path, output_dir=folder / "out", **settings)
    assert capsys.readouterr().err.count("train.jsonl:3") == 1
    assert report.data["rows_left_out_while_training"] == 1


# ---- what goes wrong while it runs ----------------------------------------------------------------------------------


class Deadly(Sequence):
    """Rows whose reader is killed, as by the kernel when memory has run out."""

    def __init__(self, rows: list[Any]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.rows[index]


def test_a_killed_data_worker_is_one_sentence(folder, vlm):
    rows = Deadly([{"image": picture(number), "caption": f"A disc, number {number}."} for number in range(8)])
    with pytest.raises(TrainingError) as caught:
        vlm.finetune(rows, output_dir=folder / "out", **FAST | {"num_workers": 1, "held_out": 0.0})
    text = str(caught.value)
    assert "num_workers" in text and "Traceback" not in text and "\n" not in text
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_an_error_in_a_data_worker_is_told_without_a_traceback(folder):
    path = captions(folder, 8)

    vlm = VisGLM.from_pretrained()
    rows = open_rows(path)
    for number in range(8):  # whole when they are looked at first, gone when a worker reads them
        assert rows[number]

    class Vanishing(list):
        def __getitem__(self, index):
            row = super().__getitem__(index)
            if get_worker_info() is not None:
                return {**row, "image": b"garbage"}
            return row

    gone = Vanishing({"image": picture(number), "caption": f"A disc, number {number}."} for number in range(8))
    with pytest.raises(VisGLMError) as caught:
        vlm.finetune(gone, output_dir=folder / "out", **FAST | {"num_workers": 1, "held_out": 0.0})
    assert "Traceback" not in str(caught.value) and "cannot be used" in str(caught.value)


def test_urls_are_refused_before_training_and_fetched_by_conversion(folder, vlm, monkeypatch):
    rows = [
        {"image": f"https://example.org/{number}.png", "caption": f"A disc, number {number}."} for number in range(4)
    ]
    path = write_lines(folder / "rows.jsonl", rows)
    with pytest.raises(DataError, match="visglm data convert"):
        vlm.finetune(path, output_dir=folder / "out", **FAST)
    monkeypatch.setattr("visglm.pictures.load.fetch", lambda url, *limits: png(int(url[-5])))
    target = folder / "new" / "common.jsonl"
    assert main(["data", "convert", str(path), str(target)]) == 3
    assert main(["data", "convert", str(path), str(target), "--allow-urls"]) == 0
    report = check_data(target, vlm.processor, max_length=200)
    assert report.num_rows == 4 and report.is_clean
