"""The errors visglm raises, how foreign text appears in them, and the one way it loads optional packages.

Every message says what went wrong, what was given, what was expected and what to do next. Catch `VisGLMError`
for all of them; each is also the built-in error (`ValueError`, `ImportError`) that plain Python would raise.
"""

from __future__ import annotations

import importlib
import reprlib
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# Categories of Unicode that move the cursor, end a line or cannot be encoded, and the marks that turn the direction of
# writing. Joiners within emoji and Chinese spaces stay.
STEERING = ("Cc", "Cs", "Zl", "Zp")
DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
MAX_SHOWN = 160  # characters of a foreign text in a message


class VisGLMError(Exception):
    """Base class of every error that visglm raises on purpose."""


class ImageError(VisGLMError, ValueError):
    """A picture was refused or could not be read."""


class FetchError(VisGLMError, ValueError):
    """An address was refused, or what is behind it cannot be had; the message does not name it."""


class PromptError(VisGLMError, ValueError):
    """A conversation cannot be turned into a prompt."""


class ContextLengthError(PromptError):
    """A prompt and its answer do not fit into the model's context."""


class PicturesWarning(UserWarning):
    """A conversation has more pictures than the model was taught with."""


class LibraryError(VisGLMError, ValueError):
    """A library cannot be opened, or what was asked of it cannot be done."""


class DocumentError(LibraryError):
    """A document was refused or cannot be read."""


class WebError(LibraryError):
    """No search engine was named, or the one that was cannot be used."""


class LibraryWarning(UserWarning):
    """A library does less than it could, for want of an optional package."""


class ConfigError(VisGLMError, ValueError):
    """A setting is unknown, out of range or contradicts another one."""


class BusyError(VisGLMError, RuntimeError):
    """The model is in use for something long, in another thread."""


class EngineError(VisGLMError, RuntimeError):
    """The model failed while it answered."""


class ServerError(VisGLMError, RuntimeError):
    """A server of `visglm serve` cannot be asked, or does not answer.

    Args:
        message: for people.
        reason: "unreachable", "key" (a wrong one, or none), "missing" (no such model, or no such server), "full",
            "ending" (or busy with something long), "refused" (what was asked) or "failed".
        wait: seconds after which to ask again, where the server said so.
    """

    def __init__(self, message: str, reason: str, wait: float | None = None):
        super().__init__(message, reason, wait)
        self.reason, self.wait = reason, wait

    def __str__(self) -> str:
        return self.args[0]


class DataError(VisGLMError, ValueError):
    """A row, or a whole file, of training data cannot be used; the message names file and line."""


class TrainingError(VisGLMError, RuntimeError):
    """Training cannot start, or had to stop before it did harm."""


class CheckpointError(VisGLMError, ValueError):
    """A checkpoint cannot be used; the message lists every problem found, not just the first.

    Args:
        where: the file or folder, as the caller named it.
        problems: one line per problem; at least one.
        next_step: what the reader should do now, a full sentence.
    """

    def __init__(self, where: object, problems: Iterable[str], next_step: str):
        self.where = str(where)
        self.problems = [printable(problem) for problem in problems]
        self.next_step = next_step
        # All three become `args`, so that the error survives pickling on its way out of a worker process.
        super().__init__(self.where, self.problems, self.next_step)

    def __str__(self) -> str:
        head = f"{printable(self.where)} cannot be used, {counted(len(self.problems), 'problem')}:"
        return "\n".join([head, *(f"  - {problem}" for problem in self.problems), self.next_step])


class MissingDependencyError(VisGLMError, ImportError):
    """An optional package is needed for what was asked and cannot be imported."""


def require(extra: str, *modules: str, distribution: str = "visglm") -> Any:
    """Import optional modules at the point where they are chosen.

    Args:
        extra: the extra of visglm that installs them, for example `"serve"`.
        modules: dotted module names, for example `"uvicorn"`.
        distribution: that has this extra.

    Returns:
        The module, or a tuple of modules when several were named.

    Raises:
        MissingDependencyError: one of them cannot be imported; the message holds the `pip install` line.
    """
    loaded = []
    for module in modules:
        try:
            loaded.append(importlib.import_module(module))
        except ImportError as error:
            raise MissingDependencyError(
                f"This needs the optional package {module!r}, which cannot be imported ({error}). "
                f'Install it with: pip install "{distribution}[{extra}]"'
            ) from error
    return loaded[0] if len(loaded) == 1 else tuple(loaded)


@contextmanager
def writing(place: object, kept: str = "") -> Iterator[None]:
    """A block that writes where the caller has said, and does nothing else that the system could refuse.

    Args:
        place: file or folder, as the caller named it. kept: a sentence on what is safe all the same.

    Raises:
        ConfigError: the system refuses: no room, no permission, something else is there.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or printable(str(error))
        next_step = " ".join(filter(None, (kept, "Make room, or choose another place.")))
        raise ConfigError(f"{shorten(str(place))} cannot be written ({reason}). {next_step}") from error


def printable(text: str) -> str:
    """Foreign text (a name, a key, a path) for messages: what would steer a terminal is written as an escape."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in STEERING or character in DIRECTION
        else character
        for character in text
    )


def shorten(text: str) -> str:
    """Foreign text as `printable`, its middle left out where it is long: the end of a path says most."""
    short = text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN // 2]}…{text[-MAX_SHOWN // 2 :]}"
    return printable(short)


def counted(number: int, one: str, many: str = "") -> str:
    """How many there are of a thing, such as "1 file" and "2 files"; `many` where that is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def shown(value: object) -> str:
    """What a foreign value looks like, in a few words, however deep or long it is."""
    if isinstance(value, str):
        return repr(shorten(value)) if value.isprintable() else f"'{shorten(value)}'"
    try:
        return printable(reprlib.repr(value))
    except Exception:  # a number of thousands of digits, or an object whose own text fails
        return f"a value of type {type(value).__name__}"
