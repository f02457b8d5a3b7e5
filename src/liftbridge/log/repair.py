"""Accepting that what is damaged is lost: an operator's decision, never the server's.

A damaged log is served around its holes, and every read of a hole is an error. That stays so until somebody
says that the lost offsets are to be passed over like offsets that compaction has removed. Then each damaged
segment is written anew as a sparse one, with everything that is good in it, byte for byte; its header says
which range of offsets it answers for. The damaged file is kept beside it as `<name>.damaged`, which no server
looks at.

Invariants: no good record is lost; a crash in between leaves the old file or the new one, and a repetition
finishes the work.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from liftbridge._log import SEGMENT_HEADER_BYTES, Segment
from liftbridge.log.files import pieces, replace_file, sync_directory
from liftbridge.log.header import KEY_SLOTS, SegmentHeader
from liftbridge.log.recovery import Damage, recover
from liftbridge.log.segments import Codecs, SealedSegment

DAMAGED_SUFFIX = ".damaged"


@dataclass(frozen=True)
class Repaired:
    """A segment that was written anew: its file, where the damaged one is kept, and what was given up."""

    path: Path
    kept: Path
    damage: tuple[Damage, ...]


def repair(directory: Path, stream_id: uuid.UUID, partition: int, codecs: Codecs) -> list[Repaired]:
    """Give up what is damaged in the log in `directory`, which no server may have open; blocking.

    The whole log is read. Returns what was done, nothing for an undamaged log. Raises as `recover`, and
    OSError when there is no room for the new files.
    """
    found = recover(directory, stream_id, partition, codecs, deep=True)
    repaired = []
    for sealed in found.sealed:
        if sealed.damaged:
            damage = tuple(each for each in found.damage if each.path == sealed.path)
            kept = _write_anew(sealed, stream_id, partition)
            repaired.append(Repaired(sealed.path, kept, damage))
    return repaired


def _write_anew(sealed: SealedSegment, stream_id: uuid.UUID, partition: int) -> Path:
    """Write what is good in a segment to a sparse one of the same name; returns where the old file is."""
    segment = sealed.open(believe_index=False)
    slots = os.pread(segment.fileno(), SEGMENT_HEADER_BYTES, 0)[KEY_SLOTS:]
    header = SegmentHeader(stream_id, partition, sealed.base_offset, time.time_ns(), sealed.next_offset)
    kept = sealed.path.with_name(sealed.path.name + DAMAGED_SUFFIX)
    kept.unlink(missing_ok=True)
    os.link(sealed.path, kept)
    sync_directory(sealed.path.parent)
    stretches = (pieces(segment.fileno(), start, stop) for start, stop in _good_stretches(segment))
    replace_file(sealed.path, chain([header.encode(slots)], chain.from_iterable(stretches)))
    return kept


def _good_stretches(segment: Segment) -> Iterator[tuple[int, int]]:
    """The parts of the file between its holes, as positions."""
    start = SEGMENT_HEADER_BYTES
    for _, _, position, behind, _ in segment.holes:
        if start < position:
            yield start, position
        start = max(start, behind)
    if start < segment.end:
        yield start, segment.end
