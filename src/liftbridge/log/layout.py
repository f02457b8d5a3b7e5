"""The format of a log's files a second time, in plain Python: what the tools that look at a log go by.

The C core (`_batch.h`, `_segment.h`) and `header.py`, `index.py` write and read the same format for the
server. This module shares no code with them, checksums excepted, so that a mistake in one of the two shows
as a disagreement. The documentation of the fields is theirs; here is every constant once.

Everything parses bytes that may be anything. Invariants: no length is used before it was compared with what
is there, and nothing but FormatError comes out of bytes that are wrong.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from xxhash import xxh3_128_digest, xxh64_intdigest

from liftbridge._log import crc32c

HEADER_BLOCK = 4096
FIRST_POSITION = HEADER_BLOCK
_SEGMENT_MAGIC = b"LBSEGMNT"
_HEADER_START = struct.Struct("<8sII")  # the same in every version: magic, version, bytes in use
_SEGMENT_VERSION = 3
_HEADER_FIELDS = struct.Struct("<8sII16sqqIIq")
_KEY_SLOTS = 1024  # here the wrapped keys begin
_SPARSE = 1

BATCH_MAGIC = struct.pack("<I", 0x4C42AB0E)
BATCH_VERSION = 1
BATCH_HEADER = 80
BATCH_MAX = 128 * 1024 * 1024
_CRC_FROM = 12  # the checksum covers what is behind it
_BATCH = struct.Struct("<4sIIHHqIIQqqqihHII")

CODEC_MASK = 0x07
CODECS = {0: "none", 1: "lz4", 2: "zstd"}
ENCRYPTED, CONTROL, HAS_TOMBSTONES, HAS_EXPIRY = 0x08, 0x10, 0x20, 0x40
_ATTRIBUTES = CODEC_MASK | ENCRYPTED | CONTROL | HAS_TOMBSTONES | HAS_EXPIRY
_LZ4_MAX_RATIO = 255  # a byte of an LZ4 block stands for no more
_SEALED_EXTRA = 12 + 16  # what encryption adds to a body: nonce and tag

_RECORD = struct.Struct("<IIHHHH")
_RECORD_KEY = struct.Struct("<QI")
_RECORD_EXPIRY = struct.Struct("<q")
_RECORD_MIN = _RECORD.size + 2  # a timestamp of one byte
HAS_KEY, HAS_VALUE, HAS_EXPIRES = 1, 2, 4
_FIELD_TIMESTAMP, _FIELD_SUBJECT, _FIELD_REPLY = 0x20, 0x3A, 0x42
_FIELD_KEY, _FIELD_VALUE, _FIELD_HEADERS = 0x12, 0x1A, 0x4A
_ENTRY_NAME, _ENTRY_VALUE = 0x0A, 0x12

_INDEX_MAGIC = b"LBINDEX2"
_INDEX = struct.Struct("<8s16sqqQQIIQQqqQqQ")
_INDEX_EPOCH = struct.Struct("<Qq")
_INDEX_ENTRY = struct.Struct("<IIq")
_INDEX_DIGEST = 16
INDEX_MAX = 64 * 1024 * 1024  # an entry per 4 KiB of the largest segment, four times over

_START_MAGIC = b"LBSTART1"
_START = struct.Struct("<8sq")

_CHECKSUM = struct.Struct("<I")
_I64_MAX = (1 << 63) - 1


class FormatError(Exception):
    """Bytes are not what the format wants in their place; the text goes on where a colon ends."""


class UnknownVersionError(FormatError):
    """The bytes are whole, and of a version that this program does not know."""


# ---- the header block of a segment ----


@dataclass(frozen=True)
class HeaderBlock:
    """What the header block of a segment file says; `end_offset` is None unless the segment is sparse."""

    version: int
    stream_id: uuid.UUID
    partition: int
    base_offset: int
    created: int
    end_offset: int | None = None

    @property
    def sparse(self) -> bool:
        """Whether batches and records may be missing in it, as compaction and repair have removed them."""
        return self.end_offset is not None


def parse_header_block(block: bytes) -> HeaderBlock:
    """Return what a header block says. Raises FormatError, UnknownVersionError."""
    if len(block) < HEADER_BLOCK:
        raise FormatError("the file ends inside its header block")
    magic, version, used = _HEADER_START.unpack_from(block)
    if magic != _SEGMENT_MAGIC:
        raise FormatError("its header block does not begin as one")
    if not _HEADER_START.size <= used <= _KEY_SLOTS - _CHECKSUM.size:
        raise FormatError("its header block has an impossible length")
    if _CHECKSUM.unpack_from(block, used) != (crc32c(block[:used]),):
        raise FormatError("the checksum of its header block does not match")
    if (version, used) != (_SEGMENT_VERSION, _HEADER_FIELDS.size):
        raise UnknownVersionError(f"its header block has format version {version}")
    *_, stream, base, created, partition, flags, end = _HEADER_FIELDS.unpack_from(block)
    if flags & ~_SPARSE:
        raise UnknownVersionError("its header block has flags of a later version")
    if any(block[used + _CHECKSUM.size : _KEY_SLOTS]):
        raise FormatError("its header block has content where there should be none")
    if end < base if flags else end != -1:
        raise FormatError("its header block names an impossible end")
    return HeaderBlock(version, uuid.UUID(bytes=stream), partition, base, created, end if flags else None)


# ---- batches ----


@dataclass(frozen=True)
class BatchHeader:
    """The header of a batch. Offsets count records, timestamps are ns since the epoch, lengths are bytes."""

    length: int
    crc: int
    attributes: int
    version: int
    base_offset: int
    last_delta: int
    count: int
    epoch: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    first_sequence: int
    producer_epoch: int
    unsynced: int
    prev_crc: int
    raw_length: int

    @property
    def control(self) -> bool:
        """Whether it has no records: it tells that its epoch begins, or of which offsets there are none."""
        return bool(self.attributes & CONTROL)

    @property
    def encrypted(self) -> bool:
        """Whether the body is encrypted."""
        return bool(self.attributes & ENCRYPTED)

    @property
    def codec(self) -> str:
        """How the body is compressed."""
        code = self.attributes & CODEC_MASK
        return CODECS.get(code, f"unknown ({code})")

    @property
    def next_offset(self) -> int:
        """The offset behind the batch."""
        return self.base_offset + self.last_delta + (0 if self.control else 1)


def parse_batch_header(data: bytes) -> BatchHeader:
    """Return the fields of a header as they are, once its magic number and its length are possible.

    Raises FormatError.
    """
    if len(data) < BATCH_HEADER:
        raise FormatError("the file ends inside its header")
    magic, *fields = _BATCH.unpack_from(data)
    if magic != BATCH_MAGIC:
        raise FormatError("its magic number is wrong")
    header = BatchHeader(*fields)
    if not BATCH_HEADER <= header.length <= BATCH_MAX:
        raise FormatError("its length is impossible")
    return header


def check_checksum(data: bytes) -> None:
    """Check the CRC of a whole batch. Raises FormatError."""
    if _CHECKSUM.unpack_from(data, _CRC_FROM - _CHECKSUM.size) != (crc32c(memoryview(data)[_CRC_FROM:]),):
        raise FormatError("its checksum does not match")


def check_batch_header(header: BatchHeader) -> None:
    """Check the fields of a header against each other; says nothing of the body. Raises FormatError."""
    body = header.length - BATCH_HEADER
    codec, sealed = header.attributes & CODEC_MASK, _SEALED_EXTRA if header.encrypted else 0
    if header.version != BATCH_VERSION:
        raise FormatError("its header version is unknown")
    if header.attributes & ~_ATTRIBUTES or codec not in CODECS:
        raise FormatError("it has attributes this version does not know")
    if not 0 <= header.base_offset <= _I64_MAX - 1 - header.last_delta:
        raise FormatError("its offsets are impossible")
    if header.control:
        content = (header.count, header.raw_length, body)
        if header.attributes != CONTROL or any(content):
            raise FormatError("a control batch has content")
        return
    compressed = body - sealed < header.raw_length <= BATCH_MAX
    if not (compressed if codec else body - sealed == header.raw_length):
        raise FormatError("its body length does not match")
    if not 1 <= header.count <= header.raw_length // _RECORD_MIN or header.last_delta < header.count - 1:
        raise FormatError("its record count is impossible")
    if header.max_timestamp < header.base_timestamp:
        raise FormatError("its timestamps are impossible")


def open_body(attributes: int, header: BatchHeader, body: bytes) -> bytes | None:
    """Return the records in the stored body of a checked batch; None when it is encrypted.

    No key is read here. Raises FormatError when the body is not what its codec makes.
    """
    if attributes & ENCRYPTED:
        return None
    codec = CODECS[attributes & CODEC_MASK]
    records = body if codec == "none" else _decompressed(codec, body, header.raw_length)
    if len(records) != header.raw_length:
        raise FormatError("its body length does not match")
    return records


def _decompressed(codec: str, body: bytes, length: int) -> bytes:
    """The `length` bytes that were compressed; the libraries get no more memory than that."""
    import cramjam
    import zstandard

    try:
        if codec == "zstd":
            if zstandard.frame_content_size(body) != length:
                raise FormatError("its Zstandard frame has another length than it says")
            return zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
        if length > _LZ4_MAX_RATIO * len(body):
            raise FormatError("its LZ4 block is too short for what it says")
        records = bytearray(length)
        return bytes(records[: cramjam.lz4.decompress_block_into(body, records)])
    except (zstandard.ZstdError, cramjam.DecompressionError):
        raise FormatError(f"its body is not what {codec} makes") from None


# ---- records ----


@dataclass(frozen=True)
class Record:
    """One record. A value of None is a tombstone; `expiry` and `timestamp` in ns since the epoch."""

    offset: int
    timestamp: int
    flags: int
    key: bytes | None
    value: bytes | None
    subject: bytes
    reply: bytes
    headers: tuple[tuple[str, bytes], ...]
    expiry: int | None


def parse_records(header: BatchHeader, body: bytes) -> Iterator[Record]:
    """Yield the records of a checked batch from its opened body. Raises FormatError at the first bad one."""
    at, last_delta, last_timestamp = 0, -1, header.base_timestamp
    for number in range(header.count):
        size, delta = _record_bounds(body, at)
        if not last_delta < delta <= header.last_delta:
            raise FormatError(f"the offset of record {number} in it is impossible")
        try:
            record = _parse_record(memoryview(body)[at : at + size], header.base_offset + delta)
        except FormatError as error:
            raise FormatError(f"record {number} in it is malformed: {error}") from None
        if not last_timestamp <= record.timestamp <= header.max_timestamp:
            raise FormatError(f"the timestamp of record {number} in it is impossible")
        yield record
        at, last_delta, last_timestamp = at + size, delta, record.timestamp
    if at != len(body):
        raise FormatError("bytes are left over after its records")


def _record_bounds(body: bytes, at: int) -> tuple[int, int]:
    if len(body) - at < _RECORD_MIN:
        raise FormatError("it ends before its last record")
    size, delta, *_ = _RECORD.unpack_from(body, at)
    if not _RECORD_MIN <= size <= len(body) - at:
        raise FormatError("a record in it has an impossible length")
    return size, delta


def _parse_record(data: memoryview, offset: int) -> Record:
    _, _, flags, subject_size, reply_size, reserved = _RECORD.unpack_from(data)
    if flags & ~(HAS_KEY | HAS_VALUE | HAS_EXPIRES) or reserved:
        raise FormatError("it has flags this version does not know")
    fields = _Fields(data, _RECORD.size)
    key_hash, key_size = fields.unpack(_RECORD_KEY) if flags & HAS_KEY else (0, 0)
    (expiry,) = fields.unpack(_RECORD_EXPIRY) if flags & HAS_EXPIRES else (None,)
    timestamp = fields.number(_FIELD_TIMESTAMP)
    subject = fields.bytes_of(_FIELD_SUBJECT)
    reply = fields.bytes_of(_FIELD_REPLY)
    key = fields.bytes_of(_FIELD_KEY)
    value = fields.bytes_of(_FIELD_VALUE)
    headers = []
    while (entry := fields.bytes_of(_FIELD_HEADERS)) is not None:
        headers.append(_parse_entry(entry))
    fields.end()
    if (len(subject or b""), len(reply or b"")) != (subject_size, reply_size):
        raise FormatError("its subjects have other lengths than it says")
    if (key is not None) != bool(flags & HAS_KEY) or len(key or b"") != key_size:
        raise FormatError("its key has another length than it says")
    if key is not None and xxh64_intdigest(key) != key_hash:
        raise FormatError("the hash of its key does not match")
    if value is not None and not flags & HAS_VALUE:
        raise FormatError("it has a value and says that it has none")
    stored = (value or b"") if flags & HAS_VALUE else None
    return Record(offset, timestamp, flags, key, stored, subject or b"", reply or b"", tuple(headers), expiry)


def _parse_entry(entry: bytes) -> tuple[str, bytes]:
    fields = _Fields(memoryview(entry), 0)
    name = fields.bytes_of(_ENTRY_NAME) or b""
    value = fields.bytes_of(_ENTRY_VALUE) or b""
    fields.end()
    try:
        return name.decode(), value
    except UnicodeDecodeError:
        raise FormatError("the name of a header is not UTF-8") from None


class _Fields:
    """Protobuf fields in a fixed order, from `at` to the end of `data`."""

    def __init__(self, data: memoryview, at: int) -> None:
        self.data = data
        self.at = at

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        if len(self.data) - self.at < layout.size:
            raise FormatError("it ends too early")
        self.at += layout.size
        values: tuple[int, ...] = layout.unpack_from(self.data, self.at - layout.size)
        return values

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            if self.at >= len(self.data):
                break
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF
        raise FormatError("a number in it has no end")

    def _is_next(self, tag: int) -> bool:
        if self.at < len(self.data) and self.data[self.at] == tag:
            self.at += 1
            return True
        return False

    def number(self, tag: int) -> int:
        if not self._is_next(tag):
            raise FormatError("it does not begin with a timestamp")
        value = self._varint()
        return value - (1 << 64) if value > _I64_MAX else value

    def bytes_of(self, tag: int) -> bytes | None:
        if not self._is_next(tag):
            return None
        length = self._varint()
        if length > len(self.data) - self.at:
            raise FormatError("a field in it is longer than the record")
        self.at += length
        return bytes(self.data[self.at - length : self.at])

    def end(self) -> None:
        if self.at != len(self.data):
            raise FormatError("it has a field that does not belong there")


# ---- index files ----


@dataclass(frozen=True)
class IndexEntry:
    """An entry: a batch's offset minus the segment's, its position, the largest timestamp before it."""

    relative: int
    position: int
    before: int


@dataclass(frozen=True)
class IndexFile:
    """What an index file says; `problem` is what is wrong with its entries, and then they are not to be used.

    The summary in front of the entries has a checksum of its own and is whole in any case. `attributes` are
    those of all batches together; `start` is where in the file the entries begin.
    """

    stream_id: uuid.UUID
    partition: int
    base_offset: int
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
    start: int
    data: bytes
    problem: str | None

    def entries(self) -> Iterator[IndexEntry]:
        """Yield the entries; none when there is a problem."""
        for fields in _INDEX_ENTRY.iter_unpack(b"" if self.problem else self.data):
            yield IndexEntry(*fields)


def parse_index(content: bytes) -> IndexFile:
    """Return what the content of an index file says. Raises FormatError when its summary is not whole."""
    if len(content) < _INDEX.size:
        raise FormatError("it ends inside its summary")
    (magic, stream, base, following, end, last, partition, number, attributes, *rest) = _INDEX.unpack_from(
        content
    )
    count, first_timestamp, last_timestamp, epoch, crc, size = rest
    summary = _INDEX.size + number * _INDEX_EPOCH.size
    start = summary + _CHECKSUM.size
    if len(content) < start:
        raise FormatError("it ends inside its summary")
    if _CHECKSUM.unpack_from(content, summary) != (crc32c(content[:summary]),):
        raise FormatError("the checksum of its summary does not match")
    if magic != _INDEX_MAGIC:
        raise FormatError("it is of a kind this version does not know")
    data = content[start : max(start, len(content) - _INDEX_DIGEST)]
    problem = None
    if len(data) != size or size % _INDEX_ENTRY.size:
        problem = "its length does not match"
    elif content[start + size :] != xxh3_128_digest(content[: start + size]):
        problem = "its checksum does not match"
    return IndexFile(
        uuid.UUID(bytes=stream),
        partition,
        base,
        following,
        end,
        last,
        count,
        first_timestamp,
        last_timestamp,
        epoch,
        crc,
        attributes,
        tuple(_INDEX_EPOCH.iter_unpack(content[_INDEX.size : summary])),
        start,
        data,
        problem,
    )


# ---- the note of where a log begins ----


def parse_start(content: bytes) -> int:
    """The offset that the note says."""
    if len(content) != _START.size + _CHECKSUM.size:
        raise FormatError("the note of the start has an impossible length")
    magic, offset = _START.unpack_from(content)
    if magic != _START_MAGIC or offset < 0:
        raise FormatError("it is no note of a start")
    if content[_START.size :] != _CHECKSUM.pack(crc32c(content[: _START.size])):
        raise FormatError("the checksum of the note does not match")
    return int(offset)
