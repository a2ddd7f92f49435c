"""An answer that is being given, beside the page: whoever waits for it can stop at any time, not only between words."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from visglm import Reply

POLL_SECONDS = 0.1  # how long the page looks away at the most


class Answering(threading.Thread):
    """Reads a stream to its end, or until it is stopped.

    Args:
        start: gives the stream, a `ReplyStream` or what has its face; called here, for it may have to encode pictures
            first.
        before: the visitor's last one, which may still be busy with being stopped; nobody has two at a time.
    """

    def __init__(self, start: Callable[[], Any], before: Answering | None = None):
        super().__init__(name="visglm-answer", daemon=True)
        self.begin, self.before = start, before
        self.stopped = threading.Event()
        self.news = threading.Event()
        self.text = self.thinking = ""
        self.reply: Reply | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            if self.before is not None:
                self.before.join()
                self.before = None
            if not self.stopped.is_set():
                self.read(self.begin())
        except Exception as error:  # shown by the page, which is another thread
            self.error = error
        finally:
            self.news.set()

    def read(self, stream: Any) -> None:
        try:
            for kind, piece in stream.parts():
                if kind == "thinking":
                    self.thinking += piece
                else:
                    self.text += piece
                self.news.set()
                if self.stopped.is_set():
                    return
            self.reply = stream.reply
        finally:
            stream.close()  # stops the model

    def wait(self) -> None:
        """For more of the answer or its end, and not for long."""
        self.news.wait(POLL_SECONDS)
        self.news.clear()
