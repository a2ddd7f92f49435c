"""Many questions: several share a pass through the model, and a bad one loses nothing but itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from .errors import PromptError, VisGLMError
from .reply import Reply
from .request import Prompt
from .settings import Rule, check_call

RULES = {
    "batch_size": Rule(int, 1, 65_536),
    "on_error": Rule(str, names=("raise", "return")),
    "progress": Rule(bool),
}


def answer_all(
    requests: Iterable[Sequence[Any]],
    prepare: Callable[[Any, Any, Any], Prompt],
    answer: Callable[[list[Prompt]], list[Reply]],
    *,
    batch_size: int,
    on_error: str,
    progress: bool,
) -> list[Reply | VisGLMError]:
    """Prepare and answer `requests`, `batch_size` at a time; what is wrong with one is raised or put in its place.

    Raises:
        ConfigError: `batch_size`, `on_error` or `progress` is not what `VisGLM.batch` takes.
        PromptError: `requests` is no list.
    """
    check_call(RULES, batch_size=batch_size, on_error=on_error, progress=progress)
    if isinstance(requests, str | bytes | Mapping) or not isinstance(requests, Iterable):
        raise PromptError(f"requests must be a list of (images, prompt); got {type(requests).__name__}.")
    requests = list(requests)
    results: list[Reply | VisGLMError] = []
    with tqdm(total=len(requests), unit="answer", disable=not progress) as bar:
        for start in range(0, len(requests), batch_size):
            prepared = [
                prepare_or_error(request, prepare, on_error) for request in requests[start : start + batch_size]
            ]
            good = [item for item in prepared if isinstance(item, Prompt)]
            replies = iter(answer(good) if good else ())
            results += [next(replies) if isinstance(item, Prompt) else item for item in prepared]
            bar.update(len(prepared))
    return results


def prepare_or_error(request: Any, prepare: Callable[[Any, Any, Any], Prompt], on_error: str) -> Prompt | VisGLMError:
    try:
        if not isinstance(request, list | tuple) or len(request) not in (2, 3):
            raise PromptError(f"a request is (images, prompt) or (images, prompt, history); got {request!r:.80}.")
        images, prompt, history = (*request, None)[:3]
        return prepare(images, prompt, history)
    except VisGLMError as error:
        if on_error == "raise":
            raise
        return error
