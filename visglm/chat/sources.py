"""Where an answer with citations comes from: a library, or what a search engine finds on the web."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, PromptError
from ..reply import Reply

if TYPE_CHECKING:
    from ..library import Library, Web


def answer_from(
    library: Library | str | Path | None, web: bool | str | Web, question: Any, answer: Callable[[Library], Reply]
) -> Reply:
    """Have `answer` answer from the one of the two that is given.

    Raises:
        ConfigError: neither is given, or both.
        LibraryError: there is no library; as `WebError`, no search engine that answers.
        PromptError: there is nothing to look for on the web.
    """
    from .. import library as shelves

    if (library is None) == (web is False):
        raise ConfigError("an answer comes from a library or from the web: give library=… or web=….")
    if library is not None:
        return answer(shelves.Library.open(library, create=False) if isinstance(library, str | Path) else library)
    settled = shelves.Web.of(web)
    if not isinstance(question, str) or not question.strip():
        raise PromptError(f"the question must be a string that is not empty; got {question!r:.80}.")
    with shelves.visited(question, settled) as (opened, skipped):
        return replace(answer(opened), skipped=skipped)
