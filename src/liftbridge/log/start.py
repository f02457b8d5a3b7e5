"""Where a log begins, remembered beside its segments, so that the loss of its first files is noticed.

Retention removes files from the front, and so may a mistake; only a note that is written first tells one
from the other. A log gets its note with its second segment. Retention moves it forward before it removes
anything, so what a start of the server finds in front of the noted offset was to be removed, and what is
missing behind it is lost.

The file `start` in the log's directory, little-endian:

    0   8s  magic, "LBSTART1"
    8  i64  start offset
   16  u32  CRC-32C of everything before

Invariant: the file may be lost. Then the log begins where its first file does.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

from liftbridge._log import crc32c
from liftbridge.log.files import replace_file, sync_directory

START_NAME = "start"

_MAGIC = b"LBSTART1"
_BODY = struct.Struct("<8sq")
_CHECKSUM = struct.Struct("<I")


def read_start(directory: Path) -> int | None:
    """Return the noted start offset of the log in `directory`; None when there is no note, or a damaged one.

    Raises OSError when it cannot be read.
    """
    try:
        content = (directory / START_NAME).read_bytes()
    except FileNotFoundError:
        return None
    body, checksum = content[: _BODY.size], content[_BODY.size :]
    if len(body) < _BODY.size or checksum != _CHECKSUM.pack(crc32c(body)):
        return None
    magic, offset = _BODY.unpack(body)
    return offset if magic == _MAGIC and offset >= 0 else None


def note_start(directory: Path, offset: int) -> None:
    """Note durably that the log begins at `offset`; blocking.

    When the note cannot be written, there is none afterwards: on a full disk retention has to go on, and a
    note that is too low would call what it removes lost. Raises OSError when neither is possible.
    """
    body = _BODY.pack(_MAGIC, offset)
    try:
        replace_file(directory / START_NAME, body + _CHECKSUM.pack(crc32c(body)))
    except OSError:
        with suppress(FileNotFoundError):
            (directory / START_NAME).unlink()
            sync_directory(directory)
