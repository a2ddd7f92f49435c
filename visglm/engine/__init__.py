"""The one loop that answers: requests join and leave between tokens, and whoever changes the network asks it.

`Engine` takes requests of ids and tensors; `Asker` makes them of prompts, and replies of what comes back.
"""

from __future__ import annotations

from ..stream import ReplyStream
from ..writing import Writer
from .answer import Answer, Asker
from .choosing import Chooser, Dictated
from .core import Engine, engine_of, slots_for
from .lanes import worn
from .many import answer_all
from .task import Outcome, Request, Ticket, Token
from .turns import Cancelled, Turns

__all__ = [
    "Answer", "Asker", "Cancelled", "Chooser", "Dictated", "Engine", "Outcome", "ReplyStream", "Request", "Ticket",
    "Token", "Turns", "Writer", "answer_all", "engine_of", "slots_for", "worn",
]  # fmt: skip
