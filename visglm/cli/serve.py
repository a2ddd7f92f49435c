"""`visglm serve`: a model over HTTP."""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from typing import Any

from ..errors import ConfigError, printable, require
from ..serve import Limits, Replicas
from ..settings import check_call
from .app import RULES, is_this_machine_only
from .flags import add_model, add_ray, add_settings, load_model, options_of, read_settings, show_status

EVERYWHERE = ("0.0.0.0", "::")


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser, fetches=False)
    parser.add_argument("--name", help="what requests call the model (default: the name of its folder)")
    parser.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=PATH", dest="adapters",
        help="an adapter beside it, which requests call NAME; given again, there are several",
    )  # fmt: skip
    parser.add_argument(
        "--library", action="append", default=[], metavar="NAME=PATH",
        help="a library of documents that requests may ask by this name; given again, there are several",
    )  # fmt: skip
    group = parser.add_argument_group("who may ask")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    group.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    group.add_argument(
        "--api-key", action="append", default=[], metavar="KEY",
        help="a key that requests must bring; others on this machine can see it here, so rather use:",
    )  # fmt: skip
    group.add_argument("--api-key-file", metavar="PATH", help="file of keys, one a line")
    group.add_argument("--no-auth", action="store_true", help="let everybody ask who reaches --host")
    group.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME",
        help="a name that the server is called by, beside its addresses and localhost",
    )  # fmt: skip
    group.add_argument(
        "--allowed-origin", action="append", default=[], metavar="ORIGIN",
        help="pages that may ask from within a browser, such as https://example.org (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--picture-host", action="append", default=[], metavar="NAME",
        help="a host that pictures may be fetched from, at public addresses only (default: none)",
    )  # fmt: skip
    parser.epilog = "Keys may also be in the environment, as VISGLM_API_KEYS, with commas between them."
    add_settings(parser, Limits, "limits")
    add_settings(parser, Replicas, "more than one process or machine (extra ray)")
    add_ray(parser)


def run(arguments: argparse.Namespace) -> int:
    require("serve", "fastapi", "uvicorn", "prometheus_client")
    from ..serve import Names, Service, Settings
    from ..serve.keys import read_keys
    from ..serve.libraries import Libraries
    from ..serve.listening import bind, listen
    from ..serve.running import BACKLOG
    from ..serve.running import run as answer

    if arguments.name is not None and not arguments.name.strip():
        raise ConfigError("--name must not be empty. Leave it out for the name of the model's folder.")
    limits = read_settings(arguments, Limits)
    keys = read_keys(arguments.api_key, arguments.api_key_file, os.environ)
    check_call(RULES, port=arguments.port)
    check_access(arguments, bool(keys))
    settings = Settings(
        limits, keys, hosts_of(arguments), [check_origin(origin) for origin in arguments.allowed_origin],
        [check_host("--picture-host", name) for name in arguments.picture_host],
        {name: os.path.abspath(path) for name, path in (split_named("--library", text) for text in arguments.library)},
    )  # fmt: skip
    Libraries(settings.libraries)  # before the model: what is wrong is told
    adapters = dict(split_named("--adapter", text) for text in arguments.adapters)
    replicas = read_settings(arguments, Replicas)
    if arguments.ray is not None or replicas.most > 1:
        return run_replicas(arguments, settings, adapters, replicas)
    sock = bind(arguments.host, arguments.port)
    try:
        vlm = load_model(arguments)
        names = Names(vlm, arguments.name, adapters)
        listen(sock, BACKLOG)  # from here on nobody is turned away, if it takes a moment
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        show_status(f"Serving {', '.join(names)} at http://{shown}:{port}/v1 (how to ask: http://{shown}:{port}/docs)")
        answer(Service(vlm, names, settings), sock)
    finally:
        sock.close()
    return 0


def run_replicas(arguments: argparse.Namespace, settings: Any, adapters: dict[str, str], replicas: Replicas) -> int:
    """The same under Ray."""
    from ..cluster import LOCAL, Recipe, joined, whole
    from ..serve.ray import free_port
    from ..serve.ray import run as answer

    address = arguments.ray or LOCAL
    port = free_port(arguments.host, arguments.port) if address == LOCAL else arguments.port
    recipe = Recipe.of(options_of(arguments))
    adapters = {name: whole(path) for name, path in adapters.items()}
    show_status(f"Starting {replicas.replicas} of {arguments.model or 'visglm-tiny'} under Ray …")
    with joined(address, replicas.most) as share:
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        answer(
            recipe, arguments.name, adapters, settings, replicas, (arguments.host, port), share, address,
            lambda: show_status(f"Serving at http://{host}:{port}/v1 (how to ask: http://{host}:{port}/docs)"),
        )  # fmt: skip
    return 0


def check_access(arguments: argparse.Namespace, has_keys: bool) -> None:
    """Raise ConfigError where others could ask without that having been decided."""
    if arguments.no_auth and has_keys:
        raise ConfigError("--no-auth lets everybody ask, and there are API keys. Give one of the two.")
    if not is_this_machine_only(arguments.host) and not has_keys and not arguments.no_auth:
        raise ConfigError(
            f"whoever reaches {printable(arguments.host)} could ask. Give a key that they need (--api-key-file, or "
            "VISGLM_API_KEYS in the environment), or say --no-auth."
        )
    if arguments.no_auth and not is_this_machine_only(arguments.host):
        print(f"Warning: whoever reaches {printable(arguments.host)} can ask, without a key.", file=sys.stderr)


def hosts_of(arguments: argparse.Namespace) -> list[str]:
    """Names that requests may call the server by."""
    from ..serve.settings import THIS_MACHINE

    own = [socket.gethostname()] if arguments.host in EVERYWHERE else [arguments.host.strip("[]")]
    allowed = [check_host("--allowed-host", name) for name in arguments.allowed_host]
    return [*THIS_MACHINE, *(name.lower() for name in own), *allowed]


def check_host(flag: str, name: str) -> str:
    """A host's name alone, in lower case."""
    from ..serve.settings import host_of

    if host_of(name) is None:
        raise ConfigError(f"{flag} must be a name such as models.example.org; got {printable(name) or 'nothing'}.")
    return name.lower()


def check_origin(origin: str) -> str:
    if not re.fullmatch(r"https?://[a-z0-9.\-\[\]:]+", origin):
        raise ConfigError(
            f"--allowed-origin must be such as https://example.org, in lower case and without a path; got "
            f"{printable(origin)}."
        )
    return origin


def split_named(flag: str, text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not path or not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ConfigError(f"{flag} must be NAME=PATH, the name of letters, digits, - and _; got {printable(text)}.")
    return name, path
