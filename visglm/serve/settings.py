"""What an operator decides: who may ask, from where, and how much."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from .keys import Keys
from .limits import Limits

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Settings:
    """How a model is served.

    Args:
        limits: how much requests may cost.
        keys: who may ask; without any, everybody who reaches the server.
        hosts: names by which it may be called, in lower case, beside every address: a page elsewhere whose name was
            made to lead here is none of them. None for whatever.
        origins: pages of other servers that may ask from within a browser, such as "https://example.org".
        picture_hosts: names of hosts that pictures may be fetched from, in lower case; none by default.
        libraries: name → folder of the libraries that may be asked.
    """

    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    hosts: Collection[str] | None = THIS_MACHINE
    origins: Collection[str] = ()
    picture_hosts: Collection[str] = ()
    libraries: Mapping[str, str] = field(default_factory=dict)


def host_of(header: str) -> str | None:
    """The host in a Host header, in lower case; None where it is not one that every parser reads alike."""
    name, port = header.strip(), ""
    if name.startswith("["):
        name, closed, port = name[1:].partition("]")
        try:
            name = str(ipaddress.IPv6Address(name))
        except ValueError:
            return None
        if not closed or (port and not port.startswith(":")):
            return None
        port = port[1:]
    elif ":" in name:
        name, _, port = name.partition(":")
        if not port:
            return None
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5):
        return None
    is_name = name.isascii() and name and all(letter.isalnum() or letter in "-._:" for letter in name)
    return name.lower().removesuffix(".") if is_name else None


def is_address(host: str) -> bool:
    """Whether it is an address and no name: no page elsewhere can be called so, whoever owns its name."""
    try:
        return not ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
