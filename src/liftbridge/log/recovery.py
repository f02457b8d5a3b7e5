"""Opening the files of a log after any end of the process before.

Files are judged in the order of their offsets. A sealed segment is believed when its index file describes
it, else scanned. The last one is scanned from where its index file ends; after a clean stop that is its
end. Every scanned byte is synced before it is trusted: it may still be in the page cache of a process
that was killed, and what is served or acked from here on must not vanish with the power.

A bad batch in the last segment with no valid batch anywhere behind it is a torn tail: a write that never
finished. It is cut off, durably, before its offsets can be used again.

A loss of power may leave more. Of what no sync had covered any part may have reached the disk, so good
batches may lie behind bad ones. Every batch tells how far the log was synced when it was written: what is
bad below the furthest of these was on disk once, what is bad above it was not known to be, and there the
log ends. It is cut off with all that follows it. While the machine runs nothing of the kind happens, as
the page cache outlives the process; the caller knows which of the two it was.

Anything else that is wrong is damage: something that was written once is missing or altered. Damage costs
what is damaged and nothing more: the offsets that are lost become a hole, everything before and behind it
is served, and nothing is removed. A damaged segment is written no more: the log goes on in a new one.

Invariants:

- What remains is what was written, up to some record, with holes where bytes are damaged, and with nothing
  else missing.
- Offsets below one that an index file remembers as synced are never given to another record.
- Recovery interrupted and repeated ends in the same state.
- Deleting every index file of an undamaged log changes nothing but the time this takes.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from liftbridge._log import SEGMENT_HEADER_BYTES, CorruptBatchError, Segment, find_batch
from liftbridge.log.errors import ForeignLogError, LogDamagedError
from liftbridge.log.files import (
    DISTRUST_NAME,
    INDEX_SUFFIX,
    SEGMENT_SUFFIX,
    TEMPORARY_SUFFIX,
    index_path,
    make_directory,
    segment_path,
    sync_data,
    sync_directory,
    write_again,
)
from liftbridge.log.header import SegmentHeader
from liftbridge.log.index import Summary, load_index, read_summary, remember
from liftbridge.log.segments import (
    Before,
    Codecs,
    SealedSegment,
    cut_segment,
    detached,
    is_zero,
    open_segment,
    scan_through,
    write_segment,
)
from liftbridge.log.start import read_start
from liftbridge.log.swap import finish_swaps

MISSING = "the file behind it is missing, and its index tells what was in it"
ALL_MISSING = "the log had files, and all are missing"
_SEGMENT_NAME = re.compile(r"[0-9]{20}\.log")


@dataclass(frozen=True)
class Damage:
    """What is damaged: bytes of a file from `position` on, and the offsets that are lost with them.

    The offsets are those from `first_offset` on and below `next_offset`; they are equal when none is lost.
    """

    path: Path
    position: int
    first_offset: int
    next_offset: int
    reason: str

    def __str__(self) -> str:
        lost = (
            f"the offsets {self.first_offset} to {self.next_offset - 1} are lost"
            if self.next_offset > self.first_offset
            else "no offset is lost"
        )
        return f"{self.path} is damaged at byte {self.position}, {lost}: {self.reason}"


@dataclass
class Recovered:
    """The files of a log as found: `active` is open for writing, and everything is on disk.

    `scanned_bytes` were read to find out, `truncated_bytes` cut off as a torn tail; `damage` is what was
    found of it, in the order of the offsets. `noted_start` is what the note beside the files says of where
    the log begins, None when there is none.
    """

    active: Segment
    sealed: list[SealedSegment]
    scanned_bytes: int
    truncated_bytes: int
    damage: list[Damage]
    noted_start: int | None = None


def recover(
    directory: Path,
    stream_id: uuid.UUID,
    partition: int,
    codecs: Codecs,
    *,
    power_lost: bool = False,
    deep: bool = False,
) -> Recovered:
    """Bring the log in `directory` into a state to go on from; blocking.

    `power_lost` says that what no sync had covered may have been lost with the page cache since the log was
    open last. With `deep`, no index file stands in for a scan: all damage is found, and everything is read.

    The directory is created when it is missing, and a first segment when there is none. Raises
    ForeignLogError when the files are another stream's, LogDamagedError when two of them claim the same
    offsets or one has a format of a newer version, LogError when a key is missing, OSError.
    """
    cut = 0
    while True:
        recovery = _Recovery(directory, stream_id, partition, codecs, deep)
        recovery.truncated_bytes = cut
        found = recovery.run(power_lost=power_lost)
        if found is not None:
            return found
        cut = recovery.truncated_bytes


def begin_encryption(found: Recovered, stream_id: uuid.UUID, partition: int, codecs: Codecs) -> None:
    """Have the next record of a log go into an encrypted segment, whatever the active one is; blocking.

    An active segment without a data key is sealed, for the setting is newer than it is. One that has no
    record is replaced, as two segments cannot begin at one offset. Raises OSError.
    """
    active = found.active
    if active.codec is not None and active.codec.encrypted:
        return
    content = b""
    if active.count:
        remember(active, stream_id, partition)
        found.sealed.append(SealedSegment.of(active, codecs))
    else:
        content = os.pread(active.fileno(), active.end - SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES)
    header = SegmentHeader(stream_id, partition, active.next_offset, time.time_ns())
    path = write_segment(active.path.parent, header, codecs, content)
    before = Before.of(found.sealed[-1].summary) if found.sealed else Before()
    found.active, _ = open_segment(path, os.O_RDWR, codecs, before)
    reason = found.active.scan(SEGMENT_HEADER_BYTES + len(content))
    assert not reason, reason


class _Recovery:
    def __init__(
        self, directory: Path, stream_id: uuid.UUID, partition: int, codecs: Codecs, deep: bool
    ) -> None:
        self.deep = deep
        self.directory = directory
        self.stream_id = stream_id
        self.partition = partition
        self.codecs = codecs
        self.sealed: list[SealedSegment] = []
        self.scanned_bytes = 0
        self.truncated_bytes = 0
        self.damage: list[Damage] = []
        self.witnesses: list[Path] = []  # index files of segments that are missing at the end
        self.synced_offset = 0  # what they remember
        self.noted_start: int | None = None
        self.proven_offset = 0  # all below it was on disk once
        # Good segments behind damage. An index file would be a proof, should the power go again before it is
        # decided what the damage is, that they and all before them had been on disk.
        self.unindexed: list[Segment] = []

    def run(self, *, power_lost: bool) -> Recovered | None:
        """What was found; None when something was cut off, and everything is to be looked at again."""
        make_directory(self.directory)
        self._dispel_distrust()
        finish_swaps(self.directory, self.stream_id, self.partition)
        paths = self._from_start(self._clean_up())
        # Retention may have removed all files but one; then its name is all that remembers the offset.
        first = int(paths[0].stem) if paths else self._without_files()
        if paths and self._was_never_begun(paths[-1]):
            self._remove(paths.pop())
        for path, following in pairwise(paths):
            self.sealed.append(self._open_sealed(path, int(following.stem)))
        active = self._open_last(paths[-1]) if paths else None
        if power_lost and self._cut_unproven(paths):
            return None
        if active is None:
            active = self._begin(self.sealed[-1].next_offset if self.sealed else first)
        sync_directory(self.directory)
        for segment in self.unindexed:
            remember(segment, self.stream_id, self.partition)
        for sealed in self.sealed:
            if sealed.damaged:  # what its index file was a witness of, the next file's name tells as well
                index_path(sealed.path).unlink(missing_ok=True)
        for path in self.witnesses:  # the active segment now begins behind what they remember
            path.unlink()
        return Recovered(
            active, self.sealed, self.scanned_bytes, self.truncated_bytes, self.damage, self.noted_start
        )

    def _dispel_distrust(self) -> None:
        """After a failed fsync: bring what no index file vouches for to the medium, or fail."""
        note = self.directory / DISTRUST_NAME
        if not note.exists():
            return
        for path in sorted(self.directory.iterdir()):
            if _SEGMENT_NAME.fullmatch(path.name):
                summary = self._summary(path)
                if summary is None or summary.end != path.stat().st_size:
                    write_again(path)
        note.unlink()
        sync_directory(self.directory)

    def _cut_unproven(self, paths: list[Path]) -> bool:
        """Cut the log off at the first damage in what was never synced, if there is any."""
        proven = max(self.proven_offset, self.synced_offset)
        first = next((each for each in self.damage if each.first_offset >= proven), None)
        if first is None:
            return False
        behind = [path for path in paths if path > first.path or (path == first.path and not first.position)]
        for path in reversed(behind):
            if not path.exists():  # it had nothing in it, and is gone already
                continue
            self.truncated_bytes += path.stat().st_size
            self._remove(path)
            sync_directory(self.directory)  # the newest first, so that a crash leaves no gap
        if first.position:
            self.truncated_bytes += first.path.stat().st_size - first.position
            self._trim(first.path, first.position)
        return True

    def _clean_up(self) -> list[Path]:
        """Remove what was left half-made; return the segment files in the order of their offsets."""
        names = sorted(entry.name for entry in self.directory.iterdir())
        paths = [self.directory / name for name in names if _SEGMENT_NAME.fullmatch(name)]
        indexes = {index_path(path).name for path in paths}
        for name in names:
            orphan = name.endswith(INDEX_SUFFIX) and name not in indexes
            if orphan and self._is_witness(self.directory / name, paths):
                self.witnesses.append(self.directory / name)
            elif orphan or name.endswith(TEMPORARY_SUFFIX):
                (self.directory / name).unlink()
        return paths

    def _from_start(self, paths: list[Path]) -> list[Path]:
        """The files from the noted start on; with one that stands for the first, if that is lost."""
        start = self.noted_start = read_start(self.directory)
        if start is None:
            return paths
        if len(paths) > 1 and int(paths[1].stem) <= start:  # retention was interrupted
            # Perhaps before the note was durable: without it, what is removed here would be missed.
            sync_directory(self.directory)
        while len(paths) > 1 and int(paths[1].stem) <= start:
            self._remove(paths.pop(0))
            sync_directory(self.directory)
        if not paths and not self.witnesses:
            self.damage.append(Damage(segment_path(self.directory, start), 0, start, start, ALL_MISSING))
        if paths and int(paths[0].stem) > start:
            following = int(paths[0].stem)
            self.proven_offset = max(self.proven_offset, following)  # the note came after its sync
            paths = [self._write_empty(start), *paths]
        self.synced_offset = max(self.synced_offset, start)
        return paths

    def _is_witness(self, index: Path, paths: list[Path]) -> bool:
        """Whether the index of a missing segment tells of records at the end of the log that are lost.

        In front of the log, retention removes a segment before its index. Behind it nothing does.
        """
        path = index.with_suffix(SEGMENT_SUFFIX)
        if not _SEGMENT_NAME.fullmatch(path.name) or (paths and path < paths[-1]):
            return False
        summary = self._summary(path)
        if summary is None or summary.next_offset == int(path.stem):
            return False
        self.synced_offset = max(self.synced_offset, summary.next_offset)
        return True

    def _without_files(self) -> int:
        """The offset to begin with when there is no segment file; what index files remember is lost."""
        if self.witnesses:
            path = self.witnesses[0].with_suffix(SEGMENT_SUFFIX)
            self.damage.append(Damage(path, 0, int(path.stem), self.synced_offset, MISSING))
        return self.synced_offset

    def _remove(self, path: Path) -> None:
        path.unlink()
        index_path(path).unlink(missing_ok=True)

    def _begin(self, base_offset: int) -> Segment:
        """A new active segment."""
        return open_segment(self._write_empty(base_offset), os.O_RDWR, self.codecs, self._before())[0]

    def _write_empty(self, base_offset: int) -> Path:
        header = SegmentHeader(self.stream_id, self.partition, base_offset, time.time_ns())
        return write_segment(self.directory, header, self.codecs)

    def _before(self) -> Before:
        return self.sealed[-1].behind if self.sealed else Before()

    # ---- whose file is it ----

    def _was_never_begun(self, path: Path) -> bool:
        """Whether the last file was being created when the process ended: no header, nothing behind it."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size > SEGMENT_HEADER_BYTES or self._read_header(fd, path) is not None:
                return False
            if self._summary(path) is not None:
                return False  # it was whole once
            self.truncated_bytes += size
            return True
        finally:
            os.close(fd)

    def _read_header(self, fd: int, path: Path) -> SegmentHeader | None:
        try:
            return SegmentHeader.decode(os.pread(fd, SEGMENT_HEADER_BYTES, 0))
        except ValueError as error:
            raise LogDamagedError(path, 0, str(error)) from None

    def _open(self, path: Path, flags: int) -> tuple[Segment, int, bool]:
        """Open a file; return the Segment, the file's size, and whether its header is good."""
        try:
            segment, header = open_segment(path, flags, self.codecs, self._before())
        except ValueError as error:
            raise LogDamagedError(path, 0, str(error)) from None
        good = header is not None
        if header is not None and (header.stream_id, header.partition) != (self.stream_id, self.partition):
            raise ForeignLogError(
                f"{path} belongs to stream {header.stream_id} partition {header.partition}, not to stream "
                f"{self.stream_id} partition {self.partition}; "
                "move the file away or restore the right directory"
            )
        if header is not None and header.base_offset != segment.base_offset:
            raise LogDamagedError(path, 0, f"its header says that it begins at offset {header.base_offset}")
        if not good:
            self.damage.append(
                Damage(path, 0, segment.base_offset, segment.base_offset, "the header block is damaged")
            )
        return segment, os.fstat(segment.fileno()).st_size, good

    # ---- what is in it ----

    def _summary(self, path: Path) -> Summary | None:
        summary = read_summary(index_path(path), self.stream_id, self.partition, int(path.stem))
        if summary is not None:
            self.proven_offset = max(self.proven_offset, summary.next_offset)
        return summary

    def _note_holes(self, segment: Segment) -> None:
        for first, following, position, _, reason in segment.holes:
            self.damage.append(Damage(segment.path, position, first, following, reason))

    def _scan_through(self, segment: Segment, size: int) -> str:
        reason = scan_through(segment, size)
        self.scanned_bytes += segment.end - SEGMENT_HEADER_BYTES
        self.proven_offset = max(self.proven_offset, segment.proven_offset)
        return reason

    def _open_sealed(self, path: Path, following: int) -> SealedSegment:
        """A segment that another one follows, at the offset `following`."""
        segment, size, good = self._open(path, os.O_RDONLY)
        summary = self._summary(path)
        known = good and summary is not None and (summary.end, summary.next_offset) == (size, following)
        if known and summary is not None and not self.deep:
            return SealedSegment(
                path, segment.base_offset, summary, self.codecs, sparse=segment.end_offset >= 0
            )
        reason = self._scan_through(segment, size)
        beyond = segment.next_offset > following or (segment.next_offset == following and reason)
        if beyond and self._was_being_cut(path, following):
            segment = self._finish_cut(segment, size, following)
            size, reason = segment.end, ""
        if segment.next_offset > following:
            raise LogDamagedError(
                path,
                0,
                f"it has offsets up to {segment.next_offset - 1}, and the next file begins at {following}",
            )
        if segment.next_offset < following or reason:
            segment.lose_until(
                following, max(size, segment.end), reason or "what comes before the next file is missing"
            )
        sync_data(segment.fileno())
        self._note_holes(segment)
        sealed = self._sealed(segment, good)
        if not sealed.damaged:
            if segment.end < size:
                self._trim(path, segment.end)
            if self.damage:
                self.unindexed.append(detached(segment))
            else:
                remember(segment, self.stream_id, self.partition)
        return sealed

    def _was_being_cut(self, path: Path, following: int) -> bool:
        """Whether a truncation to the offset `following` has made the segment there, and not come further."""
        behind = segment_path(self.directory, following)
        names = sorted(each.name for each in self.directory.iterdir() if _SEGMENT_NAME.fullmatch(each.name))
        return names[-1] == behind.name and behind.stat().st_size == SEGMENT_HEADER_BYTES

    def _finish_cut(self, segment: Segment, size: int, following: int) -> Segment:
        # Of what is to be cut off any part may be gone, as of what the next file's name tells of nothing.
        holes = [hole for hole in segment.holes if hole[0] <= following <= hole[1]]
        position = holes[0][2] if holes else segment.boundary(following)[0]
        # Its index may be gone already, and not durably: it would come back as a witness.
        index_path(segment.path).unlink(missing_ok=True)
        sync_directory(self.directory)
        self.truncated_bytes += size - position
        cut_segment(segment.path, position, following)
        cut, size, _ = self._open(segment.path, os.O_RDONLY)
        self._scan_through(cut, size)
        return cut

    def _sealed(self, segment: Segment, good: bool) -> SealedSegment:
        sealed = SealedSegment.of(segment, self.codecs)
        return sealed if good else replace(sealed, damaged=True)

    def _trim(self, path: Path, end: int) -> None:
        """Cut off zeros behind the data: room that was asked for ahead and never used."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, end)
            sync_data(fd)
        finally:
            os.close(fd)

    def _open_last(self, path: Path) -> Segment | None:
        """The last segment, ready for appends; None when it is damaged, and sealed with its holes."""
        segment, size, good = self._open(path, os.O_RDWR)
        summary = self._summary(path)
        if good and not self.deep and summary is not None and summary.end <= size:
            segment = self._after_checkpoint(segment, summary) or segment
        begin = segment.end
        reason = segment.scan(size)
        self.scanned_bytes += segment.end - begin
        synced = (summary.end, summary.next_offset) if summary is not None else (0, 0)
        if not good or segment.end < synced[0] or segment.end_offset >= 0 or self.witnesses:
            self._seal_last(segment, size, reason, synced[1], good)
            return None
        if segment.end < size:
            following = find_batch(segment.fileno(), path, segment.end, size, segment.next_offset)
            if following >= 0:
                self._seal_last(segment, size, reason, synced[1], good)
                return None
            if not is_zero(segment.fileno(), segment.end, size):
                self.truncated_bytes += size - segment.end
            os.ftruncate(segment.fileno(), segment.end)
        sync_data(segment.fileno())
        return segment

    def _after_checkpoint(self, segment: Segment, summary: Summary) -> Segment | None:
        """The segment, with what its index file describes known; None when that cannot be believed."""
        known = Segment(
            os.dup(segment.fileno()),
            segment.path,
            segment.base_offset,
            end_offset=segment.end_offset,
            codec=segment.codec,
        )
        if not load_index(known, summary):
            return None
        try:
            known.check_last()
        except CorruptBatchError:
            return None
        return known

    def _seal_last(self, segment: Segment, size: int, reason: str, synced_offset: int, good: bool) -> None:
        """Seal the last segment, which can take no more, with its holes.

        `synced_offset` is where it once ended, at least.
        """
        reason = self._scan_through(segment, size) or reason or "the file is shorter than it was"
        if segment.next_offset < synced_offset:
            segment.lose_until(synced_offset, max(size, segment.end), reason)
        if segment.next_offset < self.synced_offset:
            segment.lose_until(self.synced_offset, max(size, segment.end), MISSING)
        if segment.next_offset == segment.base_offset and segment.end == SEGMENT_HEADER_BYTES:
            # No header, no batch, and nobody remembers any: it was being created when the power went.
            self.truncated_bytes += size
            self._remove(segment.path)
            self.damage = [each for each in self.damage if each.path != segment.path]
            return
        sync_data(segment.fileno())
        self._note_holes(segment)
        self.sealed.append(self._sealed(segment, good))
