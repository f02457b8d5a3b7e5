"""The commit log of one partition: append, read, search by time, retention, and what is on disk.

A log is a directory of segments. The last one, the active segment, takes the appends; the others are sealed
and never change. `next_offset` is where the log goes on; every offset below `synced_offset` survives a loss
of power. Who waits for the second before acking, and who asks for it to move, is the sync policy's
business, not the log's.

Appends and reads run on the event loop's thread and touch the page cache only; when an idle log has given its
descriptor back (see `awake`), they open a file that was open before. `sync`, `retain`, `open` and `close`
block on the disk and belong into worker threads, where they may run beside appends and reads. One lock orders
appends, rolls and removals, held for no system call that waits for the medium; another lets one sync run at a
time.

Damage is local. What recovery, or a read, finds damaged is a hole in the offsets; reads in it raise
CorruptBatchError, and everything else goes on.

Invariants:

- The ranges of the segments are contiguous: each begins where the one before ends. Readers see them
  through one reference that is replaced as a whole, so a read never meets a half-made change.
- `synced_offset` passes a record only after the segments before it, the directory entry of its segment and
  its own bytes were synced, in this order.
- A failed sync is final. The kernel may have dropped the pages it could not write, so trying again would
  report success for bytes that are gone.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any

from liftbridge._log import (
    ATTRIBUTE_EXPIRY,
    SEGMENT_HEADER_BYTES,
    BatchBuilder,
    CorruptBatchError,
    ReceivedBatches,
    Segment,
)
from liftbridge.log.awake import awake_logs
from liftbridge.log.codecs import SegmentCodecs
from liftbridge.log.compaction import Compacted, Compaction
from liftbridge.log.epochs import epochs_of
from liftbridge.log.errors import LogClosedError, LogFailedError
from liftbridge.log.files import (
    index_path,
    leave_distrust,
    replace_file,
    segment_path,
    sync_data,
    sync_directory,
)
from liftbridge.log.header import SegmentHeader
from liftbridge.log.index import encode_index, remember
from liftbridge.log.keys import Keyring
from liftbridge.log.options import LogOptions
from liftbridge.log.recovery import Recovered, begin_encryption, recover
from liftbridge.log.retention import expired
from liftbridge.log.segments import (
    Before,
    Codecs,
    SealedSegment,
    attached,
    create_segment,
    detached,
    open_segments,
    scan_to,
)
from liftbridge.log.start import note_start
from liftbridge.log.swap import swap_steps
from liftbridge.log.throttle import Throttle
from liftbridge.log.truncation import Truncation, begin_anew

DEFAULT_READ_BYTES = 262144
# The active segment's index is written whenever so much more of it is on disk: no start scans more than that.
CHECKPOINT_BYTES = 64 << 20
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
    `scanned_bytes` and `truncated_bytes` (what opening had to read, and to cut off as a torn tail), `damage`
    (what opening found damaged).
    """

    def __init__(
        self,
        directory: Path,
        stream_id: uuid.UUID,
        partition: int,
        options: LogOptions,
        codecs: Codecs,
        found: Recovered,
    ) -> None:
        self.directory = directory
        self.options = options
        self.failed: Exception | None = None
        self.scanned_bytes = found.scanned_bytes
        self.truncated_bytes = found.truncated_bytes
        self.damage = tuple(found.damage)
        self._stream_id = stream_id
        self._partition = partition
        self._codecs = codecs
        self._view = _View(tuple(found.sealed), found.active)
        self._sealed_bytes = sum(segment.size for segment in found.sealed)
        self._sealed_attributes = 0  # of all sealed segments together, also of those that are gone
        for segment in found.sealed:
            self._sealed_attributes |= segment.summary.attributes
        self._noted_start = found.noted_start
        self._synced_offset = found.active.next_offset
        self._written_bytes = 0  # since opening
        self._synced_bytes = 0
        self._checkpoint = found.active.end  # where the index file of the active segment ends, about
        self._unsynced_seals: list[tuple[SealedSegment, Segment]] = []
        self._condemned: list[SealedSegment] = []
        self._expiries: dict[SealedSegment, int] = {}  # when the last record of a leading segment expires
        self._closed = False
        self._used = False  # since it was last asked
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        # Held while compaction moves files, so that nobody opens one of them under the name of another.
        self._swap_lock = threading.Lock()
        # One of retain, compact and truncate at a time; taken before the others.
        self._maintenance_lock = threading.Lock()
        found.active.preallocating(options.preallocate_bytes)
        found.active.synced_offset = self._synced_offset
        awake_logs.add(self)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        stream_id: uuid.UUID,
        partition: int,
        options: LogOptions,
        keyring: Keyring | None = None,
        power_lost: bool = False,
    ) -> Log:
        """Open the log in `directory`, creating it when it is missing; blocking.

        `keyring` has the master keys of what is encrypted. `power_lost` says that the machine may have
        stopped since the log was open last, so that what no sync had covered may be lost in part.
        Everything found is on disk when this returns; what is damaged is in `damage`. Raises
        LogDamagedError, ForeignLogError, MissingKeyError, LogError or OSError.
        """
        codecs = SegmentCodecs(stream_id, partition, options, keyring)
        found = recover(directory, stream_id, partition, codecs, power_lost=power_lost)
        if options.encryption:
            begin_encryption(found, stream_id, partition, codecs)
        return cls(directory, stream_id, partition, options, codecs, found)

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
    def epochs(self) -> tuple[tuple[int, int], ...]:
        """The leader epochs of the log as (epoch, first offset that can belong to it), oldest first."""
        view = self._view
        return epochs_of([*(each.summary.epochs for each in view.sealed), view.active.epochs], view.start)

    @property
    def may_expire(self) -> bool:
        """Whether a record of the log expires, or did: what is read of it is not good for ever."""
        return bool((self._sealed_attributes | self._view.active.attributes) & ATTRIBUTE_EXPIRY)

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

    # ---- the descriptor ----

    def take_used(self) -> bool:
        """Whether anything was appended, or read from the active segment, since the last call."""
        used, self._used = self._used, False
        return used

    def rest(self) -> bool:
        """Close the file of the active segment until it is needed, and return true. Does not block.

        False when that cannot be now: something waits for a sync, or another thread works on the log.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            dirty = self._unsynced_seals or self._written_bytes != self._synced_bytes
            if self.failed is not None or dirty:
                return False
            active = self._view.active
            if active.fileno() >= 0:
                assert not active.holes and active.end_offset < 0, "what takes appends is whole"
                with suppress(OSError):
                    active.trim()
                self._view = _View(self._view.sealed, detached(active))
            return True
        finally:
            self._lock.release()

    def _make_room(self) -> None:
        """If the log is at rest, see to it that it may wake; no lock is held."""
        if self._view.active.fileno() < 0:
            awake_logs.make_room()

    def _awake(self) -> Segment:
        """The active segment, with its file open; the lock is held."""
        self._used = True
        active = self._view.active
        if active.fileno() < 0:
            active = attached(active)
            active.preallocating(self.options.preallocate_bytes)
            self._view = _View(self._view.sealed, active)
            awake_logs.add(self)
        return active

    # ---- appending ----

    def append(self, builder: BatchBuilder, epoch: int = 0) -> int:
        """Append the builder's records as one batch; return the offset of the first. Does not block.

        Rolls the segment first when it is full or too old. `epoch` is the leader's. Raises OSError when the
        file system refuses, with nothing appended and the log usable; LogFailedError when it is not;
        ValueError when the batch is empty, or older in time or epoch than the log.
        """
        self._make_room()
        with self._lock:
            self._check_usable()
            active = self._awake()
            if active.count and self._is_full(active, builder.size, builder.base_timestamp):
                active = self._roll(active)
            offset = active.next_offset
            try:
                active.append(builder, offset, epoch)
            except OSError as error:
                self._note_failed_write(active, error)
                raise
            self._written_bytes += builder.size
            return offset

    def begin_epoch(self, epoch: int, now_ns: int) -> None:
        """Write that leader epoch `epoch` begins at `next_offset`: the first append of a leader. Does not
        block.

        It takes no offset and is never seen by readers. `now_ns` is the time. Raises as `append`; ValueError
        unless the epoch is newer than the log's last.
        """
        self._make_room()
        with self._lock:
            self._check_usable()
            if epoch <= self.last_epoch:
                raise ValueError(f"leader epoch {epoch} cannot begin, the log has had {self.last_epoch}")
            active = self._awake()
            before = active.end
            try:
                active.append_control(epoch, max(now_ns, active.last_timestamp))
            except OSError as error:
                self._note_failed_write(active, error)
                raise
            self._written_bytes += active.end - before

    def append_batches(self, received: ReceivedBatches, count: int) -> None:
        """Append the last `count` of the batches that have come from the leader's log, at the offsets that
        they have there. Does not block.

        Offsets without records between them, or in front of them, are noted as such. Raises as `append`; what
        was appended before an OSError stays.
        """
        self._make_room()
        with self._lock:
            self._check_usable()
            active = self._awake()
            at, stop = len(received) - count, len(received)
            assert at >= 0, (count, len(received))
            try:
                while at < stop:
                    active = self._room_for(active, received, at)
                    until = self._run_from(active, received, at)
                    before = active.end
                    active.append_received(received, at, until, self._codecs.plain())
                    self._written_bytes += active.end - before
                    at = until
            except OSError as error:
                self._note_failed_write(active, error)
                raise

    def _room_for(self, active: Segment, received: ReceivedBatches, at: int) -> Segment:
        """The segment that a batch goes into, with what is in front of the batch."""
        size, timestamp = received[at][3], received.base_timestamp(at)
        if active.count and self._is_full(active, size, timestamp):
            active = self._roll(active)
        gap_to = received.base_offset(at)
        if gap_to > active.next_offset:
            before = active.end
            active.append_gap(gap_to)
            self._written_bytes += active.end - before
        return active

    def _run_from(self, active: Segment, received: ReceivedBatches, at: int) -> int:
        """How far from a batch on they can be written at once: behind the last of them."""
        end, size = at + 1, received[at][3]
        while end < len(received) and received.base_offset(end) == received[end - 1][1]:
            size += received[end][3]
            if self._is_full(active, size, received.base_timestamp(end)):
                break
            end += 1
        return end

    def _note_failed_write(self, active: Segment, error: OSError) -> None:
        """Raise LogFailedError when what the write left could not be cut off; else the log stays usable."""
        if active.failed:
            self.failed = error
            self._check_usable()

    def _is_full(self, active: Segment, size: int, timestamp: int) -> bool:
        """Whether `size` bytes more, of records from that time on, belong into a new segment."""
        if active.end - SEGMENT_HEADER_BYTES + size > self.options.segment_max_bytes:
            return True
        return self._is_old(active, timestamp)

    def _is_old(self, active: Segment, now: int) -> bool:
        age = self.options.segment_max_age_ns
        return age > 0 and active.count > 0 and now - active.first_timestamp >= age

    def _roll(self, active: Segment) -> Segment:
        """Seal the active segment and begin the next; the lock is held."""
        base_offset = active.next_offset
        fresh = create_segment(
            segment_path(self.directory, base_offset),
            SegmentHeader(self._stream_id, self._partition, base_offset, time.time_ns()),
            self._codecs,
            Before.of(active),
        )
        fresh.preallocating(self.options.preallocate_bytes)
        fresh.synced_offset = self._synced_offset
        self._checkpoint = fresh.end
        sealed = SealedSegment.of(active, self._codecs)
        self._unsynced_seals.append((sealed, active))
        self._sealed_bytes += sealed.size
        self._sealed_attributes |= active.attributes
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
                index = b""
                if active.end - self._checkpoint >= CHECKPOINT_BYTES:
                    self._checkpoint = active.end
                    index = encode_index(active, self._stream_id, self._partition)
            if written == self._synced_bytes and not seals:
                return target
            self._sync_files(seals, active)
            with self._lock:
                del self._unsynced_seals[: len(seals)]
                self._synced_offset = self._view.active.synced_offset = target
                self._synced_bytes = written
            for _, segment in seals:
                remember(segment, self._stream_id, self._partition)
            if seals and self._noted_start is None:
                with suppress(OSError):
                    self._note_start()
            if index:
                with suppress(OSError):
                    replace_file(index_path(active.path), index)
            return target

    def _sync_files(self, seals: tuple[tuple[SealedSegment, Segment], ...], active: Segment) -> None:
        try:
            for _, segment in seals:
                segment.trim()
                sync_data(segment.fileno())
            if seals:
                sync_directory(self.directory)
            sync_data(active.fileno())
        except OSError as error:
            self.failed = error
            leave_distrust(self.directory)
            self._check_usable()

    def close(self) -> None:
        """Bring everything to the disk and close; blocking, and harmless when repeated.

        Leaves an index of the active segment, so that the next opening need not scan. Raises LogFailedError.
        """
        try:
            if self.failed is None:
                self._trim_active()
                self.sync()
        finally:
            with self._swap_lock, self._sync_lock, self._lock:
                self._finish()

    def _trim_active(self) -> None:
        with self._lock, suppress(OSError):  # zeros behind the data cost the next start a look at them
            self._view.active.trim()

    def _finish(self) -> None:
        if self._closed:
            return
        view = self._view
        self._closed = True
        if self.failed is None and view.active.next_offset == self._synced_offset:
            remember(view.active, self._stream_id, self._partition)
        for sealed in view.sealed:
            open_segments.forget(sealed)
        awake_logs.discard(self)
        # Readers hold the descriptor as long as they need it; the log itself no longer does.
        self._view = _View(view.sealed, detached(view.active))
        self._unsynced_seals.clear()

    # ---- reading ----

    def _open_holder(self, view: _View, offset: int, nowait: bool) -> Segment | None:
        """The open segment with this offset, or None when the view is not up to date any more."""
        if self._closed:
            raise LogClosedError(f"{self.directory}: the log is closed")
        sealed = view.holder(offset)
        if sealed is None:
            return self._open_active(view.active, nowait)
        with suppress(BlockingIOError):
            return open_segments.get(sealed, nowait=True)
        if nowait:
            raise BlockingIOError(f"{sealed.path} is not open")
        with self._swap_lock:
            if sealed not in self._view.sealed:
                return None  # there may be another file of this name by now
            try:
                return open_segments.get(sealed)
            except FileNotFoundError:
                if sealed not in self._view.sealed:
                    return None
                raise

    def _open_active(self, active: Segment, nowait: bool) -> Segment | None:
        self._used = True
        if active.fileno() >= 0:
            return active
        if nowait:
            raise BlockingIOError(f"{active.path} is not open")
        self._make_room()
        with self._lock:
            if not self._closed:
                self._awake()
        return None

    def _past_damage(
        self, view: _View, offset: int, segment: Segment, nowait: bool, read: methodcaller
    ) -> Any:
        """`read(segment)`; when it meets damage, again with a Segment that knows where the damage ends."""
        try:
            return read(segment)
        except CorruptBatchError:
            if segment.holes:
                raise
            if nowait:
                raise BlockingIOError(f"{segment.path} has to be scanned past damage") from None
            sealed = view.holder(offset)
            if sealed is not None:
                scanned = sealed.open(believe_index=False)
                open_segments.keep(sealed, scanned)
            else:
                scanned = self._scanned_active(segment)
            return read(scanned)

    def _scanned_active(self, active: Segment) -> Segment:
        end, following = active.end, active.next_offset
        scanned = Segment(os.dup(active.fileno()), active.path, active.base_offset, codec=active.codec)
        scan_to(scanned, end, following)
        return scanned

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

        The frames are empty when there is nothing in the range, and then the offset returned is `limit` or
        beyond the end; or when a long way without a record was gone, and the read is to go on there. Raises
        CorruptBatchError, which tells the offsets that are lost; OSError; LogClosedError.
        """
        while True:
            view = self._view
            offset = max(offset, view.start)
            if offset >= min(limit, view.active.next_offset):
                return b"", offset
            segment = self._open_holder(view, offset, nowait)
            if segment is None:
                continue
            read = methodcaller("read_frames", offset, limit, prefix, max_bytes, nowait)
            frames, following = self._past_damage(view, offset, segment, nowait, read)
            assert following > offset, "a read must move on"
            if frames or following < segment.next_offset:
                return frames, following
            offset = following

    def read_batches(
        self, offset: int, epoch: int, max_bytes: int = DEFAULT_READ_BYTES, nowait: bool = False
    ) -> tuple[bytes, list[tuple[int, int, int, int]]]:
        """Return whole batches for a replica, and what they are.

        Arguments:
            offset, epoch: where the replica's log ends and the leader epoch of its last batch. Of the batches
                without records at that offset it has those up to that epoch.
            max_bytes: of all of them, unless the first is larger.
            nowait: raise BlockingIOError when this would wait for the disk; repeat the call in a worker
                thread.

        Returns their bytes, and of each (first offset that it stands for, offset behind it, leader epoch,
        size): `ReceivedBatches` takes them up. Nothing at the end of the log. What is stored encrypted comes
        decoded, as its key is this log's. Raises CorruptBatchError when the first of them is damaged;
        OSError; LogClosedError.
        """
        place = offset
        while True:
            view = self._view
            place = max(place, view.start)
            segment = self._open_holder(view, place, nowait)
            if segment is None:
                continue
            payload, described = segment.read_batches(place, epoch, max_bytes, nowait)
            if described:
                # Whatever was in front of them is gone, by retention or compaction.
                described[0] = (offset, *described[0][1:])
                return payload, described
            if segment is view.active or view.holder(place) is None:
                return b"", []
            place = segment.next_offset

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
            read = methodcaller("read_frames_reverse", offset, floor, prefix, max_bytes, nowait)
            frames, following = self._past_damage(view, offset, segment, nowait, read)
            assert following < offset, "a read must move on"
            if frames:
                return frames, following
            offset = following

    def offset_at_or_after(self, timestamp_ns: int) -> int:
        """Return the offset of the first record not older than a time (ns), else `next_offset`.

        May read the disk. Raises CorruptBatchError, OSError, LogClosedError.
        """
        while True:
            view = self._view
            sealed = view.sealed
            at = bisect_left(sealed, timestamp_ns, key=lambda segment: segment.summary.last_timestamp)
            found = self._search(view, at, timestamp_ns)
            if found is not None:
                return found

    def _search(self, view: _View, at: int, timestamp_ns: int) -> int | None:
        """The first record since a time in the segments from number `at` on; None to try again."""
        search = methodcaller("offset_at_or_after", timestamp_ns)
        for number in range(at, len(view.sealed) + 1):
            active = number == len(view.sealed)
            offset = view.active.base_offset if active else view.sealed[number].base_offset
            segment = self._open_holder(view, offset, nowait=False)
            if segment is None:
                return None
            found: int = self._past_damage(view, offset, segment, False, search)
            if found >= 0:
                return found
        return view.active.next_offset

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
        with self._maintenance_lock:
            return self._retain(now_ns, limit_offset)

    def _retain(self, now_ns: int, limit_offset: int) -> int:
        with self._lock:
            self._check_usable()
            if self._is_old(self._view.active, now_ns):
                self._roll(self._awake())
        if self._unsynced_seals:
            self.sync()
        lapsed = self._lapsed(now_ns)
        with self._lock:
            self._check_usable()
            victims = self._choose(now_ns, limit_offset, lapsed)
            self._condemned += victims
            self._view = _View(self._view.sealed[len(victims) :], self._view.active)
            self._sealed_bytes -= sum(victim.size for victim in victims)
        self._remove_condemned()
        return len(victims)

    def _lapsed(self, now_ns: int) -> int:
        """How many of the leading segments hold nothing but records that have expired."""
        count = 0
        for sealed in self._view.sealed:
            if not sealed.summary.attributes & ATTRIBUTE_EXPIRY:
                break
            if sealed not in self._expiries:
                self._expiries[sealed] = self._last_expiry(sealed)
            if self._expiries[sealed] > now_ns:
                break
            count += 1
        return count

    def _last_expiry(self, sealed: SealedSegment) -> int:
        try:
            return open_segments.get(sealed).last_expiry()
        except CorruptBatchError:
            return _NEVER  # what cannot be read is not for retention to judge by its records

    def _choose(self, now_ns: int, limit_offset: int, lapsed: int) -> tuple[SealedSegment, ...]:
        view = self._view
        sealed = view.sealed
        count = expired(
            sealed, view.active.count, view.active.end - SEGMENT_HEADER_BYTES, self.options, now_ns
        )
        count = max(count, lapsed)
        # Where the log begins must be on disk before what is in front of it goes.
        durable = self._unsynced_seals[0][0].base_offset if self._unsynced_seals else view.active.base_offset
        limit = min(limit_offset, durable)
        while count and sealed[count - 1].next_offset > limit:
            count -= 1
        return sealed[:count]

    def _remove_condemned(self) -> None:
        """Remove the files of segments nobody sees any more, oldest first so that no gap can remain."""
        with self._sync_lock:
            if self._condemned:
                self._note_start()
            removed = 0
            try:
                for victim in self._condemned:
                    open_segments.forget(victim)
                    self._expiries.pop(victim, None)
                    victim.path.unlink(missing_ok=True)
                    index_path(victim.path).unlink(missing_ok=True)
                    sync_directory(self.directory)  # one by one, so that no file system leaves a gap
                    removed += 1
            finally:
                del self._condemned[:removed]

    def _note_start(self) -> None:
        """Note where the log begins; the lock of syncs is held, so that the note never goes back."""
        start = self.start_offset
        if self._noted_start != start:
            note_start(self.directory, start)
            self._noted_start = start

    # ---- truncation ----

    def truncate(self, offset: int) -> int:
        """Remove everything from `offset` on and return the new `next_offset`; blocking.

        That is lower than `offset` when it lies inside a batch: batches are replicated whole, so a follower
        that has part of one has none of it. What is left is on disk when this returns, and the log goes on in
        a new segment, so nothing that was removed can come back, nor a nonce be used twice. Refusing to go
        below the high watermark is the caller's. Raises OSError, CorruptBatchError, LogFailedError,
        LogClosedError.
        """
        with self._maintenance_lock, self._sync_lock:
            with self._lock:
                self._check_usable()
                offset = max(offset, self.start_offset)
                active = self._awake()
                if offset > self.next_offset or (
                    offset == self.next_offset
                    and active.end > SEGMENT_HEADER_BYTES
                    and active.boundary(offset)[0] == active.end
                ):
                    return self.next_offset
                try:
                    self._truncate(offset)
                except OSError as error:
                    # Some files are gone and others are not; only recovery may judge what that leaves.
                    self.failed = error
                    raise
                return self.next_offset

    def _truncate(self, offset: int) -> None:
        view = self._view
        truncation = Truncation(
            self.directory,
            self._stream_id,
            self._partition,
            self._codecs,
            view.sealed,
            view.active,
            self._unsynced_seals,
        )
        sealed, fresh = truncation.run(offset)
        self._go_on_with(tuple(sealed), fresh)

    def _go_on_with(self, sealed: tuple[SealedSegment, ...], fresh: Segment) -> None:
        """The log is these segments, all on disk; the lock is held."""
        fresh.preallocating(self.options.preallocate_bytes)
        fresh.synced_offset = fresh.base_offset
        self._checkpoint = fresh.end
        self._view = _View(sealed, fresh)
        self._sealed_bytes = sum(each.size for each in sealed)
        self._unsynced_seals.clear()
        self._synced_offset = fresh.base_offset
        self._synced_bytes = self._written_bytes

    def begin_at(self, offset: int) -> None:
        """Drop everything, and go on as an empty log whose first record will have this offset; blocking.

        What a crash leaves is the log, or a part of it from its beginning, or an empty one that begins at 0
        or at `offset`. Raises OSError, LogFailedError, LogClosedError.
        """
        self.truncate(self.start_offset)
        with self._maintenance_lock, self._sync_lock:
            with self._lock:
                self._check_usable()
                try:
                    fresh = begin_anew(
                        self.directory,
                        self._stream_id,
                        self._partition,
                        self._codecs,
                        [*(each.path for each in self._view.sealed), self._view.active.path],
                        offset,
                    )
                except OSError as error:
                    self.failed = error
                    raise
                self._go_on_with((), fresh)
                self._noted_start = None
                self._expiries.clear()

    # ---- compaction ----

    def compact(self, now_ns: int, limit_offset: int, throttle: Throttle) -> Compacted:
        """Compact by key if the options say that it is worth it, and return what was done; blocking.

        Reads and appends go on meanwhile; retention and truncation wait. Only sealed segments are compacted.

        Arguments:
            now_ns: the time, ns since the epoch.
            limit_offset: nothing at or above this offset is removed: one more than the high watermark.
            throttle: the rate to read and write at; stopping it ends this with CleaningStoppedError.

        Raises CleaningStoppedError; OSError when the disk is full or fails, with the log usable, and as it
        was or compacted in part; LogFailedError, LogClosedError.
        """
        with self._maintenance_lock:
            if self._unsynced_seals:
                self.sync()
            with self._sync_lock, self._lock:  # so nobody is writing an index of one of these segments
                self._check_usable()
                durable = len(self._view.sealed) - len(self._unsynced_seals)
                sealed = self._view.sealed[:durable]
            return Compaction(
                directory=self.directory,
                stream_id=self._stream_id,
                partition=self._partition,
                options=self.options,
                codecs=self._codecs,
                sealed=sealed,
                throttle=throttle,
                check_usable=self._check_usable,
                offset_at_or_after=self.offset_at_or_after,
                replace=self._replace,
            ).run(now_ns, limit_offset)

    def _replace(self, old: Sequence[SealedSegment], new: SealedSegment, opened: Segment) -> None:
        """Let `new` take the place of the neighbours `old`, on disk and for readers."""
        with self._swap_lock:
            self._check_usable()
            try:
                for step in swap_steps(new.path, new.next_offset):
                    step()
            except OSError as error:
                # Some files may be gone and the new one not in its place; only recovery may judge that.
                self.failed = error
                self._check_usable()
            with self._lock:
                sealed = self._view.sealed
                at = sealed.index(old[0])
                self._view = _View((*sealed[:at], new, *sealed[at + len(old) :]), self._view.active)
                self._sealed_bytes += new.size - sum(each.size for each in old)
            open_segments.keep(new, opened)
            for each in old:
                open_segments.forget(each)
                self._expiries.pop(each, None)
