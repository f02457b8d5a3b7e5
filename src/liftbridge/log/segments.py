"""Segments at rest: what is remembered of a sealed segment, how it is opened again, and who keeps it open.

A sealed segment is a few numbers. Its descriptor and its index are needed only while somebody reads it, so
the process keeps at most a fixed number of sealed segments open, whatever the number of logs and their
sizes; the least recently read is let go first. A reader holds its own reference, so letting go never closes
a file under a reader.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path

from liftbridge._log import SEGMENT_HEADER_BYTES, CorruptBatchError, Segment
from liftbridge.log.files import FILE_MODE, write_all
from liftbridge.log.header import SegmentHeader
from liftbridge.log.index import Summary, load_index

DEFAULT_OPEN_SEGMENTS = 512


@dataclass(frozen=True, eq=False)
class SealedSegment:
    """A segment that is never written again: its file, first offset and summary."""

    path: Path
    base_offset: int
    summary: Summary

    @classmethod
    def of(cls, segment: Segment) -> SealedSegment:
        """Return the sealed form of a segment that will not be appended to any more."""
        return cls(segment.path, segment.base_offset, Summary.of(segment))

    @property
    def next_offset(self) -> int:
        """The offset behind the segment's last record."""
        return self.summary.next_offset

    @property
    def size(self) -> int:
        """Bytes of batches, the header block not counted."""
        return self.summary.end - SEGMENT_HEADER_BYTES

    def open(self) -> Segment:
        """Open the file for reading; without a believable index file it is scanned.

        Raises OSError (FileNotFoundError once retention has removed it), or CorruptBatchError when the scan
        does not find what the segment held when it was sealed.
        """
        segment = Segment(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC), self.path, self.base_offset)
        if load_index(segment, self.summary):
            return segment
        reason = segment.scan(self.summary.end)
        if segment.end != self.summary.end or segment.next_offset != self.next_offset:
            raise CorruptBatchError(self.path, segment.end, reason or "the segment ends too early")
        return segment


def create_segment(
    path: Path, header: SegmentHeader, *, last_timestamp: int = 0, last_epoch: int = 0, last_crc: int = -1
) -> Segment:
    """Create a segment file with its header block; nothing is synced.

    The other arguments are those of the core's Segment. Raises OSError, and then there is no file;
    FileExistsError when there was one.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        write_all(fd, header.encode(), 0)
    except OSError:
        os.close(fd)
        path.unlink()
        raise
    return Segment(
        fd,
        path,
        header.base_offset,
        last_timestamp=last_timestamp,
        last_epoch=last_epoch,
        last_crc=last_crc,
    )


def detached(segment: Segment) -> Segment:
    """Return a Segment that knows the same and has no descriptor."""
    copy = Segment(-1, segment.path, segment.base_offset)
    copy.load(segment.index_bytes(), **asdict(Summary.of(segment)))
    return copy


class OpenSegments:
    """Keeps at most `capacity` sealed segments open; usable from several threads."""

    def __init__(self, capacity: int = DEFAULT_OPEN_SEGMENTS) -> None:
        self.capacity = capacity
        self._lock = threading.Lock()
        self._open: OrderedDict[SealedSegment, Segment] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, sealed: SealedSegment, *, nowait: bool = False) -> Segment:
        """Return the segment, opened if need be. Raises as `SealedSegment.open`.

        With `nowait`, raises BlockingIOError instead of opening it.
        """
        with self._lock:
            segment = self._open.get(sealed)
            if segment is not None:
                self._open.move_to_end(sealed)
                return segment
        if nowait:
            raise BlockingIOError(f"{sealed.path} is not open")
        segment = sealed.open()
        self.keep(sealed, segment)
        return segment

    def keep(self, sealed: SealedSegment, segment: Segment) -> None:
        """Keep `segment`, the open form of `sealed`, for the next reader."""
        with self._lock:
            self._open[sealed] = segment
            self._open.move_to_end(sealed)
            while len(self._open) > self.capacity:
                self._open.popitem(last=False)

    def forget(self, sealed: SealedSegment) -> None:
        """Let go of a segment that nobody will ask for again."""
        with self._lock:
            self._open.pop(sealed, None)


# One for the process, because descriptors are the process's.
open_segments = OpenSegments()
