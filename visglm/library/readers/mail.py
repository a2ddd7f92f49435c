"""E-mail: who wrote what to whom, and mail that is attached to it; of other attachments the names."""

from __future__ import annotations

import email
import email.errors
import email.header
import email.policy
import itertools
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from email.message import Message

from ...errors import DocumentError
from ..pieces import LibraryLimits, Piece, check_size
from .encodings import decode
from .markup import parse
from .text import PARAGRAPH

HEADERS = ("From", "To", "Cc", "Date", "Subject")
# Characters of a header that says how its part is to be read: what Python makes of it takes the square of its length.
MAX_STRUCTURE = 2_000
MAX_ENCODED = 50_000  # above, a header stays encoded, for the same reason
SEPARATOR = re.compile(rb"^From .*\r?\n", re.MULTILINE)  # of the mails in a mailbox


class Bounded(email.policy.Compat32):
    """Headers as they are in the file, to be decoded by `said`; Python's newer policy parses them by the square of
    their length."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value[:MAX_STRUCTURE] if name.lower().startswith("content-") else value


def read_mail(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """Head, then body; its subject is the heading. Text is preferred to HTML."""
    message = email.message_from_bytes(data, policy=Bounded())
    check_size(sum(1 for _ in message.walk()), limits.max_files, "parts")
    yield from _mail(message, limits)


def read_mailbox(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """The mails of an mbox, one after the other."""
    if SEPARATOR.match(data) is None:
        raise DocumentError("it is no mailbox: it does not begin with a line `From `.")
    starts = [
        match
        for match in SEPARATOR.finditer(data)
        if data[: match.start()].endswith((b"\n\n", b"\r\n\r\n")) or not match.start()
    ]
    check_size(len(starts), limits.max_files, "mails")
    for match, following in itertools.zip_longest(starts, starts[1:]):
        yield from read_mail(data[match.end() : following.start() if following else len(data)], name, limits)


def _mail(message: Message, limits: LibraryLimits) -> Iterator[Piece]:
    headers = {name.lower(): value for name, value in reversed(list(message.raw_items()))}
    told = {name: said(headers[name.lower()]) for name in HEADERS if headers.get(name.lower())}
    subject = told.get("Subject", "")
    head = "\n".join(f"{name}: {value}" for name, value in told.items() if value)
    bodies = list(_bodies(message))
    attached = [said(str(name)) for part in message.walk() if (name := part.get_filename())]
    if attached:
        head += "\nAttachments: " + ", ".join(attached)
    if head:
        yield Piece(head, heading=subject)
    for body in bodies:
        if body.get_content_maintype() == "message":
            for inner in _parts(body):
                yield from _mail(inner, limits)
        else:
            for piece in _body(body, limits):
                yield replace(piece, heading=subject)


def _bodies(part: Message) -> Iterator[Message]:
    """What is shown of a mail: text, of alternatives one, and mails in it."""
    inner = _parts(part)
    if not part.is_multipart():
        if part.get_content_maintype() == "text" and part.get_content_disposition() != "attachment":
            yield part
    elif part.get_content_type() == "message/rfc822":
        yield part
    elif part.get_content_type() == "multipart/alternative":
        found = [list(_bodies(each)) for each in inner]
        yield from min(filter(None, found), key=lambda some: some[0].get_content_subtype() != "plain", default=[])
    else:
        for each in inner:
            yield from _bodies(each)


def _parts(part: Message) -> list[Message]:
    inner = part.get_payload() if part.is_multipart() else []
    return [each for each in inner if isinstance(each, Message)] if isinstance(inner, list) else []


def _body(part: Message, limits: LibraryLimits) -> Iterator[Piece]:
    payload = part.get_payload(decode=True)
    try:
        text = decode(payload, part.get_content_charset()) if isinstance(payload, bytes) and payload else ""
    except DocumentError:  # it says that it is text, and is none; the other parts count
        return
    if part.get_content_type() == "text/html":
        yield from parse(text, limits)
    else:
        yield from (Piece(match[0].rstrip()) for match in PARAGRAPH.finditer(text))


def said(value: str) -> str:
    """A header as people read it, in one line; what is not encoded as it should be, too."""
    parts: list[tuple[bytes | str, str | None]] = [(value, None)]
    if len(value) <= MAX_ENCODED:
        with suppress(email.errors.HeaderParseError, ValueError):
            parts = email.header.decode_header(value)
    found = []
    for part, charset in parts:
        raw = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        try:
            found.append(raw.decode() if raw.isascii() and not charset else decode(raw, charset))
        except DocumentError:
            found.append(raw.decode("utf-8", "replace"))
    return " ".join("".join(found).split())
