"""Index files: what the core knows about a whole segment, kept so that a start need not scan it.

`<base offset>.index`, little-endian:

    0    8s  magic, "LBINDEX1"
    8   16s  UUID of the stream
   24   i64  base offset            72  u64  number of records
   32   i64  next offset            80  i64  timestamp of the first record
   40   u64  bytes of the segment   88  i64  timestamp of the last record
   48   u64  position of the        96  u64  leader epoch of the last batch
             last batch            104  i64  CRC of the last batch, -1 for none
   56   u32  partition             112  u64  bytes of the entries
   60   u32  reserved, zero        120  u32  CRC-32C of the fields above
   64   u64  reserved, zero
  124        entries, as the core holds them: u32 offset minus base offset, u32 position,
             i64 largest timestamp before
  end   16s  XXH3-128 of everything before

Invariant: an index never decides what data exists. It is written only when the segment is on disk, and
stands in for a scan only while it describes a file of exactly the size found. Whatever is wrong with it, it
is ignored and the segment is scanned. As the bytes of a segment never change, it stays a witness that so many
of them were on disk once; a log that has lost some of those is damaged, however it came about.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from xxhash import xxh3_128_digest

from liftbridge._log import Segment, crc32c
from liftbridge.log.files import index_path, replace_file

_MAGIC = b"LBINDEX1"
_FIELDS = struct.Struct("<8s16sqqQQIIQQqqQqQ")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Summary:
    """What is known about a segment without its index entries; the names are those of the core's Segment."""

    next_offset: int
    end: int
    last_position: int
    count: int
    first_timestamp: int
    last_timestamp: int
    last_epoch: int
    last_crc: int

    @classmethod
    def of(cls, segment: Segment) -> Summary:
        """Return the summary of a segment as it is now."""
        return cls(**{name: getattr(segment, name) for name in cls.__dataclass_fields__})


def write_index(segment: Segment, stream_id: uuid.UUID, partition: int) -> None:
    """Write the index file of a segment whose data is on disk. Raises OSError; then the old file stands."""
    entries = segment.index_bytes()
    fields = _FIELDS.pack(
        _MAGIC,
        stream_id.bytes,
        segment.base_offset,
        segment.next_offset,
        segment.end,
        segment.last_position,
        partition,
        0,
        0,
        segment.count,
        segment.first_timestamp,
        segment.last_timestamp,
        segment.last_epoch,
        segment.last_crc,
        len(entries),
    )
    content = fields + _CHECKSUM.pack(crc32c(fields)) + entries
    replace_file(index_path(segment.path), content + xxh3_128_digest(content))


def read_summary(path: Path, stream_id: uuid.UUID, partition: int, base_offset: int) -> Summary | None:
    """Return what the index file at `path` says about the segment, or None when it cannot be believed."""
    try:
        with path.open("rb") as file:
            return _decode_summary(file.read(_HEADER_BYTES), stream_id, partition, base_offset)
    except OSError:
        return None


def _decode_summary(header: bytes, stream_id: uuid.UUID, partition: int, base_offset: int) -> Summary | None:
    if len(header) != _HEADER_BYTES:
        return None
    if _CHECKSUM.unpack_from(header, _FIELDS.size) != (crc32c(header[: _FIELDS.size]),):
        return None
    magic, stream, base, following, end, last_position, number, _, _, count, first, last, epoch, crc, _ = (
        _FIELDS.unpack_from(header)
    )
    if (magic, stream, number, base) != (_MAGIC, stream_id.bytes, partition, base_offset):
        return None
    return Summary(following, end, last_position, count, first, last, epoch, crc)


def load_index(segment: Segment, summary: Summary) -> bool:
    """Give a fresh Segment its summary and the entries of its index file; False for no believable file.

    `summary` is what `read_summary` returned for this file, or what the segment was sealed with.
    """
    try:
        content = index_path(segment.path).read_bytes()
    except OSError:
        return False
    if len(content) < _HEADER_BYTES + _DIGEST_BYTES:
        return False
    body = content[:-_DIGEST_BYTES]
    if content[-_DIGEST_BYTES:] != xxh3_128_digest(body):
        return False
    fields = _FIELDS.unpack_from(content)
    if (
        fields[3:6] != (summary.next_offset, summary.end, summary.last_position)
        or fields[13] != summary.last_crc
    ):
        return False
    entries = body[_HEADER_BYTES:]
    if fields[14] != len(entries):
        return False
    try:
        segment.load(entries, **asdict(summary))
    except (ValueError, OverflowError):
        return False
    return True
