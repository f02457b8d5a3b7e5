"""What a log remembers between two compactions: up to where it is clean, and since when.

Clean means: below that offset no key has more than one record. When a run has ended the offset moves up, and
the moment is noted, for the age of a tombstone counts from when it was first seen clean: only from then on
has nothing older of its key been left that could come back to life without it.

The file `compaction` in the log's directory, little-endian:

    0   8s  magic, "LBCLEAN1"
    8  i64  clean offset
   16  u32  number of points, at most 1024
   20  ...  points, the oldest first: i64 offset, i64 time (ns since the epoch), u64 tombstones that this
            run left for a later one
  end  u32  CRC-32C of everything before

Invariant: the file may be lost. Then everything counts as dirty, and every tombstone as new; the next run
does more than it had to, and nothing is wrong.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path

from liftbridge._log import crc32c
from liftbridge.log.files import replace_file

STATE_NAME = "compaction"
MAX_POINTS = 1024

_MAGIC = b"LBCLEAN1"
_HEADER = struct.Struct("<8sqI")
_POINT = struct.Struct("<qqQ")
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True)
class CleanPoint:
    """At `time_ns` the log was clean below `offset`, with `tombstones` in what had become clean just then."""

    offset: int
    time_ns: int
    tombstones: int


@dataclass(frozen=True)
class CleanState:
    """The clean offset, and the points in time that tombstones still need, the oldest first."""

    offset: int = 0
    points: tuple[CleanPoint, ...] = ()

    def tombstones_below(self, since_ns: int) -> int:
        """The offset below which tombstones have been clean since `since_ns` (ns since the epoch)."""
        return max((point.offset for point in self.points if point.time_ns <= since_ns), default=0)

    def has_tombstones(self, since_ns: int) -> bool:
        """Whether there may be a tombstone that has been clean since then."""
        below = self.tombstones_below(since_ns)
        return any(point.tombstones and point.offset <= below for point in self.points)

    def after(self, point: CleanPoint, since_ns: int) -> CleanState:
        """The state after a run that has removed the tombstones that were clean since `since_ns`."""
        below = self.tombstones_below(since_ns)
        points = [each for each in self.points if each.offset > below]
        if len(points) >= MAX_POINTS:
            # One of two goes, and its tombstones are taken for as young as those of the other.
            points = [
                replace(second, tombstones=first.tombstones + second.tombstones)
                for first, second in zip(points[::2], points[1::2], strict=True)
            ]
        return CleanState(point.offset, (*points, point))

    def truncated(self, offset: int) -> CleanState:
        """The state of a log that was cut off at `offset`."""
        points = tuple(replace(point, offset=min(point.offset, offset)) for point in self.points)
        return CleanState(min(self.offset, offset), points)


def read_state(directory: Path) -> CleanState:
    """Return what is known of the log in `directory`: nothing, when the file is missing or damaged.

    Raises OSError when it cannot be read.
    """
    try:
        content = (directory / STATE_NAME).read_bytes()
    except FileNotFoundError:
        return CleanState()
    body, checksum = content[: -_CHECKSUM.size], content[-_CHECKSUM.size :]
    if len(body) < _HEADER.size or checksum != _CHECKSUM.pack(crc32c(body)):
        return CleanState()
    magic, offset, count = _HEADER.unpack_from(body)
    if magic != _MAGIC or len(body) != _HEADER.size + count * _POINT.size:
        return CleanState()
    return CleanState(offset, tuple(CleanPoint(*each) for each in _POINT.iter_unpack(body[_HEADER.size :])))


def write_state(directory: Path, state: CleanState) -> None:
    """Replace the file, durably. Raises OSError; then the old one stands."""
    body = _HEADER.pack(_MAGIC, state.offset, len(state.points))
    body += b"".join(_POINT.pack(each.offset, each.time_ns, each.tombstones) for each in state.points)
    replace_file(directory / STATE_NAME, body + _CHECKSUM.pack(crc32c(body)))


def truncate_state(directory: Path, offset: int) -> None:
    """Forget that anything at or above `offset` is clean; before other records may get these offsets.

    Raises OSError.
    """
    state = read_state(directory)
    if state.offset > offset:
        write_state(directory, state.truncated(offset))
