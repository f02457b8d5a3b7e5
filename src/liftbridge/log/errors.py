"""What can be wrong with a log. Every message names the file or directory, the place in it, and what to do.

`LogError` is the base of all; a failed system call that leaves the log usable is a plain OSError instead.
"""

from __future__ import annotations

from pathlib import Path

from liftbridge._log import CorruptBatchError, LogError

__all__ = [
    "LogError",
    "CorruptBatchError",
    "LogDamagedError",
    "ForeignLogError",
    "LogFailedError",
    "LogClosedError",
    "CleaningStoppedError",
]


class LogDamagedError(LogError):
    """Opening found bytes that are no torn tail: something that was written once is missing or altered.

    Nothing has been removed. Attributes: `path` of the file, `position` of the first bad byte, `reason`.
    """

    def __init__(self, path: Path, position: int, reason: str) -> None:
        super().__init__(
            f"{path}: damaged at byte {position}: {reason}; "
            "nothing was removed: restore the file from a copy, or delete the stream to give up what it holds"
        )
        self.path = path
        self.position = position
        self.reason = reason


class ForeignLogError(LogError):
    """A segment file belongs to another stream or partition than the one its directory is opened for."""


class LogFailedError(LogError):
    """A write or an fsync failed in a way that leaves the file unknown; the log takes nothing any more."""


class LogClosedError(LogError):
    """The log was closed."""


class CleaningStoppedError(LogError):
    """Retention or compaction was told to stop; the log is as it was, or cleaned in part."""
