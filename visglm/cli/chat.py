"""`visglm chat`: one question with `--question`, a conversation without."""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import VisGLMError
from ..sampling import Sampling
from .advice import in_flags
from .flags import (
    add_adapter,
    add_language,
    add_light_model,
    add_model,
    add_settings,
    image_limits,
    load_light,
    load_model,
    read_settings,
    settings_of,
    show_status,
)

if TYPE_CHECKING:
    from ..pictures import ImageLimits
    from ..reply import History


FAILED = 3  # exit status when some lines of a pipe went wrong, as of `visglm describe`


def configure(parser: argparse.ArgumentParser, is_light: bool = False) -> None:
    """Declare the arguments; those of `visglm-light`, which always answers so, name nothing of torch."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="picture files, shown with the first question")
    parser.add_argument(
        "-q", "--question", metavar="TEXT", help="ask this, print the answer and leave; else a conversation starts"
    )
    parser.epilog = (
        f"Exit status: 0 when all went well, 1 when nothing was answered because of an error, {FAILED} when questions "
        "came from a pipe and some of them could not be answered."
    )
    add_language(parser)
    add_settings(parser, Sampling, "answers")
    if is_light:
        parser.set_defaults(light=True)
        add_light_model(parser)
        return
    parser.add_argument(
        "--light",
        action="store_true",
        help="answer by ONNX Runtime, without torch; --model is a folder that `visglm export` wrote",
    )
    add_model(parser)
    add_adapter(parser)


def run(arguments: argparse.Namespace) -> int:
    sampling = read_settings(arguments, Sampling)
    if arguments.question is None and sys.stdin is None:  # `<&-` in a shell
        raise VisGLMError("Standard input is closed, so there are no questions. Ask one with --question.")
    if sys.stdout is None:
        raise VisGLMError("The standard output is closed, so there is nowhere to answer. Lead it to a file.")
    check_question(arguments.question)
    limits = image_limits(arguments)
    pictures = load_pictures(arguments.images, limits, arguments.allow_urls)  # before the model: what is wrong is told
    vlm = load_light(arguments) if arguments.light else load_model(arguments)
    conversation = Conversation(vlm, sampling, arguments.language, pictures, arguments.flags)
    if arguments.question is None:
        return converse(conversation)
    conversation.ask(arguments.question)
    return 0


def check_question(question: str | None) -> None:
    """Raise `VisGLMError` where bytes on the command line are no text in the encoding that Python takes them for."""
    try:
        (question or "").encode()
    except UnicodeEncodeError:
        raise VisGLMError(
            f"The --question is not {sys.getfilesystemencoding()} text, which this terminal's settings say it is. Set "
            "PYTHONUTF8=1, or a locale such as C.UTF-8, and ask again."
        ) from None


def load_pictures(paths: Sequence[str], limits: ImageLimits, allow_urls: bool) -> list[Picture]:
    from ..pictures import load_image

    return [Picture(path, load_image(path, limits=limits, allow_urls=allow_urls)) for path in paths]


class Picture(NamedTuple):
    path: str
    image: Any


class Conversation:
    """What has been said, and the pictures that go with the next question.

    Args:
        vlm: the model, with torch or without. sampling: how it answers. language: of the prompt's frame.
        pictures: shown with the first question. flags: those of the command, by argument.
    """

    def __init__(
        self, vlm: Any, sampling: Sampling, language: str, pictures: list[Picture], flags: Mapping[str, str]
    ):  # fmt: skip
        self.vlm, self.flags = vlm, flags
        self.settings = {**settings_of(sampling), "language": language}
        self.waiting = pictures
        self.shown: list[Picture] = []
        self.history: History | None = None

    def ask(self, question: str) -> None:
        """Print the answer while it is written. Interrupted, the question counts as not asked."""
        from ..reply import why_unanswered

        images = [picture.image for picture in self.waiting]
        stream = self.vlm.stream_chat(images, question, self.history, **self.settings)
        try:
            show_parts(stream)
        finally:
            stream.close()
        self.shown += self.waiting
        self.waiting = []
        self.history = stream.reply.history
        if reason := why_unanswered(stream.reply):
            show_status(f"visglm: {in_flags(reason, self.flags)}")

    def image(self, *paths: str) -> str:
        if not paths:
            raise VisGLMError("/image needs a file: /image cat.png")
        self.waiting += load_pictures(paths, self.vlm.image_limits, self.vlm.allow_urls)
        return f"{len(self.waiting)} to be shown with the next question."

    def clear(self) -> str:
        self.history, self.waiting, self.shown = None, [], []
        return "Forgotten. Show a picture with /image, or just ask."

    def save(self, *path: str) -> str:
        if len(path) != 1:
            raise VisGLMError("/save needs one file: /save talk.jsonl")
        if self.history is None:
            raise VisGLMError("Nothing has been said yet.")
        with Path(path[0]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.as_row(), ensure_ascii=False) + "\n")
        return f"Added to {path[0]}: one line that fine-tuning can read."

    def as_row(self) -> dict[str, Any]:
        """The conversation as a row of training data, each `<image>` in it standing for the next picture."""
        messages: list[dict[str, Any]] = []
        for turn in self.history.turns if self.history else ():
            messages.append({"role": "user", "content": "<image>" * turn.num_images + turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return {"images": [picture.path for picture in self.shown], "messages": messages}


DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def show_parts(stream: Any) -> None:
    """Print an answer as it comes, and before it, to people only and dimmed, what the model thinks."""
    is_seen, thinks = sys.stdout.isatty(), False
    for kind, piece in stream.parts():
        if kind == "thinking" and not is_seen:
            continue
        change = "" if (kind == "thinking") == thinks else DIM if not thinks else f"{PLAIN}\n"
        thinks = kind == "thinking"
        print(change + piece, end="", flush=True)
    print(PLAIN if thinks else "")


class Command(NamedTuple):
    """A row of `COMMANDS`."""

    arguments: str
    help: str
    act: Callable[..., str]  # takes the conversation and the words behind the command; what it returns is shown


class Leave(Exception):
    """The conversation is over."""


def show_help(conversation: Conversation) -> str:
    lines = [f"  {name + ' ' + row.arguments:16} {row.help}" for name, row in COMMANDS.items()]
    return "\n".join(["Anything else is a question. Ctrl-C stops an answer, Ctrl-D leaves.", *lines])


def leave(conversation: Conversation) -> str:
    raise Leave


COMMANDS: dict[str, Command] = {
    "/image": Command("PATH…", "show pictures with the next question", Conversation.image),
    "/clear": Command("", "forget the conversation and its pictures", Conversation.clear),
    "/save": Command("FILE", "add the conversation to a JSONL file", Conversation.save),
    "/help": Command("", "list these commands", show_help),
    "/quit": Command("", "leave", leave),
}


def converse(conversation: Conversation) -> int:
    """Read questions and commands, from a person or from a pipe, until there are no more. A person has seen what went
    wrong and put it right; of a pipe, the exit status tells."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not text is told, and the next one is read
    prompt, num_failed = "> " if sys.stdin.isatty() else "", 0
    if prompt:
        show_status(
            "Ask about the picture. /help lists the commands." if conversation.waiting else show_help(conversation)
        )
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            if prompt:
                show_status("")  # what comes next starts on a line of its own
            break
        except KeyboardInterrupt:  # Ctrl-C throws away the line that was begun
            show_status("")
            continue
        try:
            respond(conversation, line)
        except Leave:
            break
        except BrokenPipeError:  # nobody reads the answers any more
            raise
        except (VisGLMError, OSError) as error:
            num_failed += 1
            show_status(in_flags(str(error), conversation.flags))
        except KeyboardInterrupt:
            show_status("\n(stopped)")
    return FAILED if num_failed and not prompt else 0


def respond(conversation: Conversation, line: str) -> None:
    try:
        line.encode()
    except UnicodeEncodeError:
        raise VisGLMError(f"This line is not {sys.stdin.encoding} text and was not asked: {ascii(line)}") from None
    if not line.startswith("/"):
        if line:
            conversation.ask(line)
        return
    try:
        name, *words = shlex.split(line)
    except ValueError as error:  # a quotation mark without its partner
        raise VisGLMError(f"Cannot read {line!r}: {error}.") from None
    if name not in COMMANDS:
        raise VisGLMError(f"There is no command {name}; there are {', '.join(COMMANDS)}.")
    command = COMMANDS[name]
    if words and not command.arguments:
        raise VisGLMError(f"{name} takes no arguments; got {' '.join(words)}.")
    show_status(command.act(conversation, *words))
