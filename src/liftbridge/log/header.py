"""The header block of a segment file: whose file this is.

One block of 4096 bytes in front of the batches, little-endian:

    0    8s  magic, "LBSEGMNT"
    8   u32  format version, 2
   12   u32  bytes of this block in use, checksum excluded
   16  16s  UUID of the stream
   32   i64  base offset, as in the file's name
   40   i64  creation time, ns since the epoch
   48   u32  partition
   52   u32  id of the key that wraps the segment's data key; 0 while there is none
   56   u16  length of the wrapped key, 0 while there is none
   58   u16  reserved, zero
   60  64s  room for the wrapped key
  124   u32  CRC-32C of everything before

The rest of the block is zero. The UUID keeps a stream that was deleted and created again under the same
name from adopting the files of its predecessor.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from liftbridge._log import SEGMENT_HEADER_BYTES, crc32c

_MAGIC = b"LBSEGMNT"
_VERSION = 2
_FIELDS = struct.Struct("<8sII16sqqIIHH64s")
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True)
class SegmentHeader:
    """Whose segment a file is: stream, partition, first offset; and when it was created (ns)."""

    stream_id: uuid.UUID
    partition: int
    base_offset: int
    created: int

    def encode(self) -> bytes:
        """Return the block."""
        fields = _FIELDS.pack(
            _MAGIC,
            _VERSION,
            _FIELDS.size,
            self.stream_id.bytes,
            self.base_offset,
            self.created,
            self.partition,
            0,
            0,
            0,
            b"",
        )
        return (fields + _CHECKSUM.pack(crc32c(fields))).ljust(SEGMENT_HEADER_BYTES, b"\0")

    @classmethod
    def decode(cls, block: bytes) -> SegmentHeader | None:
        """Return what the block says, or None when it is not a whole, undamaged header.

        Raises ValueError when it is whole and undamaged, but of a format this version does not know.
        """
        if len(block) != SEGMENT_HEADER_BYTES:
            return None
        fields = block[: _FIELDS.size]
        (checksum,) = _CHECKSUM.unpack_from(block, _FIELDS.size)
        if checksum != crc32c(fields) or any(block[_FIELDS.size + _CHECKSUM.size :]):
            return None
        magic, version, used, stream, base, created, partition, key_id, key_size, reserved, _ = (
            _FIELDS.unpack(fields)
        )
        if magic != _MAGIC or version != _VERSION or used != _FIELDS.size or key_id or key_size or reserved:
            raise ValueError(
                "the file was written in a format this version does not know; use the newer version"
            )
        return cls(uuid.UUID(bytes=stream), partition, base, created)
