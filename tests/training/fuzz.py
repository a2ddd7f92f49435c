"""Seeded nonsense: rows of every format, mutated, in files of every kind, themselves mutated at times."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What is put in place of any value.
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, 10**400, "", " ", "\0", "\ud83d", "\udce9", "\x1b[31m\r\n", "\u202e", "<image>",
    "[gMASK]<sop>",
    "a" * 5000, "猫" * 300, "/etc/passwd", "../../x.png", "file:///etc/passwd", "https://example.org/a.png",
    "data:image/png;base64,AAAA", "iVBORw0KGgo" + "A" * 40, [], {}, [[]], {"a": {"b": [1]}}, [None], {"bytes": None},
    {"path": "pictures/0.png"}, {"url": "pictures/0.png"}, ["pictures/0.png"] * 3, [["a", "b"]], {"type": "image"},
    [{"type": "text", "text": "A?"}], [{"type": "image"}, {"type": "text", "text": "A <image>?"}],
    {"role": "user", "content": "A?"}, {"from": "human", "value": "<image>"}, float("nan"), "pictures/broken.png",
    "pictures", "pictures/0.png",
)  # fmt: skip
KEYS = (
    "image", "images", "caption", "text", "messages", "conversations", "role", "content", "from", "value", "type",
    "img", "prompt", "label", "system", "references", "id", "url", "bytes", "path", "\x1b[2J", "", "jpg", "txt",
)  # fmt: skip
PARTS = [{"type": "image_url", "image_url": {"url": "pictures/1.png"}}, {"type": "text", "text": "B?"}]
ANSWER = {"role": "assistant", "content": "A."}
LLAVA = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}]
SAMPLES: tuple[Any, ...] = (
    {"images": ["pictures/0.png"], "messages": [{"role": "user", "content": "<image>What?"}, ANSWER]},
    {"messages": [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}, ANSWER]},
    {"messages": [{"role": "user", "content": PARTS}, ANSWER]},
    {"images": ["pictures/1.png"], "messages": [{"role": "user", "content": [{"type": "image"}, PARTS[1]]}, ANSWER]},
    {"image": "pictures/0.png", "conversations": LLAVA, "system": "Be."},
    {"img": "pictures/1.png", "prompt": "What?", "label": "A disc."},
    {"image": "pictures/0.png", "caption": "A disc.", "references": ["disc"], "type": "name", "id": 7},
    {"file_name": "pictures/0.png", "text": "一个圆。"},
)
PIECES = (b'"', b"\\", b"\r", b"\n", b",", b"[", b"]", b"{", b"}", b"\0", b"\xff", b"\xef\xbb\xbf", b'"' * 3)
PREFIXES = ("", "", "", "/", "../", "._", "a" * 150 + "/", "\udce9", "\x1b[2J")  # of names in tar files
EXTENSIONS = ("png", "txt", "json", "jpg", "gif", "cls", "seg.png")
PLAIN = (tarfile.REGTYPE,) * 20
MEMBERS = (*PLAIN, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def mutate(chance: random.Random, row: Any) -> Any:
    """A row with a value replaced, removed, repeated or put under another key, at any depth."""
    row = json.loads(json.dumps(row))
    path = chance.choice(places(row))
    if not path:
        return chance.choice(VALUES) if chance.random() < 0.3 else [row] * chance.randrange(3)
    holder = row
    for key in path[:-1]:
        holder = holder[key]
    key = path[-1]
    action = chance.randrange(5)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif action == 2 and isinstance(holder, dict):
        holder[chance.choice(KEYS)] = holder.pop(key)
    elif action == 3 and isinstance(holder, dict):
        holder[chance.choice(KEYS)] = chance.choice(VALUES)
    else:
        holder[key] = chance.choice(VALUES)
    return row


def make_row(chance: random.Random) -> Any:
    row = chance.choice(SAMPLES)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
        row = mutate(chance, row)
    return row


def garble(chance: random.Random, data: bytes) -> bytes:
    """Bytes of which some are changed, cut out or repeated, or that end early."""
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(changed) + 1)
        piece = chance.choice(PIECES)
        end = place + chance.choice((0, 0, 1, 5))
        changed[place:end] = piece if chance.random() < 0.8 else changed[place : place + 50]
    return bytes(changed[: chance.randrange(len(changed) + 1)] if chance.random() < 0.05 else changed)  # fmt: skip


def lines(chance: random.Random, count: int) -> bytes:
    """A JSONL file: every row may be garbled by itself."""
    parts = []
    for _ in range(count):
        line = json.dumps(make_row(chance), ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
        parts.append(garble(chance, line) if chance.random() < 0.2 else line)
    return b"\n".join(parts)


def listed(chance: random.Random, count: int) -> bytes:
    """A JSON list; few are garbled, as one wrong bracket is the end of all of it."""
    data = json.dumps([make_row(chance) for _ in range(count)], indent=chance.choice((None, 1))).encode()
    return garble(chance, data) if chance.random() < 0.3 else data


def table(chance: random.Random, count: int) -> bytes:
    """A CSV file with cells from everywhere."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator=chance.choice(("\n", "\r\n", "\r")))
    writer.writerow(("image", "caption"))
    for _ in range(count):
        cells = [chance.choice(("pictures/0.png", "pictures/1.png")), "A disc."]
        if chance.random() < 0.3:
            cells[chance.randrange(2)] = str(chance.choice((*VALUES[6:20], 'a "b", c', "a\nb", '"')))
        writer.writerow(cells if chance.random() < 0.95 else cells[:1])
    first, *rest = file.getvalue().encode("utf-8", "surrogatepass").splitlines(keepends=True)
    return first + b"".join(garble(chance, line) if chance.random() < 0.1 else line for line in rest)


def shard(chance: random.Random, count: int, picture: bytes) -> bytes:
    """A tar file whose members are of every kind; few headers are garbled, as one is the end of all of it."""
    file = io.BytesIO()
    layout = chance.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=file, mode="w", format=layout) as archive:
        for number in range(count):
            for extension in chance.sample(EXTENSIONS, chance.randrange(1, 4)):
                content = picture if extension in ("png", "jpg", "gif") else json.dumps(make_row(chance)).encode()
                if chance.random() < 0.1:
                    content = garble(chance, content)
                member = tarfile.TarInfo(f"{chance.choice(PREFIXES)}{number}.{extension}")
                member.type = chance.choice(MEMBERS)
                member.size = len(content) if member.type == tarfile.REGTYPE else 0
                member.linkname = "0.png"
                archive.addfile(member, io.BytesIO(content))
    data = bytearray(file.getvalue())
    if chance.random() < 0.5:
        for _ in range(chance.randrange(1, 30)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def write_nonsense(folder: Path, chance: random.Random, count: int, picture: bytes) -> Path:
    """A data file of about `count` rows, in a kind of file that chance chooses."""
    makers: dict[str, Callable[[], bytes]] = {
        "rows.jsonl": lambda: lines(chance, count),
        "rows.json": lambda: listed(chance, count),
        "rows.csv": lambda: table(chance, count),
        "rows.tar": lambda: shard(chance, count, picture),
    }
    name = chance.choice(list(makers))
    (folder / name).write_bytes(makers[name]())
    return folder / name
