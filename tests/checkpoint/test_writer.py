"""What a save does to the folder it goes to: it replaces its own files, nobody else's, and is there whole or not."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from tests.tiny import GOLDEN_HF, GOLDEN_SAT
from visglm import VisGLM
from visglm.checkpoint import convert, open_source
from visglm.checkpoint.owned import MARKER_NAME
from visglm.checkpoint.writer import ShardWriter, replacing
from visglm.cli import main
from visglm.errors import CheckpointError

THEIRS = {
    "train.json": "[]",
    "results.json": "{}",
    "notes.txt": "mine",
    "optimizer.pt": "state",
    "tokenizer.model": "pieces",
    "other.safetensors": "weights",
    "model-of-the-month.bin": "x",
    "data/mp_rank_00/train.json": "[1]",
}


def put_theirs(folder: Path) -> None:
    for name, text in THEIRS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def theirs(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in THEIRS if (folder / name).is_file()}


def ours(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return found - THEIRS.keys()


@pytest.fixture(scope="module")
def vlm() -> VisGLM:
    return VisGLM.from_pretrained(GOLDEN_HF, device="cpu")


SAVES = {
    "save_pretrained": lambda vlm, folder: vlm.save_pretrained(folder),
    "convert": lambda vlm, folder: main(["convert", str(GOLDEN_HF), str(folder)]),
    "convert to hf-legacy": lambda vlm, folder: main(["convert", str(GOLDEN_HF), str(folder), "--to", "hf-legacy"]),
    "convert to sat": lambda vlm, folder: main(["convert", str(GOLDEN_HF), str(folder), "--to", "sat"]),
    "quantize": lambda vlm, folder: main(["quantize", str(GOLDEN_HF), str(folder), "--scheme", "int8"]),
    "new": lambda vlm, folder: main(["new", str(folder), "--preset", "visglm-tiny", "--random"]),
}


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_files_of_others_stay(vlm, tmp_path, save):
    put_theirs(tmp_path)
    assert not save(vlm, tmp_path)
    first = ours(tmp_path)
    assert theirs(tmp_path) == THEIRS
    assert not save(vlm, tmp_path)
    assert theirs(tmp_path) == THEIRS and ours(tmp_path) == first
    assert first == {*json.loads((tmp_path / MARKER_NAME).read_text())["files"], MARKER_NAME}


@pytest.mark.parametrize("published", [GOLDEN_HF, GOLDEN_SAT, None])
def test_a_published_folder_is_replaced_by_exact_names(vlm, tmp_path, published):
    """It has no list of its files."""
    folder = tmp_path / "model"
    shutil.copytree(published or open_source(None).path, folder)
    put_theirs(folder)
    vlm.save_pretrained(folder)
    assert theirs(folder) == THEIRS
    vlm.save_pretrained(tmp_path / "fresh")
    assert ours(folder) == ours(tmp_path / "fresh")
    VisGLM.from_pretrained(folder, device="cpu")


def test_what_one_format_left_does_not_stay_beside_another(tmp_path):
    for to in ("native", "sat", "hf-legacy", "native"):
        convert(open_source(GOLDEN_HF), tmp_path / "model", to)
        convert(open_source(GOLDEN_HF), tmp_path / f"only-{to}", to)
        assert ours(tmp_path / "model") == ours(tmp_path / f"only-{to}")
        assert [path.name for path in (tmp_path / "model").iterdir() if path.is_dir()] == ["1"] * (to == "sat")


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.json", '{"port": 80}'),
        ("config.json", '{"model_type": "bert"}'),
        ("config.json", "not JSON"),
        ("processor_config.json", '{"cpu": "fast"}'),
        ("model.safetensors", "another model's"),
        ("ice_text.model", "cubes"),
        (MARKER_NAME, "[1]"),
    ],
)
def test_a_foreign_file_under_a_name_that_is_needed(vlm, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError) as info:
        vlm.save_pretrained(tmp_path)
    assert name in info.value.problems[0] and "another folder" in info.value.next_step
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: text}


def test_a_marker_names_nothing_outside_and_nothing_of_another_kind(vlm, tmp_path):
    folder = tmp_path / "model"
    vlm.save_pretrained(folder)
    put_theirs(tmp_path)
    put_theirs(folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.json").write_text("{}")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    marker = json.loads((folder / MARKER_NAME).read_text())
    hostile = ["../train.json", str(tmp_path / "results.json"), "notes.txt", "data", "link/a.json", "", ".", 7, None]
    (folder / MARKER_NAME).write_text(json.dumps(marker | {"files": [*marker["files"], *hostile]}))
    vlm.save_pretrained(folder)
    assert theirs(tmp_path) == theirs(folder) == THEIRS
    assert (tmp_path / "elsewhere/a.json").exists()


def test_the_working_directory_stays(vlm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    inode = tmp_path.stat().st_ino
    for _ in range(2):
        vlm.save_pretrained(".")
    assert os.stat(".").st_ino == inode == tmp_path.stat().st_ino
    assert Path("config.json").is_file() and Path("notes.txt").read_text() == "mine"


def test_a_link_to_a_folder_stays_one(vlm, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to("disk")
    vlm.save_pretrained(tmp_path / "model")
    vlm.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").is_symlink() and (tmp_path / "disk/config.json").is_file()
    (tmp_path / "dangling").symlink_to("new disk")
    vlm.save_pretrained(tmp_path / "dangling")
    assert (tmp_path / "dangling").is_symlink() and (tmp_path / "new disk/config.json").is_file()


def test_no_link_is_followed(tmp_path):
    """Neither one that happens to lie there, nor one under a name that is written."""
    (tmp_path / "key").write_text("secret")
    folder = tmp_path / "model"
    convert(open_source(GOLDEN_HF), folder, "native")
    (folder / "notes.txt").symlink_to(tmp_path / "key")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "key")
    convert(open_source(GOLDEN_HF), folder, "native")
    assert (folder / "notes.txt").is_symlink() and not (folder / "config.json").is_symlink()
    assert (tmp_path / "key").read_text() == "secret"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").symlink_to(tmp_path / "key")
    with pytest.raises(CheckpointError, match="config.json is there and is a link"):
        convert(open_source(GOLDEN_HF), tmp_path / "other", "native")
    (tmp_path / "elsewhere").mkdir()
    (folder / "1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="link"):
        convert(open_source(GOLDEN_HF), folder, "sat")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_file_or_a_folder_in_the_way(vlm, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="no folder"):
        vlm.save_pretrained(tmp_path / "file")
    (tmp_path / "model/config.json").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="config.json"):
        vlm.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "file", "model"]


@pytest.mark.skipif(os.name != "posix", reason="there are no such rights elsewhere")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
@pytest.mark.parametrize("to", ["native", "hf-legacy", "sat"])
def test_rights_are_those_of_the_umask(tmp_path, mask, to):
    old = os.umask(mask)
    try:
        for _ in range(2):
            convert(open_source(GOLDEN_HF), tmp_path / "model", to)
    finally:
        os.umask(old)
    for path in [tmp_path / "model", *(tmp_path / "model").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_a_folder_on_another_device(vlm, tmp_path, monkeypatch):
    """A mount point cannot be renamed, nor anything moved into it from beside it."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    rename, replace = os.rename, os.replace

    def crossing(function):
        def guarded(source, target, **kwargs):
            inside = [mounted in (Path(path), *Path(path).parents) for path in (source, target)]
            if mounted in (Path(source), Path(target)) or inside[0] != inside[1]:
                raise OSError(18, os.strerror(18))
            return function(source, target, **kwargs)

        return guarded

    monkeypatch.setattr(os, "rename", crossing(rename))
    monkeypatch.setattr(os, "replace", crossing(replace))
    for _ in range(2):
        vlm.save_pretrained(mounted)
    assert VisGLM.from_pretrained(mounted, device="cpu").chat(None, "Hi", max_new_tokens=2).text is not None
    assert [path.name for path in tmp_path.iterdir()] == ["mounted"]


STEPS = ("rename", "replace", "mkdir", "unlink", "rmdir", "fsync", "chmod")


def killed(source: Path, target: Path, moment: int) -> bool:
    """Convert in a process that dies at the `moment`-th step on the disk; whether it did."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] != 0
    steps = itertools.count()

    def dying(function):
        def counted(*args, **kwargs):
            if next(steps) >= moment:
                os._exit(9)
            return function(*args, **kwargs)

        return counted

    for name in STEPS:
        setattr(os, name, dying(getattr(os, name)))
    try:
        convert(open_source(source), target, "native")
        os._exit(0)
    finally:
        os._exit(9)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not copied elsewhere")
@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_is_the_old_model_or_the_new(tmp_path, stride):
    """Whoever comes next, to load or to save, finds one of the two whole, and no remains in the end."""
    old, new, target = tmp_path / "old", tmp_path / "new", tmp_path / "target"
    convert(open_source(GOLDEN_SAT, GOLDEN_HF), new, "native")
    shutil.copytree(GOLDEN_HF, old)
    put_theirs(old)
    wanted = {path: {name: tensor.clone() for name, tensor in open_source(path).tensors()} for path in (old, new)}
    outcomes = []
    for moment in itertools.count(step=stride):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(old, target)
        was_killed = killed(new, target, moment)
        found = open_source(target)
        outcomes.append(found.format)
        tensors = dict(found.tensors())
        assert tensors.keys() == wanted[new].keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in wanted[new].items())
        if found.format == "visglm":
            found.processor()
            assert not any(name.startswith("pytorch_model") for name in ours(target))
        convert(open_source(new), target, "native")
        assert ours(target) == ours(new) and theirs(target) == THEIRS
        if not was_killed:
            break
    assert outcomes == sorted(outcomes) and set(outcomes) == {"hf-legacy", "visglm"} and len(outcomes) > 30 / stride


def test_a_save_that_was_cut_short_is_finished_by_who_loads(vlm, tmp_path, monkeypatch):
    shutil.copytree(GOLDEN_HF, tmp_path / "model")
    replace, left = os.replace, iter(range(3))

    def dying(source, target, **kwargs):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return replace(source, target, **kwargs)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        vlm.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(os, "replace", replace)
    again = VisGLM.from_pretrained(tmp_path / "model", device="cpu")
    assert again.chat(None, "Hi", max_new_tokens=4).text == vlm.chat(None, "Hi", max_new_tokens=4).text
    vlm.save_pretrained(tmp_path / "fresh")
    assert ours(tmp_path / "model") == ours(tmp_path / "fresh")


def test_remains_of_a_killed_save_go_with_the_next(vlm, tmp_path):
    for target in (tmp_path / "model", tmp_path / "model"):
        if target.exists():
            (target / ".visglm-0123456789abcdef").mkdir()
            (target / ".visglm-0123456789abcdef/0.safetensors").write_text("half")
        (tmp_path / ".model.visglm-0123456789abcdef").mkdir()
        vlm.save_pretrained(target)
        assert not list(tmp_path.rglob(".*visglm-*"))


def test_an_error_while_writing_leaves_no_trace(vlm, tmp_path, monkeypatch):
    def full(self, *args):
        raise OSError(28, os.strerror(28))

    vlm.save_pretrained(tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    monkeypatch.setattr(ShardWriter, "close", full)
    for name in ("model", "new"):
        with pytest.raises(CheckpointError, match="What was there before is intact"):
            vlm.save_pretrained(tmp_path / name)
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_full_disk_is_told_whatever_the_library_raises(tmp_path, suffix, monkeypatch):
    from visglm.checkpoint import writer

    save = writer.SAVE[suffix]
    monkeypatch.setitem(writer.SAVE, suffix, lambda tensors, path: save(tensors, Path("/dev/full")))
    with pytest.raises(CheckpointError, match="cannot be written"), replacing(tmp_path / "model") as partial:
        shards = ShardWriter(partial, "model", suffix)
        shards.add("a", torch.zeros(100_000))
        shards.close()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_finished_says_so(vlm, tmp_path, monkeypatch):
    shutil.copytree(GOLDEN_HF, tmp_path / "model")

    def denied(source, target, **kwargs):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(CheckpointError, match="next"):
        vlm.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="not finished"):
        VisGLM.from_pretrained(tmp_path / "model", device="cpu")
