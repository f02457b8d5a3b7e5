"""Opening the files of a log after any end of the process before.

Files are judged in the order of their offsets. A sealed segment is believed when its index file describes
it, else scanned; the last one is believed only after a clean stop, when its index file describes it and its
last batch is as described. Every scanned byte is synced before it is trusted: it may still be in the page
cache of a process that was killed, and what is served or acked from here on must not vanish with the power.

A bad batch in the last segment with no valid batch anywhere behind it is a torn tail: a write that never
finished. It is cut off, durably, before its offsets can be used again. Any other bad batch is damage, and
nothing is removed; so is a bad batch that an index file remembers as synced.

Invariants:

- What remains is what was written, up to some record, with nothing missing in front of it.
- Recovery interrupted and repeated ends in the same state.
- Deleting every index file of an undamaged log changes nothing but the time this takes.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from liftbridge._log import SEGMENT_HEADER_BYTES, CorruptBatchError, Segment, find_batch
from liftbridge.log.errors import ForeignLogError, LogDamagedError
from liftbridge.log.files import (
    INDEX_SUFFIX,
    TEMPORARY_SUFFIX,
    index_path,
    make_directory,
    replace_file,
    segment_path,
    sync_data,
    sync_directory,
)
from liftbridge.log.header import SegmentHeader
from liftbridge.log.index import Summary, load_index, read_summary, write_index
from liftbridge.log.segments import SealedSegment

_SEGMENT_NAME = re.compile(r"[0-9]{20}\.log")


@dataclass
class Recovered:
    """The files of a log as found: `active` is open for writing, and everything is on disk.

    `scanned_bytes` were read to find out, `truncated_bytes` cut off as a torn tail.
    """

    active: Segment
    sealed: list[SealedSegment]
    scanned_bytes: int
    truncated_bytes: int


def recover(directory: Path, stream_id: uuid.UUID, partition: int) -> Recovered:
    """Bring the log in `directory` into a state to go on from; blocking.

    The directory is created when it is missing, and a first segment when there is none. Raises
    LogDamagedError when something written once is missing or altered, ForeignLogError when the files are
    another stream's, OSError.
    """
    return _Recovery(directory, stream_id, partition).run()


class _Recovery:
    def __init__(self, directory: Path, stream_id: uuid.UUID, partition: int) -> None:
        self.directory = directory
        self.stream_id = stream_id
        self.partition = partition
        self.sealed: list[SealedSegment] = []
        self.scanned_bytes = 0
        self.truncated_bytes = 0

    def run(self) -> Recovered:
        make_directory(self.directory)
        paths = self._clean_up()
        if not paths:
            paths = [segment_path(self.directory, 0)]
            self._write_header(paths[0])
        elif not self._has_header(paths[-1]):
            # Killed while rolling: the file exists, its header does not yet.
            if len(paths) > 1:
                self._remove(paths.pop())
            else:
                self._write_header(paths[0])
        for path in paths[:-1]:
            self.sealed.append(self._open_sealed(path))
        active = self._open_last(paths[-1])
        sync_directory(self.directory)
        return Recovered(active, self.sealed, self.scanned_bytes, self.truncated_bytes)

    def _clean_up(self) -> list[Path]:
        """Remove what was left half-made; return the segment files in the order of their offsets."""
        names = sorted(entry.name for entry in self.directory.iterdir())
        paths = [self.directory / name for name in names if _SEGMENT_NAME.fullmatch(name)]
        indexes = {index_path(path).name for path in paths}
        for name in names:
            if name.endswith(TEMPORARY_SUFFIX) or (name.endswith(INDEX_SUFFIX) and name not in indexes):
                (self.directory / name).unlink()
        return paths

    def _remove(self, path: Path) -> None:
        path.unlink()
        index_path(path).unlink(missing_ok=True)

    def _write_header(self, path: Path) -> None:
        header = SegmentHeader(self.stream_id, self.partition, int(path.stem), time.time_ns())
        replace_file(path, header.encode())

    # ---- whose file is it ----

    def _has_header(self, path: Path) -> bool:
        """Whether the last file has a header; False only when there is nothing behind where it should be."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if self._read_header(fd, path) is not None:
                return True
            size = os.fstat(fd).st_size
            found = find_batch(fd, path, SEGMENT_HEADER_BYTES, size, 0) if size > SEGMENT_HEADER_BYTES else -1
            if found >= 0:
                raise LogDamagedError(path, 0, "the header block is damaged, and batches follow")
            self.truncated_bytes += size
            return False
        finally:
            os.close(fd)

    def _read_header(self, fd: int, path: Path) -> SegmentHeader | None:
        try:
            header = SegmentHeader.decode(os.pread(fd, SEGMENT_HEADER_BYTES, 0))
        except ValueError as error:
            raise LogDamagedError(path, 0, str(error)) from None
        if header is None:
            return None
        if (header.stream_id, header.partition) != (self.stream_id, self.partition):
            raise ForeignLogError(
                f"{path} belongs to stream {header.stream_id} partition {header.partition}, not to stream "
                f"{self.stream_id} partition {self.partition}; "
                "move the file away or restore the right directory"
            )
        if header.base_offset != int(path.stem):
            raise LogDamagedError(path, 0, f"its header says that it begins at offset {header.base_offset}")
        return header

    def _open(self, path: Path, flags: int) -> tuple[Segment, int]:
        """Open a file with a header that follows the one before; return the Segment and the file's size."""
        before = self.sealed[-1] if self.sealed else None
        base_offset = int(path.stem)
        fd = os.open(path, flags | os.O_CLOEXEC)
        if before is None:
            segment = Segment(fd, path, base_offset)
        else:
            segment = Segment(
                fd,
                path,
                base_offset,
                last_timestamp=before.summary.last_timestamp,
                last_epoch=before.summary.last_epoch,
                last_crc=before.summary.last_crc,
            )
        if self._read_header(fd, path) is None:
            raise LogDamagedError(path, 0, "the header block is damaged")
        if before is not None and base_offset != before.next_offset:
            raise LogDamagedError(
                path,
                0,
                f"the file before it ends at offset {before.next_offset}; what lies between is missing",
            )
        return segment, os.fstat(fd).st_size

    # ---- what is in it ----

    def _summary(self, path: Path) -> Summary | None:
        return read_summary(index_path(path), self.stream_id, self.partition, int(path.stem))

    def _scan(self, segment: Segment, size: int) -> str:
        reason = segment.scan(size)
        self.scanned_bytes += segment.end - SEGMENT_HEADER_BYTES
        return reason

    def _open_sealed(self, path: Path) -> SealedSegment:
        segment, size = self._open(path, os.O_RDONLY)
        summary = self._summary(path)
        if summary is not None and summary.end == size:
            return SealedSegment(path, segment.base_offset, summary)
        reason = self._scan(segment, size)
        if segment.end != size:
            raise LogDamagedError(path, segment.end, reason or "zeros in the middle of the log")
        sync_data(segment.fileno())
        with suppress(OSError):  # an index saves time; a full disk must not keep a log from being read
            write_index(segment, self.stream_id, self.partition)
        return SealedSegment.of(segment)

    def _open_last(self, path: Path) -> Segment:
        segment, size = self._open(path, os.O_RDWR)
        summary = self._summary(path)
        synced = SEGMENT_HEADER_BYTES if summary is None else summary.end
        if summary is not None and summary.end == size:
            clean = self._open_clean(segment, summary)
            if clean is not None:
                return clean
        reason = self._scan(segment, size) or "zeros in the middle of the log"
        if segment.end < synced:
            raise LogDamagedError(
                path, segment.end, f"{reason}; the index file tells that all was well up to {synced}"
            )
        if segment.end < size:
            following = find_batch(segment.fileno(), path, segment.end, size, segment.next_offset)
            if following >= 0:
                raise LogDamagedError(
                    path, segment.end, f"{reason}; a good batch follows at byte {following}"
                )
            os.ftruncate(segment.fileno(), segment.end)
            self.truncated_bytes += size - segment.end
        sync_data(segment.fileno())
        return segment

    def _open_clean(self, segment: Segment, summary: Summary) -> Segment | None:
        """Return the last segment as a clean stop left it, without a scan, or None when it is not so."""
        clean = Segment(os.dup(segment.fileno()), segment.path, segment.base_offset)
        if not load_index(clean, summary):
            return None
        try:
            clean.check_last()
        except CorruptBatchError:
            return None
        return clean
