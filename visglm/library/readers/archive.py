"""Documents that are archives, looked at before anybody unpacks them."""

from __future__ import annotations

import io
import zipfile

from ...errors import DocumentError
from ..pieces import LibraryLimits, check_size

OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # of .doc, .xls, .ppt, and of what Office encrypts
ENCRYPTED = 0x1


def open_archive(data: bytes, limits: LibraryLimits) -> zipfile.ZipFile:
    """An archive that unpacks to no more than allowed; Python's own reader stops at the size that each file declares.

    Raises:
        DocumentError: it is none, encrypted, or larger than allowed.
    """
    if data.startswith(OLD_OFFICE):
        raise DocumentError("it is encrypted, or in Office's old format. Save it without a password, in the new one.")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise DocumentError("it is damaged: no archive, as such files are. Get a complete copy.") from None
    entries = archive.infolist()
    check_size(len(entries), limits.max_files, "files inside")
    check_size(sum(entry.file_size for entry in entries), limits.max_unpacked, "bytes when it is unpacked")
    if any(entry.flag_bits & ENCRYPTED for entry in entries):
        raise DocumentError("it is encrypted. Save it without a password.")
    return archive
