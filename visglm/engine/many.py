"""Many questions: so many at a time on their way, and a bad one loses nothing but itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from tqdm import tqdm

from ..errors import VisGLMError
from ..reply import Reply
from ..request import Prompt, check_requests, take_apart
from ..settings import Rule, check_call
from .answer import Answer
from .task import POLL_SECONDS

RULES = {
    "batch_size": Rule(int, 1, 65_536),
    "on_error": Rule(str, names=("raise", "return")),
    "progress": Rule(bool),
}


def answer_all(
    requests: Iterable[Sequence[Any]],
    prepare: Callable[[Any, Any, Any], Prompt],
    submit: Callable[[Sequence[Prompt]], list[Answer]],
    *,
    batch_size: int,
    on_error: str,
    progress: bool,
) -> list[Reply | VisGLMError]:
    """Prepare and ask `requests`, `batch_size` of them on their way; what is wrong with one is raised or put in its
    place.

    Raises:
        ConfigError: `batch_size`, `on_error` or `progress` is not what `VisGLM.batch` takes.
        PromptError: `requests` is no list.
    """
    check_call(RULES, batch_size=batch_size, on_error=on_error, progress=progress)
    requests = check_requests(requests)
    results: dict[int, Reply | VisGLMError] = {}
    asked: dict[int, Answer] = {}
    following = 0
    with tqdm(total=len(requests), unit="answer", disable=not progress) as bar:
        while len(results) < len(requests):
            # Several at once: pictures and prompts that come together are read together.
            room = batch_size - len(asked)
            if following < len(requests) and (2 * room >= batch_size or not asked):
                places = range(following, min(following + room, len(requests)))
                prepared = {place: or_error(partial(ready, requests[place], prepare), on_error) for place in places}
                following = places.stop
                good = {place: item for place, item in prepared.items() if isinstance(item, Prompt)}
                asked |= dict(zip(good, submit(list(good.values())), strict=True)) if good else {}
                results |= {place: item for place, item in prepared.items() if isinstance(item, VisGLMError)}
            else:
                wait_for_any(list(asked.values()))
                for place in [place for place, answer in asked.items() if answer.is_done]:
                    results[place] = or_error(asked.pop(place).reply, on_error)
            bar.update(len(results) - bar.n)
    return [results[place] for place in range(len(requests))]


def ready(request: Any, prepare: Callable[[Any, Any, Any], Prompt]) -> Prompt:
    return prepare(*take_apart(request))


def or_error(act: Callable[[], Any], on_error: str) -> Any:
    """What `act` gives, or its error where that is wanted."""
    try:
        return act()
    except VisGLMError as error:
        if on_error == "raise":
            raise
        return error


def wait_for_any(answers: Sequence[Answer]) -> None:
    """Until one of them is done; they are of one engine."""
    condition = answers[0].ticket.engine.turns.condition
    with condition:
        while not any(answer.is_done for answer in answers):
            condition.wait(POLL_SECONDS)
