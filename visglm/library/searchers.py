"""Search engines: a question → addresses that may answer it. A new one is a function and a row of `SEARCHERS`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

from ..errors import FetchError, WebError, require
from ..pictures.fetch import get

MAX_QUESTION = 400  # characters that are sent to a search engine
MAX_ANSWER = 4 * 2**20  # bytes of what it answers


class Searcher(NamedTuple):
    """A row of `SEARCHERS`.

    Args:
        search: (question, its key or address, how many, seconds) → addresses, best first.
        variable: of the environment that holds the key or the address; "" for none, and then it must be asked for.
    """

    search: Callable[[str, str, int, float], list[str]]
    variable: str


def ask(address: str, timeout: float, headers: Mapping[str, str], body: Any = None, may_be_inside: bool = False) -> Any:
    """What a search engine answers in JSON. It is never redirected: a key goes where it is meant to, and nowhere else.

    Raises:
        FetchError, WebError: there is none.
    """
    data = None if body is None else json.dumps(body).encode()
    sent = {"Accept": "application/json", **headers, **({} if data is None else {"Content-Type": "application/json"})}
    found = get(address, MAX_ANSWER, timeout, 0, headers=sent, data=data, may_be_inside=may_be_inside)
    try:
        return json.loads(found.body)
    except (ValueError, RecursionError):
        raise WebError("it did not answer in JSON.") from None


def addresses(answer: Any, path: tuple[str, ...], name: str) -> list[str]:
    """The addresses in an answer: a list of objects at the end of a path, each with a field of this name."""
    for key in path:
        answer = answer.get(key) if isinstance(answer, dict) else None
    if answer is None:
        return []
    if not isinstance(answer, list):
        raise WebError(f"its answer has no list of {path[-1]}.")
    found = [one.get(name) for one in answer if isinstance(one, dict)]
    return [one for one in found if isinstance(one, str)]


def searxng(question: str, address: str, limit: int, timeout: float) -> list[str]:
    """One's own, or one that lets others in. Its address is the operator's word, and may be on this machine."""
    query = urlencode({"q": question, "format": "json"})
    try:
        answer = ask(f"{address.rstrip('/')}/search?{query}", timeout, {}, may_be_inside=True)
    except FetchError as error:
        if "status 403" in str(error):
            raise WebError(
                "it answers with status 403: JSON is switched off. Add json to search.formats in its settings.yml."
            ) from None
        raise
    return addresses(answer, ("results",), "url")


def brave(question: str, key: str, limit: int, timeout: float) -> list[str]:
    query = urlencode({"q": question, "count": limit})
    address = f"https://api.search.brave.com/res/v1/web/search?{query}"
    return addresses(ask(address, timeout, {"X-Subscription-Token": key}), ("web", "results"), "url")


def tavily(question: str, key: str, limit: int, timeout: float) -> list[str]:
    body = {"query": question, "max_results": limit}
    answer = ask("https://api.tavily.com/search", timeout, {"Authorization": f"Bearer {key}"}, body)
    return addresses(answer, ("results",), "url")


def serper(question: str, key: str, limit: int, timeout: float) -> list[str]:
    answer = ask("https://google.serper.dev/search", timeout, {"X-API-KEY": key}, {"q": question, "num": limit})
    return addresses(answer, ("organic",), "link")


def ddgs(question: str, key: str, limit: int, timeout: float) -> list[str]:
    """Engines that have no interface for programs, as they are; they may turn it away at any time."""
    module = require("ddgs", "ddgs")
    try:
        found = module.DDGS(timeout=max(1, round(timeout))).text(question, max_results=limit)
    except Exception as error:  # of whichever engine it asked
        raise WebError(f"it has no answer ({type(error).__name__}).") from None
    return [str(one["href"]) for one in found if one.get("href")]


# In the order in which they are taken where none is named.
SEARCHERS: dict[str, Searcher] = {
    "searxng": Searcher(searxng, "VISGLM_SEARXNG"),
    "brave": Searcher(brave, "BRAVE_API_KEY"),
    "tavily": Searcher(tavily, "TAVILY_API_KEY"),
    "serper": Searcher(serper, "SERPER_API_KEY"),
    "ddgs": Searcher(ddgs, ""),
}


def choose(searcher: str | None) -> tuple[str, Searcher, str]:
    """Name, row, and key or address.

    Args:
        searcher: a name of `SEARCHERS`, or the address of a SearXNG; None for the first that the environment has.

    Raises:
        WebError: there is none.
    """
    if searcher is not None and searcher.startswith(("http://", "https://")):
        return "searxng", SEARCHERS["searxng"], searcher
    if searcher is not None and searcher not in SEARCHERS:
        raise WebError(
            f"{searcher!r:.80} is no search engine. Give the address of a SearXNG, or one of {', '.join(SEARCHERS)}."
        )
    for name, row in SEARCHERS.items():
        key = os.environ.get(row.variable, "") if row.variable else ""
        if searcher == name and (key or not row.variable):
            return name, row, key
        if searcher == name:
            raise WebError(f"{name} needs {row.variable} in the environment.")
        if searcher is None and key:
            return name, row, key
    variables = ", ".join(row.variable for row in SEARCHERS.values() if row.variable)
    raise WebError(
        "no search engine is named. Give the address of a SearXNG, or ddgs, with --searcher (Python: web=…), or put "
        f"one of {variables} into the environment."
    )


def search(question: str, searcher: str | None, limit: int, timeout: float) -> list[str]:
    """Addresses, best first, each once.

    Raises:
        WebError: no search engine was named, or the one that was has no answer. Another is never taken for it.
    """
    name, row, key = choose(searcher)
    try:
        found = row.search(" ".join(question.split())[:MAX_QUESTION], key, limit, timeout)
    except (FetchError, WebError) as error:
        raise WebError(f"{name} cannot be asked: {error}") from None
    return list(dict.fromkeys(found))[:limit]
