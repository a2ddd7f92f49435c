"""`visglm app`: the page in the browser."""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import subprocess
import sys
from pathlib import Path

from ..errors import ConfigError, printable, require
from ..serve.keys import keys_in
from ..serve.listening import bind
from ..settings import Rule, check_call
from .flags import add_max_pixels, image_limits

RULES = {"port": Rule(int, 0, 65_535, hint="0 takes a free one.")}
SCRIPT = Path(__file__).parents[2] / "demos" / "server.py"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", action="append", help="checkpoint or adapter folder, or hub id; given again, there is a choice"
    )
    group = parser.add_argument_group("a running server, in the place of models here")
    group.add_argument(
        "--server", metavar="URL", help="address of a `visglm serve`: one model answers any number of pages"
    )
    group.add_argument("--api-key", metavar="KEY", help="that it asks for; others on this machine can see it here, so "
                       "rather use:")  # fmt: skip
    group.add_argument("--api-key-file", metavar="PATH", help="file of it; or VISGLM_API_KEY in the environment")
    parser.add_argument("--quantize", help="quantization of the first model at the start, such as int8")
    parser.add_argument("--allow-urls", action="store_true", help="let visitors name pictures by address")
    add_max_pixels(parser)
    parser.add_argument(
        "--library", metavar="LIBRARY",
        help="a library of documents that all visitors ask, and whoever sits at this machine changes (default: one "
        "for each visitor)",
    )  # fmt: skip
    parser.add_argument("--no-history", action="store_true", help="keep no conversation on this machine")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8501, help="port to listen on (default: %(default)s)")


def command_line(arguments: argparse.Namespace) -> list[str]:
    """What starts Streamlit: its own options, then `--`, then the page's."""
    page = [word for model in arguments.model or () for word in ("--model", model)]
    page += ["--server", arguments.server] if arguments.server else []
    page += ["--quantize", arguments.quantize] if arguments.quantize else []
    page += ["--allow-urls"] if arguments.allow_urls else []
    page += [] if arguments.max_pixels is None else ["--max-pixels", str(arguments.max_pixels)]
    page += [] if arguments.library is None else ["--library", os.path.abspath(arguments.library)]
    page += ["--no-history"] if arguments.no_history else []
    return [
        *(sys.executable, "-m", "streamlit", "run", str(SCRIPT)),
        *("--server.address", arguments.host, "--server.port", str(arguments.port)),
        "--",
        *page,
    ]


def is_this_machine_only(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def what_is_open(arguments: argparse.Namespace) -> str:
    """What others can do here, for whoever lets them in."""
    kept = "talks" if arguments.server else "talks and documents"
    can = [
        "ask every model of the page, with pictures of theirs",
        *(["teach a model on this machine, one lesson at a time"] if not arguments.server else []),
        *([f"keep their {kept} on its disk (--no-history turns that off)"] if not arguments.no_history else []),
        *(["have documents of theirs read, one visitor's at a time"] if not arguments.server else []),
        *([f"ask {printable(arguments.library)}, and see the pages that answers cite"] if arguments.library else []),
        *(["have it fetch pictures from public addresses (--allow-urls)"] if arguments.allow_urls else []),
    ]
    return "\n".join(
        [
            f"Warning: without a password, whoever reaches {arguments.host} port {arguments.port} can",
            *(f"  - {each}" for each in can),
            "and what they send travels unencrypted. README (The page) says what belongs in front of it.",
        ]
    )


def run(arguments: argparse.Namespace) -> int:
    require("demo", "streamlit")
    if not SCRIPT.is_file():
        raise ConfigError(
            f"the page is part of the repository, not of the installed package: there is no {SCRIPT}. "
            "Clone the repository and call `make app` in it."
        )
    check_call(RULES, port=arguments.port)
    image_limits(arguments)
    key = key_of(arguments)
    bind(arguments.host, arguments.port).close()  # Streamlit would say less of what is in the way
    if not is_this_machine_only(arguments.host):
        print(what_is_open(arguments), file=sys.stderr)
    from ..remote import VARIABLE

    # Not among the words, which others on this machine can see.
    return serve(command_line(arguments), **({VARIABLE: key} if key else {}))


def key_of(arguments: argparse.Namespace) -> str:
    """The server's key, as the command line has it.

    Raises:
        ConfigError: flags do not go together, or the file cannot be read.
    """
    if arguments.server and (arguments.model or arguments.quantize):
        raise ConfigError(
            "with --server the models are the server's. Leave --model and --quantize out, or give them to it."
        )
    if arguments.server and arguments.library:
        raise ConfigError("--library is asked with a model on this machine. Leave it out, or leave --server out.")
    if not arguments.server and (arguments.api_key or arguments.api_key_file):
        raise ConfigError("an API key is for the server that --server names.")
    key = arguments.api_key or "" if arguments.api_key_file is None else keys_in(arguments.api_key_file)[0]
    if arguments.server:
        from ..remote import RemoteVisGLM

        RemoteVisGLM(arguments.server, key or None).close()  # what is wrong with the address or the key is told here
    return key


def serve(words: list[str], **environment: str) -> int:
    """Run the server until it ends, handing on what asks this process to end: alone, it would leave the server behind.

    Returns:
        The server's exit status; as in a shell 128 and the signal's number where one ended it.
    """
    server: subprocess.Popen | None = None
    early: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        if server is None:
            early.append(number)
        else:
            server.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server = subprocess.Popen(words, env={**os.environ, **environment})
        for number in early:
            server.send_signal(number)
        status = server.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status
