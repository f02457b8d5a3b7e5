"""Free space of the file system that the logs are on, and whether messages may be stored.

A disk that is full to the last byte hurts more than the messages that no longer fit: metadata cannot be
journalled, a delayed write fails at the sync, where it costs the log and not the batch, and cleaning has no
room to work in. So there is a floor, `streams.disk.min.free`: below it partitions refuse messages, while
reading, cleaning, metadata and the server's own streams go on with what is left. Storing begins again when a
tenth more than the floor is free, so that it does not begin and end with every segment that is removed.

The file system is asked every second, as others write to it too, and in between after every 16 MiB stored
here, or a 16th of the floor if that is less: so the floor is undershot by little, at any speed. To ask is one
system call that touches no disk.

Invariant: `low` changes only here, each change with one line in the log.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import trio

INTERVAL_SECONDS = 1.0
STEP_BYTES = 16 << 20
# The floor when none is configured: so many bytes, or this part of the file system if that is less.
DEFAULT_FLOOR_BYTES = 1 << 30
DEFAULT_FLOOR_PART = 20


class DiskSpace:
    """Watches the file system of a directory.

    Arguments:
        path: a directory on it.
        min_free: bytes that must be free for messages to be stored; None for the default, 0 to store as long
            as the file system takes it.

    Attributes: `low`, whether messages must not be stored; `free`, bytes that were free when last looked;
    `min_free` in bytes.

    Raises OSError when the file system cannot be asked.
    """

    def __init__(self, path: Path, min_free: int | None = None) -> None:
        self._path = path
        self._logger = logging.getLogger("liftbridge.disk")
        status = os.statvfs(path)
        if min_free is None:
            min_free = min(DEFAULT_FLOOR_BYTES, status.f_blocks * status.f_frsize // DEFAULT_FLOOR_PART)
        self.min_free = min_free
        self.free = _free(status)
        self.low = False
        self._enough = min_free + min_free // 10
        self._step = min(STEP_BYTES, min_free // 16)
        self._stored = 0  # bytes since the last look
        self._error = ""
        self._judge()

    def stored(self, size: int) -> None:
        """So many bytes were stored."""
        self._stored += size
        if self._stored >= self._step:
            self.look()

    def look(self) -> None:
        """Ask the file system."""
        if not self.min_free:
            return
        self._stored = 0
        try:
            status = os.statvfs(self._path)
        except OSError as error:
            if not self._error:
                self._logger.error("the free space of %s cannot be told: %s", self._path, error)  # noqa: TRY400
            self._error = str(error)
            return
        self._error = ""
        self.free = _free(status)
        self._judge()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled."""
        task_status.started()
        while self.min_free:
            await trio.sleep(INTERVAL_SECONDS)
            self.look()

    def _judge(self) -> None:
        if not self.low and self.free < self.min_free:
            self.low = True
            self._logger.error(
                "%s has %d bytes free, less than the %d of streams.disk.min.free: messages are refused until "
                "%d are; reading goes on. Free some space, shorten the retention, or lower the key",
                self._path,
                self.free,
                self.min_free,
                self._enough,
            )
        elif self.low and self.free >= self._enough:
            self.low = False
            self._logger.warning("%s has %d bytes free: messages are stored again", self._path, self.free)


def _free(status: os.statvfs_result) -> int:
    """Bytes that a process without privileges may still take."""
    return status.f_bavail * status.f_frsize
