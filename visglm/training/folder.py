"""Where the pictures of rows lie, and which of them a data file may name."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from PIL import Image

from ..errors import ImageError, shorten
from ..pictures import DEFAULT_LIMITS, SOURCES, ImageLimits, load_images

# Of `SOURCES`, those that can be read again in every epoch and by every process.
KINDS = ("data URL", "http(s) URL", "base64 text", "path", "bytes", "PIL image", "NumPy array", "PyTorch tensor")


@dataclass(frozen=True)
class Folder:
    """What paths in rows start from.

    Args:
        path: the folder of the data file.
        is_bound: only files below it may be named, links resolved: whoever wrote a data file must not put pictures
            of whoever trains on it into a report.
    """

    path: Path
    is_bound: bool = True

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __str__(self) -> str:
        return f"{shorten(str(self.path))}, the folder of the data file"

    def locate(self, image: Any) -> Any:
        """A picture of a row as `load_image` takes it, paths made whole.

        A path that leads to no file may have been written on Windows or a Mac, in other letters than the file has, or,
        as those of VisualGLM's fewshot-data, begin with the name of the folder itself.

        Raises:
            ImageError: the path leads out of the folder.
        """
        if kind_of(image) != "path":
            return image
        path = next((path for path in self.readings(os.fspath(image)) if os.path.isfile(path)), self.path / image)
        if self.is_bound:
            root, real = os.path.realpath(self.path), resolve(path)
            if real is not None and not Path(real).is_relative_to(root):
                raise ImageError(
                    f"the picture '{shorten(str(image))}' lies outside of {self}. If it may be read, pass "
                    "allow_outside=True (--allow-outside)."
                )
        return path

    def readings(self, image: str) -> Iterator[Path]:
        """What a path may mean, what is written first; each is still to be held against the folder's bounds."""
        name = image.replace("\\", "/")
        first, _, rest = name.removeprefix("./").partition("/")
        names = [image, name, name.strip(), *([rest] if first == self.path.absolute().name and rest else ())]
        yield from (self.path / each for each in dict.fromkeys(names))
        yield from filter(None, (in_other_letters(self.path, each) for each in dict.fromkeys(names[1:])))

    def check(self, image: Any) -> None:
        """Raise ImageError for a picture that is not there, or not to be read."""
        path = self.locate(image)
        if kind_of(image) == "http(s) URL" and not image.lower().startswith(("http://", "https://")):
            raise ImageError(
                f"the picture '{shorten(image)}' is an address that is not read. Name the file by its path."
            )
        if kind_of(image) == "http(s) URL":
            raise ImageError(
                f"the picture '{shorten(str(image))}' is a URL, which would be fetched anew in every epoch. Download "
                "them once: visglm data convert --allow-urls SOURCE TARGET."
            )
        if isinstance(path, Path) and not os.path.isfile(path):
            looked = "" if os.path.isabs(image) else f", looked for in {self}"
            raise ImageError(f"there is no picture '{shorten(str(image))}'{looked}.")

    def open(self, image: Any, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
        """The picture, to look at.

        Raises:
            ImageError: it cannot be read.
        """
        self.check(image)
        return load_images([self.locate(image)], limits=limits, is_read_only=True)[0]


class WorkingDirectory(Folder):
    """Of rows that are Python objects, whose paths are the caller's own."""

    def __str__(self) -> str:
        return f"{shorten(os.getcwd())}, the working directory"


HERE = WorkingDirectory(Path(), is_bound=False)


def in_other_letters(folder: Path, name: str) -> Path | None:
    """What is called so below a folder but for capitals, which Windows and macOS do not tell apart, and for how accents
    are put together, where macOS has ways of its own; None where there is no such file, or more than one."""
    path, parts = folder, PurePath(name).parts
    if PurePath(name).is_absolute() or ".." in parts:
        return None
    for part in parts:
        there: Path | None = path / part
        if not os.path.lexists(path / part):
            try:
                found = names_in(str(path), os.stat(path).st_mtime_ns).get(plain(part))
            except OSError:
                return None
            there = None if found is None else path / found
        if there is None:
            return None
        path = there
    return path


@lru_cache(maxsize=64)
def names_in(folder: str, version: int) -> Mapping[str, str | None]:
    """What is in a folder, by `plain` names; None where several are the same then.

    Args:
        version: when the folder was changed last.
    """
    names: dict[str, str | None] = {}
    for name in os.listdir(folder):
        names[plain(name)] = None if plain(name) in names else name
    return names


def plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def resolve(path: Path) -> str | None:
    """The path with links followed; None for what cannot be a path."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # a null character, or half a character
        return None


def kind_of(image: Any) -> str | None:
    """The row of `SOURCES` that takes a picture."""
    return next((name for name, kind in SOURCES.items() if kind.accepts(image)), None)


def open_image(image: Any, folder: Folder, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """The picture that a row names, to look at.

    Raises:
        ImageError: it cannot be read, or its path leads out of the folder.
    """
    return folder.open(image, limits)


def check_files(images: Sequence[Any], folder: Folder) -> None:
    for image in images:
        folder.check(image)
