"""The commit log of one partition: append, read, search by time, retention, and what is on disk.

A log is a directory of segments. The last one, the active segment, takes the appends; the others are sealed
and never change. `next_offset` is where the log goes on; every offset below `synced_offset` survives a loss
of power. Who waits for the second before acking, and who asks for it to move, is the sync policy's
business, not the log's.

Appends and reads run on the event loop's thread and touch the page cache only; `sync`, `retain`, `open` and
`close` block on the disk and belong into worker threads, where they may run beside appends and reads. One
lock orders appends, rolls and removals, held for no system call that waits for the medium; another lets one
sync run at a time.

Invariants:

- The segments are contiguous: each begins where the one before ends. Readers see them through one reference
  that is replaced as a whole, so a read never meets a half-made change.
- `synced_offset` passes a record only after the segments before it, the directory entry of its segment and
  its own bytes were synced, in this order.
- A failed sync is final. The kernel may have dropped the pages it could not write, so trying again would
  report success for bytes that are gone.
"""

from __future__ import annotations

import threading
import time
import uuid
from bisect import bisect_left, bisect_right
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from liftbridge._log import SEGMENT_HEADER_BYTES, BatchBuilder, Segment
from liftbridge.log.errors import LogClosedError, LogFailedError
from liftbridge.log.files import index_path, segment_path, sync_data, sync_directory
from liftbridge.log.header import SegmentHeader
from liftbridge.log.index import write_index
from liftbridge.log.options import LogOptions
from liftbridge.log.recovery import Recovered, recover
from liftbridge.log.retention import expired
from liftbridge.log.segments import SealedSegment, create_segment, detached, open_segments

DEFAULT_READ_BYTES = 262144
_NEVER = (1 << 63) - 1  # no timestamp is above it


@dataclass(frozen=True)
class _View:
    """The segments at one moment."""

    sealed: tuple[SealedSegment, ...]
    active: Segment

    @property
    def start(self) -> int:
        return self.sealed[0].base_offset if self.sealed else self.active.base_offset

    def holder(self, offset: int) -> SealedSegment | None:
        """The sealed segment with this offset, which is not below `start`; None for the active one."""
        if offset >= self.active.base_offset:
            return None
        return self.sealed[bisect_right(self.sealed, offset, key=lambda segment: segment.base_offset) - 1]


class Log:
    """The commit log of one partition. Open one with `Log.open`.

    Attributes: `directory`, `options`, `failed` (why the log takes nothing any more, or None),
    `scanned_bytes` and `truncated_bytes` (what opening had to read, and to cut off as a torn tail).
    """

    def __init__(
        self, directory: Path, stream_id: uuid.UUID, partition: int, options: LogOptions, found: Recovered
    ) -> None:
        self.directory = directory
        self.options = options
        self.failed: Exception | None = None
        self.scanned_bytes = found.scanned_bytes
        self.truncated_bytes = found.truncated_bytes
        self._stream_id = stream_id
        self._partition = partition
        self._view = _View(tuple(found.sealed), found.active)
        self._sealed_bytes = sum(segment.size for segment in found.sealed)
        self._synced_offset = found.active.next_offset
        self._written_bytes = 0  # since opening
        self._synced_bytes = 0
        self._unsynced_seals: list[tuple[SealedSegment, Segment]] = []
        self._condemned: list[SealedSegment] = []
        self._closed = False
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()

    @classmethod
    def open(cls, directory: Path, *, stream_id: uuid.UUID, partition: int, options: LogOptions) -> Log:
        """Open the log in `directory`, creating it when it is missing; blocking.

        Everything found is on disk when this returns. Raises LogDamagedError, ForeignLogError or OSError.
        """
        return cls(directory, stream_id, partition, options, recover(directory, stream_id, partition))

    def __repr__(self) -> str:
        return f"<Log {self.directory} offsets {self.start_offset} to {self.next_offset}>"

    # ---- what is there ----

    @property
    def start_offset(self) -> int:
        """Offset of the oldest record; equal to `next_offset` when there is none."""
        return self._view.start

    @property
    def next_offset(self) -> int:
        """Offset the next record will get; all below it are in the page cache at least."""
        return self._view.active.next_offset

    @property
    def synced_offset(self) -> int:
        """All offsets below it are on disk."""
        return self._synced_offset

    @property
    def last_timestamp(self) -> int:
        """Timestamp of the last record ever appended (ns since the epoch), 0 for none; none may be older."""
        return self._view.active.last_timestamp

    @property
    def last_epoch(self) -> int:
        """Leader epoch of the last batch ever appended, 0 for none; none may be older."""
        return self._view.active.last_epoch

    @property
    def size_bytes(self) -> int:
        """Bytes of batches in the log."""
        return self._sealed_bytes + self._view.active.end - SEGMENT_HEADER_BYTES

    @property
    def unsynced_bytes(self) -> int:
        """Bytes appended since the last sync began."""
        return self._written_bytes - self._synced_bytes

    @property
    def needs_sync(self) -> bool:
        """Whether a new segment awaits its sync, whatever the sync policy says about records."""
        return bool(self._unsynced_seals)

    def _check_usable(self) -> None:
        if self.failed is not None:
            raise LogFailedError(
                f"{self.directory}: the log takes nothing since a write or an fsync failed ({self.failed}); "
                "check the disk, then restart the server"
            ) from self.failed
        if self._closed:
            raise LogClosedError(f"{self.directory}: the log is closed")

    # ---- appending ----

    def append(self, builder: BatchBuilder, epoch: int = 0) -> int:
        """Append the builder's records as one batch; return the offset of the first. Does not block.

        Rolls the segment first when it is full or too old. `epoch` is the leader's. Raises OSError when the
        file system refuses, with nothing appended and the log usable; LogFailedError when it is not;
        ValueError when the batch is empty, or older in time or epoch than the log.
        """
        with self._lock:
            self._check_usable()
            active = self._view.active
            if active.count and self._is_full(active, builder):
                active = self._roll(active)
            offset = active.next_offset
            try:
                active.append(builder, offset, epoch)
            except OSError as error:
                if active.failed:
                    self.failed = error
                    self._check_usable()
                raise
            self._written_bytes += builder.size
            return offset

    def _is_full(self, active: Segment, builder: BatchBuilder) -> bool:
        if active.end - SEGMENT_HEADER_BYTES + builder.size > self.options.segment_max_bytes:
            return True
        return self._is_old(active, builder.base_timestamp)

    def _is_old(self, active: Segment, now: int) -> bool:
        age = self.options.segment_max_age_ns
        return age > 0 and active.count > 0 and now - active.first_timestamp >= age

    def _roll(self, active: Segment) -> Segment:
        """Seal the active segment and begin the next; the lock is held."""
        base_offset = active.next_offset
        fresh = create_segment(
            segment_path(self.directory, base_offset),
            SegmentHeader(self._stream_id, self._partition, base_offset, time.time_ns()),
            last_timestamp=active.last_timestamp,
            last_epoch=active.last_epoch,
            last_crc=active.last_crc,
        )
        sealed = SealedSegment.of(active)
        self._unsynced_seals.append((sealed, active))
        self._sealed_bytes += sealed.size
        open_segments.keep(sealed, active)
        self._view = _View((*self._view.sealed, sealed), fresh)
        return fresh

    # ---- durability ----

    def sync(self) -> int:
        """Bring what has been appended so far to the disk and return the new `synced_offset`; blocking.

        May run beside appends and reads; what they append meanwhile waits for the next call. Raises
        LogFailedError when the disk fails; the log then takes nothing any more.
        """
        with self._sync_lock:
            with self._lock:
                if self._closed and self.failed is None:
                    return self._synced_offset
                self._check_usable()
                active = self._view.active
                target, written = active.next_offset, self._written_bytes
                seals = tuple(self._unsynced_seals)
            if target == self._synced_offset and not seals:
                return target
            self._sync_files(seals, active)
            with self._lock:
                del self._unsynced_seals[: len(seals)]
                self._synced_offset = target
                self._synced_bytes = written
            for _, segment in seals:
                with suppress(OSError):  # an index saves time at the next start, nothing else
                    write_index(segment, self._stream_id, self._partition)
            return target

    def _sync_files(self, seals: tuple[tuple[SealedSegment, Segment], ...], active: Segment) -> None:
        try:
            for _, segment in seals:
                sync_data(segment.fileno())
            if seals:
                sync_directory(self.directory)
            sync_data(active.fileno())
        except OSError as error:
            self.failed = error
            self._check_usable()

    def close(self) -> None:
        """Bring everything to the disk and close; blocking, and harmless when repeated.

        Leaves an index of the active segment, so that the next opening need not scan. Raises LogFailedError.
        """
        try:
            if self.failed is None:
                self.sync()
        finally:
            with self._sync_lock, self._lock:
                self._finish()

    def _finish(self) -> None:
        if self._closed:
            return
        view = self._view
        self._closed = True
        if self.failed is None and view.active.next_offset == self._synced_offset:
            with suppress(OSError):
                write_index(view.active, self._stream_id, self._partition)
        for sealed in view.sealed:
            open_segments.forget(sealed)
        # Readers hold the descriptor as long as they need it; the log itself no longer does.
        self._view = _View(view.sealed, detached(view.active))
        self._unsynced_seals.clear()

    # ---- reading ----

    def _open_holder(self, view: _View, offset: int, nowait: bool) -> Segment | None:
        """The open segment with this offset, or None when retention has removed it since `view` was taken."""
        if self._closed:
            raise LogClosedError(f"{self.directory}: the log is closed")
        sealed = view.holder(offset)
        if sealed is None:
            return view.active
        try:
            return open_segments.get(sealed, nowait=nowait)
        except FileNotFoundError:
            if self._view.start > offset:
                return None
            raise

    def read_frames(
        self,
        offset: int,
        limit: int,
        prefix: bytes,
        max_bytes: int = DEFAULT_READ_BYTES,
        nowait: bool = False,
    ) -> tuple[bytes, int]:
        """Return records from `offset` on and below `limit` as gRPC frames, and the offset to read on from.

        Arguments:
            offset: first offset wanted; below the oldest record it means that one.
            limit: first offset not wanted.
            prefix: encoded fields of Message that every frame gets (stream, partition).
            max_bytes: of output, about; at least one record is returned if there is one.
            nowait: raise BlockingIOError when this would wait for the disk; repeat the call in a worker
                thread.

        Without a record in the range the frames are empty. Raises CorruptBatchError, OSError, LogClosedError.
        """
        while True:
            view = self._view
            offset = max(offset, view.start)
            if offset >= min(limit, view.active.next_offset):
                return b"", offset
            segment = self._open_holder(view, offset, nowait)
            if segment is None:
                continue
            frames, following = segment.read_frames(offset, limit, prefix, max_bytes, nowait)
            if frames:
                return frames, following
            assert following > offset, "a read without records must move on"
            offset = following

    def read_frames_reverse(
        self,
        offset: int,
        floor: int,
        prefix: bytes,
        max_bytes: int = DEFAULT_READ_BYTES,
        nowait: bool = False,
    ) -> tuple[bytes, int]:
        """Return records from `offset` down to `floor`, newest first, and the offset to read on from.

        Otherwise as `read_frames`; when the offset returned is below `floor` or `start_offset`, nothing is
        left.
        """
        while True:
            view = self._view
            offset = min(offset, view.active.next_offset - 1)
            if offset < max(floor, view.start):
                return b"", offset
            segment = self._open_holder(view, offset, nowait)
            if segment is None:
                continue
            frames, following = segment.read_frames_reverse(offset, floor, prefix, max_bytes, nowait)
            if frames:
                return frames, following
            assert following < offset, "a read without records must move on"
            offset = following

    def offset_at_or_after(self, timestamp_ns: int) -> int:
        """Return the offset of the first record not older than a time (ns), else `next_offset`.

        May read the disk. Raises CorruptBatchError, OSError, LogClosedError.
        """
        while True:
            view = self._view
            sealed = view.sealed
            at = bisect_left(sealed, timestamp_ns, key=lambda segment: segment.summary.last_timestamp)
            offset = sealed[at].base_offset if at < len(sealed) else view.active.base_offset
            segment = self._open_holder(view, offset, nowait=False)
            if segment is None:
                continue
            found = segment.offset_at_or_after(timestamp_ns)
            return found if found >= 0 else segment.next_offset

    def offset_at_or_before(self, timestamp_ns: int) -> int:
        """Return the offset of the last record not newer than a time (ns), else -1.

        May read the disk. Raises as `offset_at_or_after`.
        """
        if timestamp_ns >= _NEVER:
            offset = self.next_offset - 1
        else:
            offset = self.offset_at_or_after(timestamp_ns + 1) - 1
        return offset if offset >= self.start_offset else -1

    # ---- retention ----

    def retain(self, now_ns: int, limit_offset: int) -> int:
        """Remove segments beyond the limits of the options and return how many; blocking.

        Also rolls the active segment when it is too old, so that an idle log's records expire in their turn.

        Arguments:
            now_ns: the time, ns since the epoch.
            limit_offset: nothing at or above this offset is removed.

        Raises OSError when a file cannot be removed (the next call tries again), LogFailedError,
        LogClosedError.
        """
        with self._lock:
            self._check_usable()
            if self._is_old(self._view.active, now_ns):
                self._roll(self._view.active)
        if self._unsynced_seals:
            self.sync()
        with self._lock:
            self._check_usable()
            victims = self._choose(now_ns, limit_offset)
            self._condemned += victims
            self._view = _View(self._view.sealed[len(victims) :], self._view.active)
            self._sealed_bytes -= sum(victim.size for victim in victims)
        self._remove_condemned()
        return len(victims)

    def _choose(self, now_ns: int, limit_offset: int) -> tuple[SealedSegment, ...]:
        view = self._view
        sealed = view.sealed
        count = expired(
            sealed, view.active.count, view.active.end - SEGMENT_HEADER_BYTES, self.options, now_ns
        )
        # Where the log begins must be on disk before what is in front of it goes.
        durable = self._unsynced_seals[0][0].base_offset if self._unsynced_seals else view.active.base_offset
        limit = min(limit_offset, durable)
        while count and sealed[count - 1].next_offset > limit:
            count -= 1
        return sealed[:count]

    def _remove_condemned(self) -> None:
        """Remove the files of segments nobody sees any more, oldest first so that no gap can remain."""
        with self._sync_lock:
            removed = 0
            try:
                for victim in self._condemned:
                    open_segments.forget(victim)
                    victim.path.unlink(missing_ok=True)
                    index_path(victim.path).unlink(missing_ok=True)
                    removed += 1
            finally:
                if removed:
                    del self._condemned[:removed]
                    sync_directory(self.directory)
