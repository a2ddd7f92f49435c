"""Many questions: several share a pass through the model, and a bad one loses nothing but itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from .errors import ConfigError, PromptError, VisGLMError
from .reply import Reply
from .request import Prompt


def answer_all(
    requests: Sequence[Sequence[Any]],
    prepare: Callable[[Any, Any, Any], Prompt],
    answer: Callable[[list[Prompt]], list[Reply]],
    *,
    batch_size: int,
    on_error: str,
    progress: bool,
) -> list[Reply | VisGLMError]:
    """Prepare and answer `requests`, `batch_size` at a time; what is wrong with one is raised or put in its place.

    Raises:
        ConfigError: `on_error` or `batch_size` is not what `VisGLM.batch` takes.
    """
    if on_error not in ("raise", "return"):
        raise ConfigError(f'on_error must be "raise" or "return"; got {on_error!r}.')
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1; got {batch_size}.")
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


def prepare_or_error(
    request: Sequence[Any], prepare: Callable[[Any, Any, Any], Prompt], on_error: str
) -> Prompt | VisGLMError:
    try:
        if isinstance(request, str) or len(request) not in (2, 3):
            raise PromptError(f"a request is (images, prompt) or (images, prompt, history); got {request!r}.")
        images, prompt, history = (*request, None)[:3]
        return prepare(images, prompt, history)
    except VisGLMError as error:
        if on_error == "raise":
            raise
        return error
