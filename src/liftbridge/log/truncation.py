"""Cutting a log off at an offset, so that after any crash the old or the new end is found.

What stays is brought to the disk first. Then the files behind the cut go, the newest first, and the new
active segment, which begins where the log goes on, is made; its name says from then on that all before it
was there. Last the file with the cut is cut off. A start that finds the new segment empty and the file
before it longer than that knows an unfinished cut, and finishes it (`recovery`).

Invariants:

- At each moment there is a file whose name tells where the log goes on: no offset is used twice because a
  log was forgotten. So the file whose place the new segment takes is replaced, not removed.
- An index file goes before what it tells of: else it would be a witness of a loss.
- The log goes on in a new segment. So nothing that was removed can come back behind new records, and no
  nonce of encryption is used twice.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from liftbridge._log import Segment
from liftbridge.log.compaction_state import truncate_state
from liftbridge.log.files import index_path, sync_data, sync_directory
from liftbridge.log.header import SegmentHeader
from liftbridge.log.index import remember
from liftbridge.log.segments import (
    Before,
    Codecs,
    SealedSegment,
    cut_segment,
    open_segment,
    open_segments,
    scan_to,
    write_segment,
)
from liftbridge.log.start import START_NAME


@dataclass(frozen=True)
class Truncation:
    """What is to be cut off: the log in `directory` with its segments.

    `unsynced` are those of `sealed` whose sync is still to come, in their open form.
    """

    directory: Path
    stream_id: uuid.UUID
    partition: int
    codecs: Codecs
    sealed: Sequence[SealedSegment]
    active: Segment
    unsynced: Sequence[tuple[SealedSegment, Segment]]

    def run(self, offset: int) -> tuple[list[SealedSegment], Segment]:
        """Remove everything from `offset` on, or from the start of the batch that it lies in; blocking.

        Returns the sealed segments that are left and the new active one, all of it on disk. Raises OSError,
        after which only recovery may judge what is there; CorruptBatchError.
        """
        files = [*self.sealed, SealedSegment.of(self.active, self.codecs)]
        holder = next(each for each in reversed(files) if each.base_offset <= offset)
        truncate_state(self.directory, holder.base_offset)
        index_path(self.active.path).unlink(missing_ok=True)
        count, position, start = self._find_cut(files, offset)
        self._sync(files[:count])
        for each in reversed(files[count:]):
            self._drop(each, keep_file=each.base_offset == start)
        files = files[:count]
        path = write_segment(
            self.directory, SegmentHeader(self.stream_id, self.partition, start, time.time_ns()), self.codecs
        )
        if files:
            files[-1] = self._cut(files[-1], position, start)
        fresh, _ = open_segment(path, os.O_RDWR, self.codecs, files[-1].behind if files else Before())
        return files, fresh

    def _find_cut(self, files: list[SealedSegment], offset: int) -> tuple[int, int, int]:
        """How many of the files stay, the position to cut the last of them at, and the new `next_offset`."""
        start = offset
        for count in range(len(files), 0, -1):
            last = files[count - 1]
            if last.base_offset >= start and count > 1:
                continue
            holder = self.active if last.base_offset == self.active.base_offset else last.open()
            position, start = holder.boundary(start)
            if start > last.base_offset:
                return count, position, start
        return 0, 0, start

    def _sync(self, staying: list[SealedSegment]) -> None:
        for each, segment in self.unsynced:
            if each in staying:
                segment.trim()
                sync_data(segment.fileno())
                remember(segment, self.stream_id, self.partition)
        if len(staying) > len(self.sealed):
            sync_data(self.active.fileno())

    def _drop(self, sealed: SealedSegment, *, keep_file: bool) -> None:
        open_segments.forget(sealed)
        index_path(sealed.path).unlink(missing_ok=True)
        sync_directory(self.directory)
        if not keep_file:
            sealed.path.unlink()
            sync_directory(self.directory)

    def _cut(self, sealed: SealedSegment, position: int, following: int) -> SealedSegment:
        """Cut a segment off at a byte that is the offset `following`."""
        open_segments.forget(sealed)
        index_path(sealed.path).unlink(missing_ok=True)
        sync_directory(self.directory)
        cut_segment(sealed.path, position, following)
        segment, _ = open_segment(sealed.path, os.O_RDWR, self.codecs, Before())
        scan_to(segment, position, following, "what was there is missing")
        if not segment.holes:
            remember(segment, self.stream_id, self.partition)
        return SealedSegment.of(segment, self.codecs)


def begin_anew(
    directory: Path, stream_id: uuid.UUID, partition: int, codecs: Codecs, old: Sequence[Path], offset: int
) -> Segment:
    """Have the log in `directory`, of which nothing is left but the files `old` without records, begin at an
    offset; blocking.

    Between the old files and the new one there is none, so that a start in between finds an empty log, and
    never the one beside the other: that would look like a loss. Returns the new active segment, which is on
    disk. Raises OSError, after which only recovery may judge what is there.
    """
    truncate_state(directory, 0)
    (directory / START_NAME).unlink(missing_ok=True)
    for path in old:
        index_path(path).unlink(missing_ok=True)
    sync_directory(directory)
    for path in old:
        path.unlink()
    sync_directory(directory)
    header = SegmentHeader(stream_id, partition, offset, time.time_ns())
    fresh, _ = open_segment(write_segment(directory, header, codecs), os.O_RDWR, codecs, Before())
    return fresh
