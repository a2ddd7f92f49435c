"""An answer as it is decoded: text piece by piece, never half a character, then the reply."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

from .errors import VisGLMError
from .generation import Watch
from .prompt import postprocess, settled
from .reply import Reply
from .tokenizers import ChatGLMTokenizer, StreamDecoder


class ReplyStream(Iterator[str]):
    """Iterate over the pieces of an answer as they are decoded; `.reply` is the whole when it has ended.

    Closing it, or leaving the loop and dropping it, stops the model after the token in flight.
    """

    def __init__(self, pieces: Generator[str, None, Reply]):
        self._pieces = pieces
        self._reply: Reply | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._reply = end.value or self._reply
            raise

    def close(self) -> None:
        """End the answer here. There will be no `.reply`."""
        self._pieces.close()

    @property
    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            VisGLMError: the stream has not ended yet, or was closed.
        """
        if self._reply is None:
            raise VisGLMError("there is no reply before the stream has ended; read it to its end, then ask for .reply.")
        return self._reply


def pieces(answer: Callable[[Watch], Reply], tokenizer: ChatGLMTokenizer) -> Generator[str, None, Reply]:
    """Run `answer` in a thread of its own, yield what its tokens spell, and return the reply."""
    done = object()
    tokens: queue.SimpleQueue[Any] = queue.SimpleQueue()
    watch = Watch(tokens.put)
    outcome: list[Reply | BaseException] = []

    def work() -> None:
        try:
            outcome.append(answer(watch))
        except BaseException as error:  # handed to the reader, who raises it
            outcome.append(error)
        finally:
            tokens.put(done)

    worker = threading.Thread(target=work, name="visglm-stream", daemon=True)
    worker.start()
    decoder, text, num_shown = StreamDecoder(tokenizer), "", 0
    try:
        while (token := tokens.get()) is not done:
            text += decoder.push(token.tolist())
            ready = settled(text)
            if len(ready) > num_shown:
                yield ready[num_shown:]
                num_shown = len(ready)
        if rest := postprocess(text + decoder.finish())[num_shown:]:
            yield rest
    finally:
        watch.cancelled.set()
        worker.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
