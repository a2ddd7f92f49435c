"""The libraries that are served: a request names one, and its answer says where it comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ..errors import LibraryError
from ..prompt import Reference, Turn
from ..reply import Citation, History, Reply
from .errors import Refusal
from .pictures import decode

if TYPE_CHECKING:
    from ..library import Library
    from .service import Question, Service

READERS = 4  # threads that search at a time, or wait for an answer to be written
FAILED = "The library cannot be read now. Ask again later."


class Libraries:
    """Libraries by name.

    Args:
        places: name → folder.

    Raises:
        LibraryError: there is none in one of them.
    """

    def __init__(self, places: Mapping[str, str]):
        self._opened = {name: open_one(place) for name, place in places.items()}
        self.pool = ThreadPoolExecutor(READERS, "visglm-library")

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened)

    def get(self, name: str) -> Library:
        """The one of this name.

        Raises:
            Refusal: there is none.
        """
        if name not in self._opened:
            there = f"There are: {', '.join(self)}." if self._opened else "There is none."
            raise Refusal(404, f"There is no such library here. {there}", "library_not_found", "library")
        return self._opened[name]


def open_one(place: str) -> Library:
    from ..library import Library

    return Library.open(place, create=False)


async def answer_from(service: Service, name: str, asked: str, question: Question) -> Reply:
    """The answer to a request that names a library.

    Args:
        asked: what is looked for: the last message, without what the system says.
        question: the conversation. The picture of its last turn is looked for, too.

    Raises:
        Refusal, VisGLMError: there is no answer.
    """
    from ..library import READING_CONTEXT, answer

    library = service.libraries.get(name)
    *past, last = question.turns
    if last.num_images > 1:
        raise Refusal(400, "messages: one picture at most is looked for in a library.", "invalid_value", "messages")
    service.check(question)
    num_past = len(question.sources) - last.num_images
    loop, writing = asyncio.get_running_loop(), list[Future[Reply]]()

    async def written(references: tuple[Reference, ...]) -> Reply:
        turn = Turn(last.question, references=references)
        whole = replace(question, turns=(*past, turn), sources=question.sources[:num_past])
        async with service.answering(whole) as on_its_way:
            return await on_its_way.reply()

    def write(text: str, references: tuple[Reference, ...]) -> Reply:
        """In a thread, for as long as the engine takes."""
        writing.append(asyncio.run_coroutine_threadsafe(written(references), loop))
        return writing[-1].result()

    def act(source: str | bytes | None) -> Reply:
        limits = service.settings.limits
        image = None if source is None else decode(source, service.vlm.image_limits, limits.max_body)
        reads = service.vlm.context_length >= READING_CONTEXT
        with told():
            return answer(
                asked, library, image=image, past=History(tuple(past)), write=write if reads else None
            )  # fmt: skip

    with service.admission.take(0):
        source = await service.fetch(question.sources[-1]) if last.num_images else None
        try:
            return await loop.run_in_executor(service.libraries.pool, act, source)
        finally:
            for one in writing:  # the client has gone, or it is done
                one.cancel()


@contextmanager
def told() -> Iterator[None]:
    """What is wrong with a library is the operator's matter, and where it lies is told to nobody."""
    try:
        yield
    except LibraryError:
        raise Refusal(503, FAILED, "library_failed", headers={"Retry-After": "30"}) from None


def shown(citation: Citation) -> dict[str, Any]:
    """A citation as it goes out: which folder of the server a file lies in is told to nobody."""
    return asdict(citation) | {"source": PurePath(citation.source).name}
