"""The body of a batch between memory and disk: compressed, encrypted, or both, in this order.

A codec belongs to one segment and works on whole batches: what it costs is paid per batch, never per message.
What lies on disk:

    compressed   the records as one LZ4 block or one Zstandard frame that tells its size; only when that is
                 smaller, else the batch is stored as it is and its attributes say so
    encrypted    12 bytes nonce | AES-256-GCM of the records, compressed or not | 16 bytes tag

The attributes of a batch say what was done to it, so a log is readable after its settings have changed.
Nonces are random: a batch that was cut off and written anew at the same offset must never reuse one, which a
nonce made from the offset would. At one data key a segment, what a segment can hold stays far below the 2^32
batches up to which random nonces are safe.

The header stays readable, for recovery and replication work without keys. What of it tells where the records
belong and how to read them is bound to the body as associated data, little-endian:

    16s UUID of the stream | u32 partition | i64 base offset | u64 epoch | u16 attributes | u32 count |
    u32 last delta | i64 base timestamp | i64 max timestamp | u32 length of the records

Invariants:

- What comes out of `open` is as long as the header says; of an encrypted batch it is what went into `seal`.
- Nothing of an encrypted body is decompressed before all of it was authenticated.
- Decompression never takes more memory than the length in the batch's header, which is bounded.
- A segment with a data key gives back no batch that was not encrypted: that would be a way to forge one.
- A codec may be used by several threads at once.
"""

from __future__ import annotations

import os
import struct
import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from typing_extensions import Buffer

# Which codecs there are, and their numbers in the attributes of a batch.
COMPRESSIONS = {"none": 0, "lz4": 1, "zstd": 2}
CODEC_BITS = 0x0007
ENCRYPTED = 0x0008
MAX_RAW_LENGTH = 128 << 20  # of the records of one batch, as in _batch.h

NONCE_BYTES = 12
TAG_BYTES = 16
# On messages of JSON in batches of 256 KiB, level 3 took 1.7 times as long and saved nothing over level 1.
_ZSTD_LEVEL = 1
_LZ4_MAX_RATIO = 255  # one byte of an LZ4 block stands for no more

_ASSOCIATED = struct.Struct("<16sIqQHIIqqI")


class BatchCodec:
    """What is done to the batches of one segment.

    Arguments:
        stream_id, partition: whose segment it is.
        compression: one of COMPRESSIONS, for batches to come; those that exist say themselves what they are.
        data_key: 32 bytes, or None for a segment that is not encrypted.

    Attributes: `encrypted` (whether there is a data key), `seals` (whether anything is done to batches to
    come). Raises ValueError for a compression that does not exist, or a key of another length.
    """

    __slots__ = ("_cipher", "_codec", "_compress", "_partition", "_stream", "encrypted", "seals")

    def __init__(
        self, stream_id: uuid.UUID, partition: int, compression: str = "none", data_key: bytes | None = None
    ) -> None:
        if compression not in COMPRESSIONS:
            raise ValueError(f"compression {compression!r} is not one of {', '.join(COMPRESSIONS)}")
        self._stream = stream_id.bytes
        self._partition = partition
        self._codec = COMPRESSIONS[compression]
        self._compress = _COMPRESSORS[self._codec]
        if self._compress is not None:
            self._compress(b"")  # imports the library now, rather than with the first batch on the event loop
        self._cipher = None if data_key is None else _cipher(data_key)
        self.encrypted = data_key is not None
        self.seals = self.encrypted or self._compress is not None

    def __repr__(self) -> str:
        name = next(name for name, codec in COMPRESSIONS.items() if codec == self._codec)
        return f"<BatchCodec {name}{', encrypted' if self.encrypted else ''}>"

    def seal(
        self,
        records: Buffer,
        *,
        attributes: int,
        base_offset: int,
        epoch: int,
        count: int,
        last_delta: int,
        base_timestamp: int,
        max_timestamp: int,
    ) -> tuple[int, bytes]:
        """Return the attributes that the batch's header gets, and the body to store.

        Arguments:
            records: the body as records, not empty.
            attributes: those of the batch so far: no codec, not encrypted.
            base_offset, epoch, count, last_delta, base_timestamp, max_timestamp: as in its header; the times
                are ns since the epoch.

        Raises ValueError when the attributes say that it was sealed before, or the records are too long.
        """
        if attributes & (CODEC_BITS | ENCRYPTED):
            raise ValueError(f"a batch with attributes {attributes:#x} is sealed already")
        body: bytes | memoryview = memoryview(records)
        raw_length = len(body)
        if raw_length > MAX_RAW_LENGTH:
            raise ValueError(f"a batch has {raw_length} bytes of records; {MAX_RAW_LENGTH} are the most")
        if self._compress is not None:
            packed = self._compress(body)
            if len(packed) < raw_length:
                body = packed
                attributes |= self._codec
        if self._cipher is not None:
            attributes |= ENCRYPTED
            nonce = os.urandom(NONCE_BYTES)
            place = (base_offset, epoch, attributes, count, last_delta, base_timestamp, max_timestamp)
            associated = _ASSOCIATED.pack(self._stream, self._partition, *place, raw_length)
            body = nonce + self._cipher.encrypt(nonce, body, associated)
        return attributes, bytes(body)

    def open(
        self,
        body: Buffer,
        *,
        attributes: int,
        base_offset: int,
        epoch: int,
        count: int,
        last_delta: int,
        base_timestamp: int,
        max_timestamp: int,
        raw_length: int,
    ) -> bytes:
        """Return the records of a batch.

        Arguments:
            body: as stored.
            raw_length: the length of the records in bytes, as in the batch's header.
            attributes, base_offset, epoch, count, last_delta, base_timestamp, max_timestamp: as there.

        Raises ValueError, with the reason, when the body is not what `seal` returned for these.
        """
        if not 0 <= raw_length <= MAX_RAW_LENGTH:
            raise ValueError(f"its records would have {raw_length} bytes; {MAX_RAW_LENGTH} are the most")
        stored: bytes | memoryview = memoryview(body)
        if attributes & ENCRYPTED:
            place = (base_offset, epoch, attributes, count, last_delta, base_timestamp, max_timestamp)
            associated = _ASSOCIATED.pack(self._stream, self._partition, *place, raw_length)
            stored = self._decrypted(stored, associated)
        elif self._cipher is not None:
            raise ValueError("it is not encrypted, as all batches of its segment must be")
        codec = attributes & CODEC_BITS
        if codec >= len(_DECOMPRESSORS):
            raise ValueError(f"it is compressed with codec {codec}, which this version does not know")
        decompress = _DECOMPRESSORS[codec]
        records = bytes(stored) if decompress is None else decompress(stored, raw_length)
        if len(records) != raw_length:
            raise ValueError(f"its records have {len(records)} bytes, and its header tells of {raw_length}")
        return records

    def _decrypted(self, body: bytes | memoryview, associated: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        if self._cipher is None:
            raise ValueError("it is encrypted, and its segment has no data key")
        if len(body) < NONCE_BYTES + TAG_BYTES:
            raise ValueError(f"it is encrypted, and {len(body)} bytes are too few for that")
        try:
            return self._cipher.decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], associated)
        except InvalidTag:
            raise ValueError(
                "it does not authenticate: it was altered, or it belongs to another place or another key"
            ) from None


def _cipher(data_key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(data_key) != 32:
        raise ValueError(f"a data key has 32 bytes, not {len(data_key)}")
    return AESGCM(data_key)


# ---- compression; the libraries are imported when they are needed ----


def _lz4_compress(records: bytes | memoryview) -> bytes:
    import cramjam

    return bytes(cramjam.lz4.compress_block(records, store_size=False))


def _lz4_decompress(body: bytes | memoryview, raw_length: int) -> bytes:
    import cramjam

    if raw_length > _LZ4_MAX_RATIO * len(body):
        raise ValueError(f"{len(body)} bytes of LZ4 cannot hold {raw_length} bytes of records")
    # Into a buffer of our own: only so the library tells how many bytes there really were.
    records = bytearray(raw_length)
    try:
        length = cramjam.lz4.decompress_block_into(body, records)
    except cramjam.DecompressionError:
        raise ValueError(f"it is no LZ4 block of {raw_length} bytes") from None
    if length != raw_length:
        raise ValueError(f"it is an LZ4 block of {length} bytes, and its header tells of {raw_length}")
    return bytes(records)


class _Zstd(threading.local):
    """Contexts to compress and decompress with: no two threads may share them, and making them costs."""

    def __init__(self) -> None:
        import zstandard

        self.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd: _Zstd | None = None


def _contexts() -> _Zstd:
    global _zstd
    if _zstd is None:
        # Two threads may both do this; one of the objects is then thrown away.
        _zstd = _Zstd()
    return _zstd


def _zstd_compress(records: bytes | memoryview) -> bytes:
    return _contexts().compressor.compress(records)


def _zstd_decompress(body: bytes | memoryview, raw_length: int) -> bytes:
    import zstandard

    contexts = _contexts()
    try:
        # The library allocates what the frame tells, so that must be right before it is asked.
        told = zstandard.frame_content_size(body)
        if told != raw_length:
            raise ValueError(
                "it is a Zstandard frame that does not tell its size"
                if told < 0
                else f"it is a Zstandard frame of {told} bytes, and its header tells of {raw_length}"
            )
        return contexts.decompressor.decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"it is no Zstandard frame of {raw_length} bytes: {error}") from None


# By codec number.
_COMPRESSORS: tuple[Callable[[bytes | memoryview], bytes] | None, ...] = (
    None,
    _lz4_compress,
    _zstd_compress,
)
_DECOMPRESSORS: tuple[Callable[[bytes | memoryview, int], bytes] | None, ...] = (
    None,
    _lz4_decompress,
    _zstd_decompress,
)
