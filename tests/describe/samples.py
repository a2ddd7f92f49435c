"""Folders, shards and tables of pictures."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow
from PIL import Image
from pyarrow import parquet

from visglm.cli import main

SHORT = ("--max-new-tokens", "3", "--device", "cpu")


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (24, 24), (number * 7 % 256, number * 29 % 256, 90)).save(out, "PNG")
    return out.getvalue()


def fill(folder: Path, count: int) -> Path:
    for number in range(count):
        below = folder / f"{number % 3}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{number:03}.png").write_bytes(png(number))
    return folder


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tabulate(path: Path, contents: list[bytes | None], *, plain: bool = False) -> Path:
    pictures = contents if plain else [{"bytes": content, "path": "x.png"} for content in contents]
    table = pyarrow.table({"label": list(range(len(contents))), "image": pictures})
    parquet.write_table(table, path, row_group_size=2)
    return path


def rows_of(folder: Path) -> list[dict]:
    rows = []
    for path in sorted(folder.glob("part-*")):
        if path.suffix == ".parquet":
            rows += parquet.read_table(path).to_pylist()
        else:
            rows += [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return rows


def run(source, target, *words) -> int:
    return main(["describe", str(source), str(target), *SHORT, *words])
