"""An answer as it is decoded: text piece by piece, never half a character, then the reply."""

from __future__ import annotations

import contextvars
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from .errors import VisGLMError
from .generation import Watch
from .prompt import postprocess, settled
from .reply import Reply
from .tokenizers import StreamDecoder

END = None  # behind the last token


class Work:
    """An answer in a thread of its own. It knows nothing of its reader, who may be dropped while it goes on."""

    def __init__(self, answer: Callable[[Watch], Reply]):
        self.answer = answer
        self.tokens: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.watch = Watch(self.tokens.put)
        self.reply: Reply | None = None
        self.error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self.reply = self.answer(self.watch)
        except BaseException as error:  # handed to the reader, who raises it
            self.error = error
        finally:
            del self.answer  # and the pictures in it
            self.tokens.put(END)


class ReplyStream(Iterator[str]):
    """Iterate over the pieces of an answer as they are decoded; `.reply` is the whole when it has ended.

    Closing it, from whatever thread, or leaving the loop and dropping it, stops the model after the token in flight.
    The model is asked when the first piece is.
    """

    def __init__(self, answer: Callable[[Watch], Reply], tokenizer: PreTrainedTokenizerBase, style: str):
        self._work = Work(answer)
        self._style = style
        self._decoder = StreamDecoder(tokenizer)
        self._text, self._num_shown, self._has_ended = "", 0, False
        self._worker: threading.Thread | None = None
        self._starting, self._reading = threading.Lock(), threading.Lock()

    def __next__(self) -> str:
        with self._reading:
            self._start()
            while not self._has_ended and not self._is_closed:
                token = self._work.tokens.get()
                if self._is_closed:
                    break
                piece = self._end() if token is END else self._push(token.tolist())
                if piece:
                    return piece
            raise StopIteration

    def _start(self) -> None:
        with self._starting:
            if self._worker is None and not self._is_closed:
                # In a copy of the context: it belongs to the turn of whoever reads.
                run = contextvars.copy_context().run
                self._worker = threading.Thread(target=run, args=(self._work,), name="visglm-stream", daemon=True)
                self._worker.start()

    def _push(self, ids: list[int]) -> str:
        self._text += self._decoder.push(ids)
        return self._show(settled(self._text, self._style))

    def _end(self) -> str:
        self._has_ended = True
        if self._worker is not None:
            self._worker.join()
        if self._work.error is not None:
            raise self._work.error
        return self._show(postprocess(self._text + self._decoder.finish(), self._style))

    def _show(self, ready: str) -> str:
        start, self._num_shown = self._num_shown, max(self._num_shown, len(ready))
        return ready[start:]

    @property
    def _is_closed(self) -> bool:
        return self._work.watch.cancelled.is_set()

    def close(self) -> None:
        """End the answer here. `.reply` is what there is of it, if the model had begun; no more pieces come."""
        with self._starting:
            if not self._has_ended:
                self._work.watch.cancelled.set()
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join()

    def __del__(self) -> None:
        if not sys.is_finalizing():  # threads stand still by then, and nobody could wait for one
            self.close()

    @property
    def reply(self) -> Reply:
        """The whole answer; of a stream that was closed the part there is, its `finish_reason` "cancelled".

        Raises:
            VisGLMError: the stream has not ended yet, was closed before the model began, or ended with an error.
        """
        if not self._has_ended and not self._is_closed:
            raise VisGLMError("there is no reply before the stream has ended; read it to its end, then ask for .reply.")
        if self._work.reply is None:
            how = "was closed before the model began" if self._work.error is None or self._is_closed else "failed"
            raise VisGLMError(f"there is no reply: the stream {how}. Ask again.")
        return self._work.reply

    def __repr__(self) -> str:
        state = "ended" if self._has_ended else "closed" if self._is_closed else "open"
        return f"<ReplyStream: {state}, {self._num_shown} characters read>"
