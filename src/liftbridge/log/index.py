"""Index files: what the core knows about a segment, kept so that a start need not scan it.

`<base offset>.index`, little-endian:

    0    8s  magic, "LBINDEX2"
    8   16s  UUID of the stream
   24   i64  base offset            72  u64  number of records
   32   i64  next offset            80  i64  timestamp of the first record
   40   u64  bytes of the segment   88  i64  timestamp of the last record
   48   u64  position of the        96  u64  leader epoch of the last batch
             last batch            104  i64  CRC of the last batch, -1 for none
   56   u32  partition             112  u64  bytes of the entries
   60   u32  number of epochs      120       epochs: u64 epoch, i64 first offset that can belong to it
   64   u64  attributes of all
             batches together
  ...  u32  CRC-32C of everything before
  ...       entries, as the core holds them: u32 offset minus base offset, u32 position,
            i64 largest timestamp before
  end  16s  XXH3-128 of everything before

Invariant: an index never decides what data exists. It is written only when what it describes is on disk.
For a sealed segment it stands in for a scan while the file has exactly the size that it tells; for the
active one it is a point from which the scan may begin. Whatever is wrong with it, it is ignored and the
segment is scanned. As the bytes of a segment never change, it stays a witness that so many of them were
on disk once; a log that has lost some of those is damaged, however it came about.
"""

from __future__ import annotations

import struct
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_128_digest

from liftbridge._log import Segment, crc32c
from liftbridge.log.files import index_path, replace_file

_MAGIC = b"LBINDEX2"
_FIELDS = struct.Struct("<8s16sqqQQIIQQqqQqQ")
_EPOCH = struct.Struct("<Qq")
_CHECKSUM = struct.Struct("<I")
_DIGEST_BYTES = 16
_MOST_EPOCHS = 1 << 16  # of one segment; more are no index


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
    attributes: int
    epochs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, segment: Segment) -> Summary:
        """Return the summary of a segment as it is now."""
        return cls(**{name: getattr(segment, name) for name in cls.__dataclass_fields__})


def encode_index(segment: Segment, stream_id: uuid.UUID, partition: int) -> bytes:
    """Return the content of the index file of a segment as it is now."""
    entries = segment.index_bytes()
    epochs = segment.epochs
    fields = _FIELDS.pack(
        _MAGIC,
        stream_id.bytes,
        segment.base_offset,
        segment.next_offset,
        segment.end,
        segment.last_position,
        partition,
        len(epochs),
        segment.attributes,
        segment.count,
        segment.first_timestamp,
        segment.last_timestamp,
        segment.last_epoch,
        segment.last_crc,
        len(entries),
    )
    head = fields + b"".join(_EPOCH.pack(*each) for each in epochs)
    content = head + _CHECKSUM.pack(crc32c(head)) + entries
    return content + xxh3_128_digest(content)


def write_index(segment: Segment, stream_id: uuid.UUID, partition: int) -> None:
    """Write the index file of a segment whose data is on disk. Raises OSError; then the old file stands."""
    replace_file(index_path(segment.path), encode_index(segment, stream_id, partition))


def remember(segment: Segment, stream_id: uuid.UUID, partition: int) -> None:
    """As `write_index`, if that can be: an index saves time at the next start, and a full disk must not keep
    a log from anything."""
    with suppress(OSError):
        write_index(segment, stream_id, partition)


def read_summary(path: Path, stream_id: uuid.UUID, partition: int, base_offset: int) -> Summary | None:
    """Return what the index file at `path` says about the segment, or None when it cannot be believed."""
    try:
        with path.open("rb") as file:
            head = file.read(_FIELDS.size)
            if len(head) != _FIELDS.size or (number := _FIELDS.unpack(head)[7]) > _MOST_EPOCHS:
                return None
            head += file.read(number * _EPOCH.size + _CHECKSUM.size)
    except OSError:
        return None
    return _decode_summary(head, stream_id, partition, base_offset)


def _decode_summary(head: bytes, stream_id: uuid.UUID, partition: int, base_offset: int) -> Summary | None:
    """The summary in the bytes in front of the entries."""
    fields = _FIELDS.unpack_from(head)
    if len(head) != _FIELDS.size + fields[7] * _EPOCH.size + _CHECKSUM.size:
        return None
    if head[-_CHECKSUM.size :] != _CHECKSUM.pack(crc32c(head[: -_CHECKSUM.size])):
        return None
    (
        magic,
        stream,
        base,
        following,
        end,
        last_position,
        owner,
        _,
        attributes,
        count,
        first,
        last,
        epoch,
        crc,
        _,
    ) = fields
    if (magic, stream, owner, base) != (_MAGIC, stream_id.bytes, partition, base_offset):
        return None
    epochs = tuple(_EPOCH.iter_unpack(head[_FIELDS.size : -_CHECKSUM.size]))
    return Summary(following, end, last_position, count, first, last, epoch, crc, attributes, epochs)


def load_index(segment: Segment, summary: Summary) -> bool:
    """Give a fresh Segment its summary and the entries of its index file; False for no believable file.

    `summary` is what `read_summary` returned for this file, or what the segment was sealed with.
    """
    try:
        content = index_path(segment.path).read_bytes()
    except OSError:
        return False
    begin = _FIELDS.size + len(summary.epochs) * _EPOCH.size + _CHECKSUM.size
    if len(content) < begin + _DIGEST_BYTES:
        return False
    body = content[:-_DIGEST_BYTES]
    if content[-_DIGEST_BYTES:] != xxh3_128_digest(body):
        return False
    fields = _FIELDS.unpack_from(content)
    if (
        fields[3:6] != (summary.next_offset, summary.end, summary.last_position)
        or fields[13] != summary.last_crc
        or fields[7] != len(summary.epochs)
    ):
        return False
    entries = body[begin:]
    if fields[14] != len(entries):
        return False
    try:
        segment.load(entries, **vars(summary))
    except (ValueError, OverflowError):
        return False
    return True
