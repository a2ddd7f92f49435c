"""What the web says to a question: found by a search engine, fetched within bounds, kept for as long as it is asked.

Nothing that a page says has a part in what is fetched: the addresses are the search engine's. Each of them, and each
that it redirects to, has to be public; its host is asked for its robots.txt first, and not more often than it bears.
"""

from __future__ import annotations

import logging
import queue
import tempfile
import threading
import time
import urllib.robotparser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult

from ..errors import ConfigError, DocumentError, FetchError, MissingDependencyError, printable, require
from ..pictures.fetch import USER_AGENT, Fetched, get
from .collection import Library
from .pieces import LibraryLimits, Piece, within
from .readers import read
from .readers.encodings import declared_encoding, decode
from .readers.text import read_text
from .searchers import search

HTML = ("text/html", "application/xhtml+xml")
TEXT = ("text/plain", "text/markdown")
PDF = "application/pdf"
MAX_ROBOTS = 512 * 1024  # bytes, as RFC 9309 has it
REDIRECTS = 4
LONGEST_WAIT = 5.0  # seconds that a host may want between two requests; one that wants more is not asked


@dataclass(frozen=True)
class Web:
    """How the web is asked.

    Args:
        searcher: a name of `SEARCHERS`, or the address of a SearXNG; None for the first that the environment has.
        max_pages: pages that are fetched.
        max_bytes: of each.
        page_timeout: longest time for each, in seconds.
        timeout: for the search and all pages together, in seconds: what is not there by then is left out.
        pause: shortest time between two requests to one host, in seconds.
        vectors: find what they say by its meaning, too, which may take longer than fetching it.
    """

    searcher: str | None = None
    max_pages: int = 6
    max_bytes: int = 4 * 2**20
    page_timeout: float = 8.0
    timeout: float = 25.0
    pause: float = 1.0
    vectors: bool = False

    def __post_init__(self) -> None:
        if min(self.max_pages, self.max_bytes, self.page_timeout, self.timeout) <= 0 or self.pause < 0:
            raise ConfigError(f"Limits of the web must be positive, only pause may be 0; got {self}.")

    @classmethod
    def of(cls, value: Any) -> Web:
        """From what a caller gives: True, a search engine or an address, or the whole.

        Raises:
            ConfigError: it is none of them.
        """
        if isinstance(value, Web):
            return value
        if value is True or isinstance(value, str):
            return cls() if value is True else cls(searcher=value)
        raise ConfigError(f"web must be True, the name or address of a search engine, or a Web; got {value!r:.80}.")


@dataclass
class Hosts:
    """When each host may be asked again. Thread-safe, and for all questions of a process."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    free: dict[str, float] = field(default_factory=dict)  # host → when, by time.monotonic

    def wait(self, host: str, pause: float, deadline: float) -> None:
        """Until it is this request's turn.

        Raises:
            FetchError: that would be too late.
        """
        with self.lock:
            now = time.monotonic()
            turn = max(now, self.free.get(host, 0.0))
            if turn >= deadline:
                raise FetchError("others are asking its host, and there is no time left.")
            self.free = {name: when for name, when in self.free.items() if when > now}
            self.free[host] = turn + pause
        time.sleep(turn - now)


HOSTS = Hosts()


class Visit:
    """Fetches the pages of one question."""

    def __init__(self, web: Web):
        self.web, self.deadline = web, time.monotonic() + web.timeout
        self.robots: dict[str, urllib.robotparser.RobotFileParser | FetchError] = {}
        self.turns: dict[str, threading.Lock] = {}  # by host, like the rules
        self.lock = threading.Lock()

    @property
    def left(self) -> float:
        """Seconds."""
        return max(self.deadline - time.monotonic(), 0.001)

    def fetch(self, url: str) -> Fetched:
        """One page.

        Raises:
            FetchError: it is not to be had.
        """
        accept = {"Accept": f"{', '.join(HTML)}, {PDF}, {TEXT[0]};q=0.5"}
        timeout = min(self.web.page_timeout, self.left)
        return get(url, self.web.max_bytes, timeout, REDIRECTS, before=self.check, headers=accept)

    def check(self, parts: SplitResult) -> None:
        """Ask a host whether and how often it may be asked, and wait for that.

        Raises:
            FetchError: it may not.
        """
        rules = self.rules(parts)
        path = (parts.path or "/") + (parts.query and f"?{parts.query}")
        if not rules.can_fetch(USER_AGENT, path):
            raise FetchError("its host does not want it to be fetched by programs (robots.txt).")
        pause = max(self.web.pause, float(rules.crawl_delay(USER_AGENT) or 0))
        if pause > max(self.web.pause, LONGEST_WAIT):
            raise FetchError(f"its host wants {pause:g} seconds between two requests (robots.txt).")
        HOSTS.wait(f"{parts.scheme}://{parts.netloc}".lower(), pause, self.deadline)

    def rules(self, parts: SplitResult) -> urllib.robotparser.RobotFileParser:
        """The robots.txt of a host: without one all is allowed, and where it cannot be had for now, nothing."""
        host = f"{parts.scheme}://{parts.netloc}".lower()
        with self.lock:
            turn = self.turns.setdefault(host, threading.Lock())
        with turn:  # whoever comes second finds what the first was told
            if host not in self.robots:
                self.robots[host] = self.read_rules(host)
        known = self.robots[host]
        if isinstance(known, FetchError):
            raise known
        return known

    def read_rules(self, host: str) -> urllib.robotparser.RobotFileParser | FetchError:
        rules = urllib.robotparser.RobotFileParser()
        try:
            found = get(f"{host}/robots.txt", MAX_ROBOTS, min(self.web.page_timeout, self.left), REDIRECTS)
            rules.parse(found.body.decode("utf-8", "replace").splitlines())
        except FetchError as error:
            if "status 4" not in str(error):
                return error
            rules.parse([])
        return rules


@contextmanager
def visited(question: str, web: Web) -> Iterator[tuple[Library, dict[str, str]]]:
    """A library of what the web says to a question, gone behind the `with`; and address → why it is not in there.

    Raises:
        WebError: there is no search engine to be asked.
        MissingDependencyError: the extra is not installed.
    """
    require("web", "trafilatura")
    with tempfile.TemporaryDirectory(prefix="visglm-web-") as folder:
        library = Library.open(f"{folder}/web.library", vectors=web.vectors)
        visit = Visit(web)  # from here on time counts
        urls = search(question, web.searcher, web.max_pages, min(web.page_timeout, visit.left))
        yield library, fill(library, visit, urls)


def fill(library: Library, visit: Visit, urls: list[str]) -> dict[str, str]:
    """Put pages into a library. → address → why it could not be."""
    skipped: dict[str, str] = {}
    for url, found in gather(visit, urls):
        if isinstance(found, tuple):
            source, pieces = found
            library.put(source, pieces)
        else:
            skipped[printable(url)] = found
    return skipped


def gather(visit: Visit, urls: list[str]) -> Iterator[tuple[str, tuple[str, list[Piece]] | str]]:
    """Pages as they come, until the time is over: address → where it is in the end and its pieces, or why not.

    Each is fetched and read in a thread of its own: one that a hostile page keeps busy is not waited for.
    """
    results: queue.SimpleQueue[tuple[str, tuple[str, list[Piece]] | str]] = queue.SimpleQueue()

    def act(url: str) -> None:
        try:
            found = visit.fetch(url)
            results.put((url, (found.url, pieces_of(found, visit.web.max_bytes))))
        except (FetchError, DocumentError, MissingDependencyError) as error:
            results.put((url, str(error)))
        except Exception as error:  # parsers meet a hostile page with any error there is
            results.put((url, f"it cannot be read ({type(error).__name__})."))

    waiting = set(urls)
    for url in urls:
        threading.Thread(target=act, args=(url,), name="visglm-web", daemon=True).start()
    while waiting:
        try:
            url, result = results.get(timeout=visit.left)
        except queue.Empty:
            break
        waiting.discard(url)
        yield url, result
    for url in waiting:
        yield url, "it was not there in time."


def pieces_of(found: Fetched, max_bytes: int) -> list[Piece]:
    """What a page says.

    Raises:
        DocumentError: nothing, or nobody reads such things.
    """
    kind, _, settings = found.kind.partition(";")
    kind, limits = kind.strip().lower(), LibraryLimits(max_bytes=max_bytes, max_pictures=0)
    if kind == PDF:
        pieces = [piece for piece in read(found.body, "page.pdf", limits) if piece.image is None]
    elif kind in HTML:
        declared = declared_encoding(settings.encode()) or declared_encoding(found.body)
        pieces = list(within(article(decode(found.body, declared)), limits))
    elif kind in TEXT:
        pieces = list(within(read_text(found.body, "page.txt", limits), limits))
    else:
        raise DocumentError(f"pages of the kind {printable(kind)[:40]!r} are not read.")
    if not any(piece.text.strip() for piece in pieces):
        raise DocumentError("there is no text in it.")
    return pieces


def article(text: str) -> Iterator[Piece]:
    """What a page is there for, without what stands around it, by headings. No script is run and nothing loaded."""
    trafilatura = require("web", "trafilatura")
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # a page without text is told by its own error
    document = trafilatura.bare_extraction(text, include_comments=False, with_metadata=False)
    body = getattr(document, "body", None)
    if body is None:
        return
    headings: list[str] = []
    for element in body.iter("head", "p", "item", "row", "quote", "code"):
        if element.getparent() is not None and element.getparent().tag in ("item", "quote", "row"):
            continue  # is in its text
        words = " | ".join if element.tag == "row" else " ".join
        said = words(" ".join(part.split()) for part in element.itertext() if part.strip())
        if element.tag == "head":
            level = max(int(element.get("rend", "h2")[-1:].replace("h", "2") or 2) - 1, 0)
            headings = [*headings[:level], said]
        elif said:
            yield Piece(said, heading=" › ".join(filter(None, headings)))


__all__ = ["Web", "visited"]
