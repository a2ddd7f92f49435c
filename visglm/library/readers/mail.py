"""E-mail: who wrote what to whom; of attachments the names."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator
from email.message import EmailMessage

from ..pieces import LibraryLimits, Piece, check_size
from .markup import parse
from .text import PARAGRAPH, decode

HEADERS = ("From", "To", "Cc", "Date", "Subject")


def read_mail(data: bytes, name: str, limits: LibraryLimits) -> Iterator[Piece]:
    """Head, then body; its subject is the heading. Text is preferred to HTML."""
    message = email.message_from_bytes(data, _class=EmailMessage, policy=email.policy.default)
    subject = " ".join(str(message.get("Subject", "")).split())
    head = "\n".join(f"{name}: {' '.join(str(message[name]).split())}" for name in HEADERS if message.get(name))
    parts = list(message.walk())
    check_size(len(parts), limits.max_files, "parts")
    attached = [part.get_filename() for part in parts if part.get_filename()]
    if attached:
        head += "\nAttachments: " + ", ".join(" ".join(str(name).split()) for name in attached)
    if head:
        yield Piece(head, heading=subject)
    body = message.get_body(preferencelist=("plain", "html"))
    if body is None:
        return
    payload = body.get_payload(decode=True)
    text = decode(payload if isinstance(payload, bytes) else b"", body.get_content_charset()) if payload else ""
    if body.get_content_type() == "text/html":
        yield from (Piece(piece.text, heading=subject, image=piece.image) for piece in parse(text, limits))
    else:
        yield from (Piece(match[0].rstrip(), heading=subject) for match in PARAGRAPH.finditer(text))
