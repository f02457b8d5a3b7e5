"""Compaction by key: of every key the last record remains, and what nobody needs any more goes.

A run looks at the sealed segments of one log. The part up to the clean offset was compacted before: no key
has two records there. The part behind it, the dirty one, ends at the high watermark, at the active segment,
at records that are too young, or where the map of keys is full; then a later run does the rest. The run reads
the dirty part to learn the last offset of every key in it; then all segments up to its end, to learn
what would remain of each; and then writes those anew that lose something, or that fit together into one file.

Keys are compared by 128 bits of hashes (`_compact.h`). Records without a key, or with an empty one, stay.
A record with a key and without a value is a tombstone: it deletes its key, and is kept for
`tombstone_retention_ns` after it was first seen clean, so that whoever reads along learns of the deletion.
A record that has expired goes, and so do older ones of its key, or they would come back to life.

Offset, epoch, timestamp and bytes of what remains are what they were: records are copied as they are, in a
batch with the old one's offsets and epoch. An empty batch vanishes, but the first of an epoch leaves a
control batch, so nobody forgets where the epoch began. Bodies that are compressed or encrypted are opened
with their segment's codec and sealed with that of the new one.

Invariants:

- Nothing at or above the limit is removed, and below it no last record of a key, unless it is a tombstone
  or has expired. The active segment is not touched.
- Segments are replaced in the order of their offsets, each durably before the next (`log/swap.py`). So no
  crash leaves an older record of a key when the newer one, which has expired, is gone already.
- A damaged segment is left alone, and what may depend on it stays: no tombstone and no expired record behind
  it goes, for there may be older records of its key in the damage.
- Before a new file takes the place of old ones, every checksum in it was verified.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from liftbridge._log import (
    CompactionKeys,
    CompactionOutput,
    CompactionWalk,
    CorruptBatchError,
    Segment,
)
from liftbridge.log.compaction_state import CleanPoint, CleanState, read_state, write_state
from liftbridge.log.errors import LogClosedError
from liftbridge.log.files import FILE_MODE, segment_path, sync_data, write_all
from liftbridge.log.header import SegmentHeader
from liftbridge.log.index import remember
from liftbridge.log.options import LogOptions
from liftbridge.log.segments import Before, Codecs, SealedSegment
from liftbridge.log.swap import cleaned_path
from liftbridge.log.throttle import Throttle

_MAX_RANGE = (1 << 32) - 1  # offsets in a segment; its index counts them in 32 bits
# A new file is synced whenever so much was written: one long sync at its end would hold up those of all logs.
_SYNC_BYTES = 16 << 20


@dataclass(frozen=True)
class Compacted:
    """What a run did.

    Arguments:
        bytes_read, bytes_written: of batches; what was read three times counts three times.
        records_removed: how many records are gone.
        segments_before, segments_after: sealed segments in the log.
        clean_offset: below it no key has two records.
    """

    bytes_read: int
    bytes_written: int
    records_removed: int
    segments_before: int
    segments_after: int
    clean_offset: int


@dataclass(frozen=True)
class _Measured:
    """A segment, what it follows, and what would remain of it; it is not `readable` where there is damage."""

    sealed: SealedSegment
    before: Before
    bytes: int
    removed: int = 0
    tombstones: int = 0
    readable: bool = True


@dataclass
class Compaction:
    """One run over a log, whose segments nobody else replaces or removes meanwhile.

    Arguments:
        directory, stream_id, partition, options, codecs: those of the log.
        sealed: its sealed segments, from the first on, all of them on disk.
        throttle: is told of every byte read and written.
        check_usable: raises LogError when the log was closed or has failed.
        offset_at_or_after: finds the first offset that is not older than a time (ns since the epoch).
        replace: moves a `.cleaned` file into its place, and lets readers see its segment instead of the old
        ones.
    """

    directory: Path
    stream_id: uuid.UUID
    partition: int
    options: LogOptions
    codecs: Codecs
    sealed: Sequence[SealedSegment]
    throttle: Throttle
    check_usable: Callable[[], None]
    offset_at_or_after: Callable[[int], int]
    replace: Callable[[Sequence[SealedSegment], SealedSegment, Segment], None]
    bytes_read: int = 0
    bytes_written: int = 0

    def run(self, now_ns: int, limit_offset: int) -> Compacted:
        """Compact if it is worth it; block until that is done.

        Arguments:
            now_ns: the time, ns since the epoch.
            limit_offset: nothing at or above it is removed.

        Raises CleaningStoppedError; OSError when the disk is full or fails, with the log as it was or
        compacted in part; LogError when it was closed or has failed.
        """
        since_ns = now_ns - self.options.tombstone_retention_ns
        state = read_state(self.directory)
        clean = self._clean_offset(state)
        limit = self._limit(now_ns, limit_offset)
        tombstones_due = bool(self.sealed) and state.has_tombstones(since_ns)
        if not self.options.compact or not (tombstones_due or self._is_dirty(clean, limit, now_ns)):
            return self._result(clean, 0, 0)
        keys, limit = self._note_keys(clean, limit)
        if limit <= clean:
            if not tombstones_due:
                return self._result(clean, 0, 0)  # damage is in the way
            limit = clean
        measured = self._measure(keys, clean, limit, state.tombstones_below(since_ns), now_ns)
        removed = merged = 0
        for group in self._groups(measured):
            self._rewrite(group, keys, now_ns)
            removed += sum(each.removed for each in group)
            merged += len(group) - 1
        unread = [each.sealed for each in measured if not each.readable and each.sealed.next_offset > clean]
        reached = max(clean, min([limit, *(sealed.base_offset for sealed in unread)]))
        point = CleanPoint(reached, now_ns, sum(each.tombstones for each in measured))
        write_state(self.directory, state.after(point, since_ns))
        return self._result(reached, removed, merged)

    def _result(self, clean: int, removed: int, merged: int) -> Compacted:
        count = len(self.sealed)
        return Compacted(self.bytes_read, self.bytes_written, removed, count, count - merged, clean)

    def _spend(self, read: int, written: int = 0) -> None:
        """Account for a piece of work, and wait for the next one to be allowed."""
        self.bytes_read += read
        self.bytes_written += written
        self.throttle.take(read + written)
        self.check_usable()

    # ---- whether ----

    def _clean_offset(self, state: CleanState) -> int:
        """The clean offset, among those of the segments: retention may have passed it."""
        if not self.sealed:
            return state.offset
        return min(max(state.offset, self.sealed[0].base_offset), self.sealed[-1].next_offset)

    def _limit(self, now_ns: int, limit_offset: int) -> int:
        """Where the dirty part ends."""
        limit = min(limit_offset, self.sealed[-1].next_offset) if self.sealed else 0
        if lag := self.options.compact_min_lag_ns:
            limit = min(limit, self.offset_at_or_after(now_ns - lag + 1))
        return limit

    def _is_dirty(self, clean: int, limit: int, now_ns: int) -> bool:
        """Whether the dirty part is large enough, or old enough."""
        dirty = self._bytes_between(clean, limit)
        if not dirty:
            return False
        total = dirty + self._bytes_between(self.sealed[0].base_offset, clean)
        if dirty >= self.options.compact_min_dirty_ratio * total:
            return True
        lag = self.options.compact_max_lag_ns
        return lag > 0 and self.offset_at_or_after(now_ns - lag + 1) > clean

    def _bytes_between(self, first: int, limit: int) -> int:
        """Bytes of batches with these offsets; of a segment in part, as many as its share of the offsets."""
        total = 0
        for sealed in self.sealed:
            part = min(limit, sealed.next_offset) - max(first, sealed.base_offset)
            if part > 0:
                total += sealed.size * part // (sealed.next_offset - sealed.base_offset)
        return total

    # ---- what ----

    def _note_keys(self, clean: int, limit: int) -> tuple[CompactionKeys, int]:
        """Return the keys of the dirty part, and the offset up to which they are known."""
        dirty = [
            each for each in self.sealed if each.next_offset > clean and each.base_offset < limit > clean
        ]
        records = sum(each.summary.count for each in dirty)
        keys = CompactionKeys(self.options.compact_memory_bytes, records, os.urandom(16))
        for sealed in dirty:
            segment = sealed.open()
            known = min(limit, segment.holes[0][0]) if segment.holes else limit
            walk = CompactionWalk(segment, 0, clean)
            try:
                while not walk.done:
                    self._spend(walk.note(keys, clean, known))
            except CorruptBatchError:
                # The map may know of keys in the damage; a new one ends in front of it.
                return self._note_keys(clean, max(walk.next_offset, clean))
            if walk.stopped >= 0 or segment.holes:
                return keys, walk.stopped if walk.stopped >= 0 else known
        return keys, limit

    def _measure(
        self, keys: CompactionKeys, clean: int, limit: int, tombstones_below: int, now_ns: int
    ) -> list[_Measured]:
        """Set the rules for what remains, and return what that is of every segment that the limit reaches."""
        measured = []
        before = Before()
        undamaged = limit
        for sealed in self.sealed:
            if sealed.base_offset >= limit:
                break
            keys.decide(
                limit=limit,
                tombstones_below=min(tombstones_below, undamaged),
                expired_below=undamaged,
                now=now_ns,
                counted_from=clean,
            )
            found = self._measure_one(keys, sealed, before)
            if not found.readable:
                undamaged = min(undamaged, sealed.base_offset)
            measured.append(found)
            before = Before.of(sealed.summary)
        return measured

    def _measure_one(self, keys: CompactionKeys, sealed: SealedSegment, before: Before) -> _Measured:
        segment = sealed.open()
        if segment.holes:
            return _Measured(sealed, before, sealed.size, readable=False)
        walk = CompactionWalk(segment, before.last_epoch)
        try:
            while not walk.done:
                self._spend(walk.measure(keys))
        except CorruptBatchError:
            return _Measured(sealed, before, sealed.size, readable=False)
        return _Measured(sealed, before, walk.kept_bytes, walk.removed, walk.kept_tombstones)

    def _groups(self, measured: Sequence[_Measured]) -> Iterator[Sequence[_Measured]]:
        """Yield neighbours that become one segment, and segments that lose something; the others stay.

        A segment that loses nothing and is at least half full is no one's neighbour: it would be written
        again and again as new ones come.
        """
        group: list[_Measured] = []
        for each in measured:
            settled = not each.readable or (
                not each.removed and 2 * each.bytes >= self.options.segment_max_bytes
            )
            if group and (settled or not self._fits(group, each)):
                yield from self._worthwhile(group)
                group = []
            if not settled:
                group.append(each)
        yield from self._worthwhile(group)

    def _fits(self, group: Sequence[_Measured], more: _Measured) -> bool:
        size = sum(each.bytes for each in group) + more.bytes
        width = more.sealed.next_offset - group[0].sealed.base_offset
        return size <= self.options.segment_max_bytes and width <= _MAX_RANGE

    def _worthwhile(self, group: Sequence[_Measured]) -> Iterator[Sequence[_Measured]]:
        if len(group) > 1 or (group and group[0].removed):
            yield group

    # ---- doing it ----

    def _rewrite(self, group: Sequence[_Measured], keys: CompactionKeys, now_ns: int) -> None:
        """Write what remains of neighbours into one file, and put it in their place."""
        path = segment_path(self.directory, group[0].sealed.base_offset)
        cleaned = cleaned_path(path)
        cleaned.unlink(missing_ok=True)
        try:
            segment = self._write(path, cleaned, group, keys, now_ns)
            sealed = SealedSegment.of(segment, self.codecs)
            self.replace([each.sealed for each in group], sealed, segment)
        except LogClosedError:
            raise  # whoever opens the log again deletes the file, and may be writing another of the same name
        except BaseException:
            with suppress(OSError):
                cleaned.unlink(missing_ok=True)
            raise
        remember(segment, self.stream_id, self.partition)

    def _write(
        self, path: Path, cleaned: Path, group: Sequence[_Measured], keys: CompactionKeys, now_ns: int
    ) -> Segment:
        """Write and sync the file `cleaned`, and return it as the segment that `path` will be."""
        base_offset, end_offset = group[0].sealed.base_offset, group[-1].sealed.next_offset
        codec, key_slots = self.codecs.fresh()
        fd = os.open(cleaned, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        segment = Segment(fd, path, base_offset, end_offset=end_offset, codec=codec, **vars(group[0].before))
        header = SegmentHeader(self.stream_id, self.partition, base_offset, now_ns, end_offset)
        write_all(fd, header.encode(key_slots), 0)
        output = CompactionOutput(fd, cleaned, codec)
        synced = output.end
        for each in group:
            walk = CompactionWalk(each.sealed.open(), each.before.last_epoch)
            while not walk.done:
                end = output.end
                read = walk.copy(keys, output)
                self._spend(read, output.end - end)
                if output.end - synced >= _SYNC_BYTES:
                    output.flush()
                    sync_data(fd)
                    synced = output.end
        output.flush()
        reason = segment.scan(output.end)
        wanted = sum(each.sealed.summary.count - each.removed for each in group)
        if reason or segment.end != output.end or segment.count != wanted:
            problem = f"it does not read back as it was written ({reason or segment})"
            raise OSError(errno.EIO, problem, str(cleaned))
        sync_data(fd)
        return segment
