"""Small durable files: what has been written here is found again after a crash, or the old content is.

Blocking calls, for worker threads. A file is replaced as a whole: written beside its place, synced, renamed
over it, and the directory synced, so that a crash between any two of these leaves either the old file or the
new one. The leftover of an interrupted replacement ends in `TEMPORARY` and may always be deleted.

The system calls are those of the log (`log/files.py`). What differs here: only the server's user may read
these files, their times are synced too, and tests can look at the disk after every step.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from liftbridge.log.files import TEMPORARY_SUFFIX as TEMPORARY
from liftbridge.log.files import sync_directory, write_all

__all__ = [
    "TEMPORARY",
    "StepHook",
    "no_hook",
    "write_all",
    "sync_file",
    "sync_directory",
    "make_directory",
    "replace_file",
]

# Called with the name of each step that has just been done; tests look at the disk, or crash, there.
StepHook = Callable[[str], None]


def no_hook(step: str) -> None:
    """The step hook of a server: nothing."""


def sync_file(descriptor: int) -> None:
    """Return once the file's content is on the disk. An error is final: what is on the disk is unknown."""
    if sys.platform == "darwin":
        import fcntl

        # fsync there leaves the data in the drive's cache.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def make_directory(directory: Path) -> None:
    """Create a directory for the server's eyes only, its parents too, durably; fine when it exists."""
    missing = []
    ancestor = directory
    while not ancestor.exists():
        missing.append(ancestor)
        ancestor = ancestor.parent
    # Each is synced before the next is made; of those that exist a killed process may have left the last
    # without. What lies above it may not be ours to read, but then it was not we who made it.
    with suppress(PermissionError):
        sync_directory(ancestor.parent)
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)
    if not directory.is_dir():
        raise NotADirectoryError(f"{directory} exists and is not a directory")


def replace_file(path: Path, data: bytes, hook: StepHook = no_hook) -> None:
    """Make `data` the content of the file at `path`, durably, readable for the server's user only.

    Raises OSError; before the step "renamed" the old content is still in place.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        hook("created")
        write_all(descriptor, data, 0)
        hook("written")
        sync_file(descriptor)
        hook("synced")
    finally:
        os.close(descriptor)
    temporary.replace(path)
    hook("renamed")
    sync_directory(path.parent)
    hook("directory synced")
