"""Where pictures are looked for, and what of them is read."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tracemalloc

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from tests.describe.samples import fill, pack, png, tabulate
from visglm.describe import find
from visglm.describe.items import Unreadable, read
from visglm.errors import ConfigError, MissingDependencyError

MOST = 1 << 20


def contents(source, leave_out="") -> dict[str, bytes | str]:
    found = {}
    for item in find(str(source), str(leave_out)):
        assert item.name not in found
        try:
            found[item.name] = read(item, MOST)
        except Unreadable as error:
            found[item.name] = str(error)
    return found


def test_a_folder_is_looked_through_with_all_below_it(tmp_path):
    fill(tmp_path / "src", 4)
    (tmp_path / "src/notes.txt").write_text("no picture")
    (tmp_path / "src/.hidden.png").write_bytes(png(1))
    (tmp_path / "src/0/again").symlink_to(tmp_path / "src", target_is_directory=True)  # a circle
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/e.JPG").write_bytes(png(9))
    (tmp_path / "src/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "src/out").mkdir()
    (tmp_path / "src/out/old.png").write_bytes(png(3))
    found = contents(tmp_path / "src", tmp_path / "src/out")
    expected = {f"{number % 3}/{number:03}.png": png(number) for number in range(4)} | {"linked/e.JPG": png(9)}
    assert found == expected


@pytest.mark.skipif(os.name != "posix", reason="pipes are files there")
@pytest.mark.timeout(20)
def test_what_cannot_be_read_is_an_item_too(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    found = contents(tmp_path)
    assert set(found) == {"pipe.png", "gone.png"}
    assert "not a regular file" in found["pipe.png"] and "No such file" in found["gone.png"]


def test_links_in_circles_and_a_hundred_ways_to_one_folder_give_each_picture_once(tmp_path):
    source = tmp_path / "src"
    for number in range(8):
        (source / f"{number}").mkdir(parents=True)
        (source / f"{number}/a.png").write_bytes(png(number))
    for number in range(64):
        if number // 8 != number % 8:
            (source / f"{number // 8}/to{number % 8}").symlink_to(f"../{number % 8}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/e.png").write_bytes(png(9))
    for name in ("b", "a", "7/z"):
        (source / name).symlink_to(tmp_path / "elsewhere")
    (source / "up").symlink_to(tmp_path)
    (source / "itself.png").symlink_to(source / "itself.png")
    (source / "itself").symlink_to(source / "itself")
    found = contents(source)
    assert "symbolic links" in found.pop("itself.png")
    assert found == {f"{number}/a.png": png(number) for number in range(8)} | {"7/z/e.png": png(9)}


def test_shards_give_their_pictures_without_being_unpacked(tmp_path):
    pack(tmp_path / "a.tar", {"1.png": png(1), "1.txt": b"a caption", "x/2.left.jpg": png(2)})
    pack(tmp_path / "b.tar", {"1.png": png(3)})
    expected = {"a.tar/1.png": png(1), "a.tar/x/2.left.jpg": png(2), "b.tar/1.png": png(3)}
    assert contents(tmp_path) == contents(tmp_path / "*.tar") == expected
    assert contents(tmp_path / "a.tar") == {name: value for name, value in expected.items() if name[0] == "a"}


def test_a_name_that_comes_twice_in_a_shard_is_two_pictures(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in (1, 2):
            info = tarfile.TarInfo("same.png")
            info.size = len(png(number))
            archive.addfile(info, io.BytesIO(png(number)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    found = contents(tmp_path / "a.tar")
    assert [value for name, value in found.items() if "same" in name] == [png(1), png(2)]
    assert "no file" in found["a.tar/link.png"]


def test_a_shard_that_is_cut_short_tells_it_after_what_is_whole(tmp_path):
    path = pack(tmp_path / "a.tar", {"1.png": png(1), "2.png": os.urandom(5000)})
    path.write_bytes(path.read_bytes()[:3000])
    pack(tmp_path / "b.tar", {"1.png": png(3)})
    (tmp_path / "c.tar").write_text("no tar")
    found = contents(tmp_path)
    assert found["a.tar/1.png"] == png(1) and found["b.tar/1.png"] == png(3)
    assert "cannot be read" in str(found["a.tar/2.png"])
    assert "damaged" in str(found["c.tar"])


@pytest.mark.parametrize("plain", [True, False])
def test_tables_give_a_picture_for_each_row(tmp_path, plain):
    tabulate(tmp_path / "t.parquet", [png(1), png(2), None, png(4), png(5)], plain=plain)
    found = contents(tmp_path / "t.parquet")
    assert [found[f"t.parquet/{row}"] for row in (0, 1, 3, 4)] == [png(1), png(2), png(4), png(5)]
    assert "bytes are null" in str(found["t.parquet/2"])


def test_a_table_of_something_else_is_passed_by_and_an_unclear_one_told(tmp_path):
    parquet.write_table(pyarrow.table({"label": [1]}), tmp_path / "labels.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    found = contents(fill(tmp_path, 1))
    assert found["0/000.png"] == png(0) and "damaged" in str(found["cut.parquet"]) and len(found) == 2
    with pytest.raises(ConfigError, match="no picture in"):
        contents(tmp_path / "labels.parquet")
    parquet.write_table(pyarrow.table({"left": [b"1"], "right": [b"2"]}), tmp_path / "two.parquet")
    assert "call that of the pictures image; got left, right" in contents(tmp_path)["two.parquet"]
    parquet.write_table(pyarrow.table({"left": [b"1"], "photo": [b"2"]}), tmp_path / "two.parquet")
    assert contents(tmp_path / "two.parquet") == {"two.parquet/0": b"2"}
    parquet.write_table(pyarrow.table({"Image": [b"1"], "Mask": [b"2"]}), tmp_path / "two.parquet")
    assert contents(tmp_path / "two.parquet") == {"two.parquet/0": b"1"}


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.binary_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.binary()),
    ],
    ids=str,
)
def test_bytes_are_bytes_however_a_table_keeps_them(tmp_path, kind):
    for name, column in (
        ("flat", pyarrow.array([png(1), png(2), png(1)]).cast(kind)),
        ("within", pyarrow.StructArray.from_arrays([pyarrow.array([png(1), png(2), png(1)]).cast(kind)], ["bytes"])),
    ):
        parquet.write_table(pyarrow.table({"image": column}), tmp_path / f"{name}.parquet")
        found = contents(tmp_path / f"{name}.parquet")
        assert [*found.values()] == [png(1), png(2), png(1)], name


def test_addresses_give_what_folders_give(tmp_path):
    fill(tmp_path, 3)
    pack(tmp_path / "0/a.tar", {"1.png": png(7)})
    tabulate(tmp_path / "t.parquet", [png(8)])
    system = fsspec.filesystem("memory")
    system.put(str(tmp_path), "/items", recursive=True)
    try:
        assert contents("memory://items") == contents(tmp_path)
        system.pipe_file("/items/.hidden.png", png(1))
        system.pipe_file("/items/.cache/a.png", png(1))
        assert contents("memory://items") == contents(tmp_path)
        assert contents("memory://items/*.parquet") == {"t.parquet/0": png(8)}
        assert contents("memory://items/1/001.png") == {"001.png": png(1)}
        assert len(contents("memory://items", "memory://items/0")) == 3
        before = {item.name: item.stamp for item in find("memory://items")}
        system.pipe_file("/items/1/001.png", png(1)[:-1] + b"?")  # as long as it was
        assert [item.name for item in find("memory://items") if before[item.name] != item.stamp] == ["1/001.png"]
    finally:
        system.rm("/items", recursive=True)


@pytest.mark.parametrize(
    "source, error, words",
    [
        ("nowhere/*.tar", ConfigError, "there is no picture in nowhere"),
        ("nowhere.tar", ConfigError, "there is no nowhere.tar"),
        ("memory://nowhere", ConfigError, "there is no memory://nowhere"),
        ("gibberish://x", ConfigError, "no address that fsspec knows"),
        ("gs://bucket", MissingDependencyError, "gcsfs"),
    ],
)
def test_what_is_not_there_is_told(source, error, words):
    with pytest.raises(error, match=words):
        list(find(source))


def test_no_more_is_read_of_a_picture_than_it_may_have(tmp_path):
    (tmp_path / "a.png").write_bytes(bytes(5000))
    pack(tmp_path / "b.tar", {"1.png": bytes(5000)})
    tabulate(tmp_path / "c.parquet", [bytes(5000)])
    assert {len(read(item, 1000)) for item in find(str(tmp_path))} == {1001}


def test_listing_takes_no_more_memory_for_more_pictures(tmp_path):
    """Of a flat folder, too."""
    content = tmp_path / "content.png"
    content.write_bytes(png(1))
    (tmp_path / "many").mkdir()
    for number in range(4000):
        os.link(content, tmp_path / f"many/{number}.png")
    tracemalloc.start()
    try:
        names = hashlib.sha256()
        for item in find(str(tmp_path / "many")):
            names.update(item.name.encode())
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()
