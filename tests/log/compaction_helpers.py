"""What the tests of compaction share: files decoded by the letter of the format, and a log with keys."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from log_helpers import SEGMENT_HEADER, STREAM, segments

from liftbridge.log import BatchBuilder, Compacted, Log, LogOptions, Throttle
from liftbridge.log.header import SegmentHeader

_BATCH = struct.Struct("<IIIHHqIIQqqqihHII")
_RECORD = struct.Struct("<IIHHHH")
CONTROL, TOMBSTONES, EXPIRY = 16, 32, 64
UNTHROTTLED = Throttle()
HOUR = 3600 * 10**9


@dataclass(frozen=True)
class Entry:
    """A record as it is published; `expiry` in ns, 0 for never."""

    key: bytes | None
    value: bytes | None
    expiry: int = 0


@dataclass(frozen=True)
class Stored:
    """A record as it lies in a file: everything that compaction must not change."""

    epoch: int
    raw: bytes


@dataclass
class StoredBatch:
    base_offset: int
    last_delta: int
    epoch: int
    attributes: int
    count: int
    base_timestamp: int
    max_timestamp: int
    prev_crc: int
    records: dict[int, Stored]


@dataclass
class StoredSegment:
    base_offset: int
    end_offset: int  # -1 for a segment that is not sparse
    batches: list[StoredBatch]


def decode_batches(content: bytes) -> list[StoredBatch]:
    batches, at = [], 0
    while at < len(content):
        (
            _, length, _, attributes, _, base, last_delta, count, epoch, first, last, _, _, _, _, prev, _,
        ) = _BATCH.unpack_from(content, at)  # fmt: skip
        records, record_at = {}, at + _BATCH.size
        for _ in range(count):
            size, delta, *_ = _RECORD.unpack_from(content, record_at)
            records[base + delta] = Stored(epoch, content[record_at : record_at + size])
            record_at += size
        assert record_at == at + length
        batches.append(StoredBatch(base, last_delta, epoch, attributes, count, first, last, prev, records))
        at += length
    return batches


def decode_segment(path: Path) -> StoredSegment:
    content = path.read_bytes()
    header = SegmentHeader.decode(content[:SEGMENT_HEADER])
    assert header is not None
    return StoredSegment(header.base_offset, header.end_offset, decode_batches(content[SEGMENT_HEADER:]))


def stored_segments(directory: Path) -> list[StoredSegment]:
    return [decode_segment(path) for path in segments(directory)]


def stored(directory: Path) -> dict[int, Stored]:
    """Every record in the files of a log, those that have expired included."""
    return {
        offset: record
        for segment in stored_segments(directory)
        for each in segment.batches
        for offset, record in each.records.items()
    }


def entries(records: Iterable[Entry], now: int) -> BatchBuilder:
    """A batch of records that are a nanosecond apart, the first of them `now`."""
    builder = BatchBuilder()
    for n, record in enumerate(records):
        builder.add_record(
            key=record.key, value=record.value, subject=b"orders", timestamp=now + n, expiry=record.expiry
        )
    return builder


def keyed(log: Log, *records: tuple[bytes | None, bytes | None], epoch: int = 0) -> int:
    """Append (key, value) pairs as one batch, a nanosecond apart; return the first offset."""
    return log.append(entries([Entry(*each) for each in records], log.last_timestamp + 1), epoch)


def compact(log: Log, now_ns: int = HOUR, limit_offset: int | None = None) -> Compacted:
    return log.compact(now_ns, log.next_offset if limit_offset is None else limit_offset, UNTHROTTLED)


def open_compacted(directory: Path, **options: float) -> Log:
    return Log.open(directory, stream_id=STREAM, partition=3, options=LogOptions(compact=True, **options))
