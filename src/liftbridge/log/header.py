"""The header block of a segment file: whose file this is.

One block of 4096 bytes in front of the batches, little-endian:

    0    8s  magic, "LBSEGMNT"
    8   u32  format version, 3
   12   u32  bytes in use in front of the checksum
   16  16s  UUID of the stream
   32   i64  base offset, as in the file's name
   40   i64  creation time, ns since the epoch
   48   u32  partition
   52   u32  flags: 1 for a sparse segment, one that compaction or repair has written
   56   i64  of a sparse segment the offset behind its range, in which offsets may be missing; else -1
   64   u32  CRC-32C of everything before
 1024        slots of the wrapped data key of an encrypted segment (log/keys.py), zero in any other

The rest of the block is zero. The UUID keeps a stream that was deleted and created again under the same
name from adopting the files of its predecessor. The slots are outside of the checksum, because a key is
wrapped anew while the segment is in use.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from liftbridge._log import SEGMENT_HEADER_BYTES, crc32c

_MAGIC = b"LBSEGMNT"
_VERSION = 3
_FIELDS = struct.Struct("<8sII16sqqIIq")
_CHECKSUM = struct.Struct("<I")
_SPARSE = 1
KEY_SLOTS = 1024  # where they begin in the block


@dataclass(frozen=True)
class SegmentHeader:
    """Whose segment a file is: stream, partition, first offset; and when it was created (ns).

    `end_offset` is -1, or for a sparse segment the offset behind its range.
    """

    stream_id: uuid.UUID
    partition: int
    base_offset: int
    created: int
    end_offset: int = -1

    def encode(self, key_slots: bytes = b"") -> bytes:
        """Return the block, with what an encrypted segment needs in the slots."""
        fields = _FIELDS.pack(
            _MAGIC,
            _VERSION,
            _FIELDS.size,
            self.stream_id.bytes,
            self.base_offset,
            self.created,
            self.partition,
            _SPARSE if self.end_offset >= 0 else 0,
            self.end_offset,
        )
        front = (fields + _CHECKSUM.pack(crc32c(fields))).ljust(KEY_SLOTS, b"\0")
        block = (front + key_slots).ljust(SEGMENT_HEADER_BYTES, b"\0")
        assert len(block) == SEGMENT_HEADER_BYTES, "the key slots are longer than the block"
        return block

    @classmethod
    def decode(cls, block: bytes) -> SegmentHeader | None:
        """Return what the block says, or None when it is not a whole, undamaged header.

        Raises ValueError when it is whole and undamaged, but of a format this version does not know.
        """
        if len(block) != SEGMENT_HEADER_BYTES:
            return None
        fields = block[: _FIELDS.size]
        (checksum,) = _CHECKSUM.unpack_from(block, _FIELDS.size)
        if checksum != crc32c(fields) or any(block[_FIELDS.size + _CHECKSUM.size : KEY_SLOTS]):
            return None
        magic, version, used, stream, base, created, partition, flags, end = _FIELDS.unpack(fields)
        if (magic, version, used) != (_MAGIC, _VERSION, _FIELDS.size) or flags & ~_SPARSE:
            raise ValueError(
                "the file was written in a format this version does not know; use the newer version"
            )
        if bool(flags & _SPARSE) != (end >= 0) or (flags and end < base):
            return None
        return cls(uuid.UUID(bytes=stream), partition, base, created, end)
