"""System calls that make files durable, and the names of the files of a log.

A new file is durable once it and its directory are synced; a new directory once its parent is. What is
replaced is written to a temporary file, synced, renamed, and its directory synced, so that after any crash
the old or the new content is there. Temporary files end in `.tmp`; the next start removes them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

SEGMENT_SUFFIX = ".log"
INDEX_SUFFIX = ".index"
TEMPORARY_SUFFIX = ".tmp"
DISTRUST_NAME = "sync-failed"
FILE_MODE = 0o640
PIECE_BYTES = 1 << 20


def segment_path(directory: Path, base_offset: int) -> Path:
    """Where the segment beginning at `base_offset` lies."""
    return directory / f"{base_offset:020d}{SEGMENT_SUFFIX}"


def index_path(segment: Path) -> Path:
    """Where the index of a segment file lies."""
    return segment.with_suffix(INDEX_SUFFIX)


if sys.platform == "darwin":

    def sync_data(fd: int) -> None:
        """Return when the file's content is on the medium; fsync alone stops at the drive's cache here."""
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

else:

    def sync_data(fd: int) -> None:
        """Return when the file's content, and the size that finding it needs, is on the medium."""
        os.fdatasync(fd)


def sync_directory(directory: Path) -> None:
    """Return when the names in the directory are on the medium."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(directory: Path) -> None:
    """Create the directory and what is missing above it, durably."""
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    # Each is synced before the next is made; of those that exist a killed process may have left the last
    # without. What lies above it may not be ours to read, but then it was not we who made it.
    with suppress(PermissionError):
        sync_directory(directory.parent)
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def leave_distrust(directory: Path) -> None:
    """Note that an fsync of a file in the directory has failed, for whoever opens the log next.

    The kernel keeps pages that it could not write in the page cache and calls them clean, so the next fsync,
    also of another process, reports success for bytes that are not on the medium. The note lives in the page
    cache as they do, and like them does not have to survive a loss of power.
    """
    with suppress(OSError):
        (directory / DISTRUST_NAME).touch()


def write_again(path: Path) -> None:
    """Replace a file by a copy of itself that is on the medium; raises OSError, and then it is as it was."""
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        replace_file(path, pieces(source, 0, os.fstat(source).st_size))
    finally:
        os.close(source)


def pieces(fd: int, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes of a file between two positions, a piece at a time. Raises OSError, also when there are
    fewer."""
    while start < stop:
        piece = os.pread(fd, min(stop - start, PIECE_BYTES), start)
        if not piece:
            raise OSError(errno.EIO, f"the file ends at byte {start}, before byte {stop}")
        yield piece
        start += len(piece)


def write_all(fd: int, data: bytes, position: int) -> None:
    """Write all of `data` at a position; raises OSError, after which any part may have been written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, position)
        view = view[written:]
        position += written


def replace_file(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Give the file this content, durably and at once; on OSError it has its old content."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    try:
        try:
            end = 0
            for piece in (content,) if isinstance(content, bytes) else content:
                write_all(fd, piece, end)
                end += len(piece)
            sync_data(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
