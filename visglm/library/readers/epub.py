"""Books in EPUB: their chapters, in the order of the book."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import unquote

from ...errors import DocumentError, ImageError
from ...pictures import load_image
from ..pieces import LibraryLimits, Piece, check_size
from .archive import open_archive
from .encodings import declared_encoding, decode
from .markup import parse

CHAPTERS = ("application/xhtml+xml", "text/html")


class Tags(HTMLParser):
    """Attributes of the tags that are asked for, whatever their prefix: no entity is expanded on the way."""

    def __init__(self, text: str, *names: str):
        super().__init__()
        self.found: dict[str, list[dict[str, str]]] = {name: [] for name in names}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        name = tag.rpartition(":")[2]
        if name in self.found:
            self.found[name].append({key: value or "" for key, value in attributes})


def read_epub(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """A chapter counts as a page."""
    archive = open_archive(data, limits)
    container = _text(archive, "META-INF/container.xml")
    roots = Tags(container, "rootfile").found["rootfile"]
    if not roots:
        raise DocumentError("it is damaged: it does not say where its contents are.")
    package = roots[0].get("full-path", "")
    if "META-INF/encryption.xml" in archive.namelist() and "adobe" in _text(archive, "META-INF/encryption.xml"):
        raise DocumentError("it is encrypted. Only books without such a protection are read.")
    found = Tags(_text(archive, package), "item", "itemref").found
    items = {item.get("id", ""): item for item in found["item"]}
    spine = [items[reference["idref"]] for reference in found["itemref"] if reference.get("idref") in items]
    chapters = [item for item in spine if item.get("media-type") in CHAPTERS]
    check_size(len(chapters), limits.max_pages, "chapters")
    for number, item in enumerate(chapters, start=1):
        yield from parse(_text(archive, _path(package, item)), limits, page=number)
    for item in found["item"]:
        if item.get("media-type", "").startswith("image/"):
            try:
                image = load_image(archive.read(_path(package, item)), limits=limits.images)
            except (ImageError, KeyError, zipfile.BadZipFile):
                continue
            yield Piece("", image=image)


def _path(package: str, item: dict[str, str]) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(package), unquote(item.get("href", ""))))


def _text(archive: zipfile.ZipFile, name: str) -> str:
    try:
        data = archive.read(name)
    except KeyError:
        raise DocumentError(f"it is damaged: {name[:80]!r} is missing inside.") from None
    return decode(data, declared_encoding(data))
